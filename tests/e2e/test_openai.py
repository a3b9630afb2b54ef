"""The `openai` client as it is, sync and async, against `forebay up` with the demo model."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Batch, Completion, FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.batches import OVER, ended, jsonl, results
from tests.support.meadows import film, png
from tests.support.openai_types import check
from tests.support.up import Up, up
from worker.demo import SHEEP_PICTURE
from worker.demo.pictures import cat_scene, sheep_scene

pytestmark = pytest.mark.timeout(240)

NAME = "internvl2-2b"
"""What the guide's script finds served."""


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, *_: object) -> None:
        """Leave the test's output to the test."""


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a folder with the guide's picture and film, served over HTTP."""
    folder = tmp_path_factory.mktemp("web")
    (folder / "animal.png").write_bytes(SHEEP_PICTURE.read_bytes())
    (folder / "walk.mp4").write_bytes(base64.b64decode(film().split(",")[1]))
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    data = tmp_path_factory.mktemp("openai") / "data"
    with up(data, "--served-name", NAME, FOREBAY_MEDIA_ALLOW_HOSTS="127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Up) -> Iterator[OpenAI]:
    with OpenAI(api_key="EMPTY", base_url=f"{server.url}/v1", max_retries=0, timeout=60) as made:
        yield made


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def clip(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> Any:
    return {"role": "user", "content": list(parts)}


def test_the_guides_script_runs_as_it_is(
    server: Up, web: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = OpenAI(api_key="EMPTY", base_url=f"{server.url}/v1")
    model = client.models.list().data[0].id
    print(f"model: {model}")

    response = client.chat.completions.create(
        model=model, messages=[user(clip(f"{web}/walk.mp4"), text("描述视频"))], temperature=0
    )
    print(f"video: {response.choices[0].message.content}")

    stream = client.chat.completions.create(
        model=model,
        messages=[user(picture(f"{web}/animal.png"), text("图片中有几只羊"))],
        stream=True,
        temperature=0,
    )
    print("picture: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content, end="", flush=True)
    print()
    client.close()

    first, video, sheep = capsys.readouterr().out.splitlines()
    assert first == f"model: {NAME}"
    assert "羊" in video
    assert sheep == "picture: 四只"


def test_the_model_is_listed_with_what_it_can(client: OpenAI) -> None:
    raw = client.models.with_raw_response.list()
    (listed,) = json.loads(raw.content)["data"]
    by_alias = json.loads(client.models.with_raw_response.retrieve("InternVL2_2B").content)

    check(listed, Model)
    assert by_alias == listed
    assert (listed["status"], listed["is_chat"], listed["is_multimodal"]) == ("ready", True, True)


def test_a_local_film_is_sent_as_bytes(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=NAME, messages=[user(clip(film()), text("描述视频"))], temperature=0
    )

    check(json.loads(raw.content), ChatCompletion)
    assert "羊" in (raw.parse().choices[0].message.content or "")


def test_media_may_stand_after_the_text_beside_it_or_inside_it(client: OpenAI) -> None:
    sheep = png(sheep_scene())
    ask = partial(client.chat.completions.create, model=NAME, temperature=0)

    answers = [
        ask(messages=[user(text("图片中有几只羊"), picture(sheep))]),
        ask(messages=[user(text("图片中有几只羊"))], extra_body={"images": [sheep]}),
        ask(messages=[{"role": "user", "content": f"<img>{sheep}</img>图片中有几只羊"}]),
    ]

    assert [answer.choices[0].message.content for answer in answers] == ["四只"] * 3


def test_a_second_turn_may_bring_a_picture_of_its_own(client: OpenAI) -> None:
    first = user(picture(png(sheep_scene())), text("图片中有几只羊"))
    answer = client.chat.completions.create(model=NAME, messages=[first], temperature=0)

    second = client.chat.completions.create(
        model=NAME,
        messages=[
            first,
            answer.choices[0].message,
            user(picture(png(cat_scene())), text("What animal is this?")),
        ],
        temperature=0,
    )

    assert answer.choices[0].message.content == "四只"
    assert "cat" in (second.choices[0].message.content or "").lower()
    assert second.usage is not None
    assert answer.usage is not None
    assert second.usage.prompt_tokens > answer.usage.prompt_tokens


def test_choices_with_a_seed_are_the_same_again(client: OpenAI) -> None:
    ask = partial(
        client.chat.completions.create, model=NAME, n=4, seed=7, temperature=2, max_tokens=24,
        messages=[user(picture(png(sheep_scene())), text("描述图片"))],
    )  # fmt: skip

    first, again = ask(), ask()

    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) > 1


def test_a_text_is_completed(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model=NAME, prompt="你是谁？", temperature=0, max_tokens=20
    )

    check(json.loads(raw.content), Completion)
    assert raw.parse().choices[0].text


def test_an_uploaded_picture_is_asked_about_by_its_id(client: OpenAI) -> None:
    data = SHEEP_PICTURE.read_bytes()

    made = client.files.with_raw_response.create(file=("sheep.png", data), purpose="vision")
    file = made.parse()
    answer = client.chat.completions.with_raw_response.create(
        model=NAME, messages=[user(picture(file.id), text("图片中有几只羊"))], temperature=0
    )
    found = client.files.with_raw_response.retrieve(file.id)
    listed = client.files.with_raw_response.list(purpose="vision")
    back = client.files.content(file.id).content
    deleted = client.files.with_raw_response.delete(file.id)

    check(json.loads(made.content), FileObject)
    check(json.loads(answer.content), ChatCompletion)
    check(json.loads(found.content), FileObject)
    for item in json.loads(listed.content)["data"]:
        check(item, FileObject)
    check(json.loads(deleted.content), FileDeleted)
    assert answer.parse().choices[0].message.content == "四只"
    assert (file.purpose, file.bytes, back) == ("vision", len(data), data)
    assert file.id in [item.id for item in listed.parse().data]


def chat_line(name: str, *parts: dict[str, Any]) -> dict[str, Any]:
    body = {"model": NAME, "messages": [user(*parts)], "temperature": 0}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def words_of(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return what the lines of a batch were answered, each of which must be a whole completion."""
    for row in rows.values():
        assert (row["response"]["status_code"], row["error"]) == (200, None)
        check(row["response"]["body"], ChatCompletion)
    bodies = {name: row["response"]["body"] for name, row in rows.items()}
    return {name: body["choices"][0]["message"]["content"] for name, body in bodies.items()}


def test_a_batch_of_chats_runs_to_its_end(client: OpenAI) -> None:
    lines = [
        chat_line("count", picture(png(sheep_scene())), text("图片中有几只羊")),
        chat_line("kind", picture(png(cat_scene())), text("What animal is this?")),
        chat_line("film", clip(film()), text("描述视频")),
    ]

    file = client.files.create(file=("lines.jsonl", jsonl(lines)), purpose="batch")
    made = client.batches.with_raw_response.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    batch = ended(client, made.parse(), limit_s=90)
    last = client.batches.with_raw_response.retrieve(batch.id)
    listed = client.batches.with_raw_response.list(limit=1)

    for body in (made, last):
        check(json.loads(body.content), Batch)
    for item in json.loads(listed.content)["data"]:
        check(item, Batch)
    assert (batch.status, batch.model, batch.error_file_id) == ("completed", NAME, None)
    words = words_of(results(client, batch.output_file_id))
    assert (words.keys(), words["count"]) == ({"count", "kind", "film"}, "四只")
    assert "cat" in words["kind"].lower()
    assert "羊" in words["film"]


async def test_the_async_client_has_a_file_asked_about_by_a_batch(server: Up) -> None:
    async with AsyncOpenAI(api_key="EMPTY", base_url=f"{server.url}/v1", timeout=60) as client:
        sheep = await client.files.create(file=SHEEP_PICTURE, purpose="vision")
        lines = jsonl([
            chat_line("file", picture(sheep.id), text("图片中有几只羊")),
            chat_line("name", text("你是谁？")),
        ])  # fmt: skip
        file = await client.files.create(file=("lines.jsonl", lines), purpose="batch")
        begun = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

        async with asyncio.timeout(90):
            batch = begun
            while batch.status not in OVER:
                await asyncio.sleep(0.1)
                batch = await client.batches.retrieve(begun.id)
        output = await client.files.content(batch.output_file_id or "")
        deleted = await client.files.delete(sheep.id)

    words = words_of({row["custom_id"]: row for row in map(json.loads, output.text.splitlines())})
    assert (batch.status, deleted.deleted) == ("completed", True)
    assert (words.keys(), words["file"]) == ({"file", "name"}, "四只")
    assert words["name"]


async def test_the_async_client_streams_with_usage(server: Up) -> None:
    async with AsyncOpenAI(api_key="EMPTY", base_url=f"{server.url}/v1", timeout=60) as client:
        stream = await client.chat.completions.create(
            model=NAME,
            messages=[user(picture(png(sheep_scene())), text("描述图片"))],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    *told, last = chunks
    words = "".join(chunk.choices[0].delta.content or "" for chunk in told)
    for chunk in chunks:
        check(chunk.model_dump(exclude_unset=True), ChatCompletionChunk)
    assert "羊" in words
    assert last.usage is not None
    assert (last.choices, last.usage.completion_tokens > 0) == ([], True)
