"""A conversation about a picture with the demo model, as the unmodified `openai` client has it."""

import asyncio
import base64
import io
import json
from collections.abc import Iterator

import openai
import pytest
from openai.types.responses import Response

from tests.support.openai_types import check
from tests.support.up import Up, up
from worker.demo.pictures import sheep_scene
from worker.demo.scenes import draw

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with up(tmp_path_factory.mktemp("responses") / "data") as running:
        yield running


@pytest.fixture
def client(server: Up) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def png() -> bytes:
    out = io.BytesIO()
    draw(sheep_scene()).save(out, "PNG")
    return out.getvalue()


def asked(part: dict[str, str]) -> list[dict[str, object]]:
    text = {"type": "input_text", "text": "图片中有几只羊"}
    return [{"role": "user", "content": [part | {"type": "input_image"}, text]}]


def data_url() -> str:
    return f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def test_a_picture_is_asked_about_and_then_asked_about_again_without_it(client: openai.OpenAI):
    first = client.responses.create(model="demo", input=asked({"image_url": data_url()}))

    raw = client.responses.with_raw_response.create(
        model="demo", input="它们是什么颜色？", previous_response_id=first.id
    )

    second = raw.parse()
    check(raw.http_response.json(), Response)
    assert first.output_text == "四只"
    assert "白" in second.output_text
    assert second.usage.input_tokens > first.usage.input_tokens > 50  # the picture's are counted
    items = list(client.responses.input_items.list(second.id, order="asc"))
    assert [(item.role, item.content[-1].text) for item in items] == [
        ("user", "图片中有几只羊"),
        ("assistant", "四只"),
        ("user", "它们是什么颜色？"),
    ]


def test_an_uploaded_file_is_a_picture_as_well(client: openai.OpenAI):
    file = client.files.create(file=("sheep.png", png()), purpose="vision")

    response = client.responses.create(model="demo", input=asked({"file_id": file.id}))

    assert response.output_text == "四只"
    (item,) = client.responses.input_items.list(response.id)
    assert item.content[0].file_id == file.id


async def test_a_background_response_is_streamed_by_two_readers_and_deleted(server: Up):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        made = await client.responses.create(
            model="demo",
            input=[{"role": "user", "content": [
                {"type": "input_image", "image_url": data_url()},
                {"type": "input_text", "text": "描述图片"}]}],
            background=True,
        )  # fmt: skip

        async def read() -> list[str]:
            stream = await client.responses.retrieve(made.id, stream=True)
            return [event.to_json() async for event in stream]

        first, second = await asyncio.gather(read(), read())
        whole = await client.responses.retrieve(made.id)
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)

    deltas = [json.loads(event).get("delta", "") for event in first]
    assert made.status == "queued"
    assert first == second
    assert len([delta for delta in deltas if delta]) > 1
    assert "".join(deltas) == whole.output_text
    assert "羊" in whole.output_text


def test_an_answer_by_a_schema_fits_it(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"animal": {"enum": ["sheep", "cat"]}},
        "required": ["animal"],
        "additionalProperties": False,
    }
    text = {"format": {"type": "json_schema", "name": "seen", "schema": schema, "strict": True}}

    response = client.responses.create(
        model="demo", input=asked({"image_url": data_url()}), text=text, max_output_tokens=64
    )

    assert json.loads(response.output_text)["animal"] in {"sheep", "cat"}
    assert response.text.format.name == "seen"
