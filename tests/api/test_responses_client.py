"""`/v1/responses` as the unmodified `openai` client calls it, from two processes of the API."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import BaseModel

from tests.support.openai_types import check
from tests.support.processes import Service, service
from tests.support.sse import raw_frames

ENDLESS = "[[tokens=100000 rate=50]]"
CHINESE = "图片中一共有四只羊，它们在草地上。\n“引号”\\ 😀 end"
KINDS = {
    get_args(kind.model_fields["type"].annotation)[0]: kind
    for kind in get_args(get_args(ResponseStreamEvent)[0])
}


@pytest.fixture(scope="session")
def other(
    running: Service, redis_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A second process of the API on the same records."""
    settings = {"FOREBAY_KEY_PREFIX": running.environ["FOREBAY_KEY_PREFIX"]}
    folder = tmp_path_factory.mktemp("other")
    with service(Path(folder), redis_environ, roles=("api",), **settings) as made:
        yield made


def client_of(api: Service) -> dict[str, Any]:
    return {"base_url": f"{api.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 30}


@pytest.fixture
def client(running: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**client_of(running)) as made:
        yield made


@pytest.fixture
async def here(running: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**client_of(running)) as made:
        yield made


@pytest.fixture
async def there(other: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(**client_of(other)) as made:
        yield made


def as_json(event: BaseModel) -> str:
    return event.to_json(indent=None)  # type: ignore[attr-defined,no-any-return]


async def events_of(
    client: openai.AsyncOpenAI, response_id: str, after: int | None = None
) -> list[str]:
    more = {} if after is None else {"starting_after": after}
    stream = await client.responses.retrieve(response_id, stream=True, **more)
    return [as_json(event) async for event in stream]


def test_a_plain_call_is_answered(client: openai.OpenAI):
    raw = client.responses.with_raw_response.create(model="echo", input="Hello there", user="u")

    check(raw.http_response.json(), Response)
    response = raw.parse()
    assert (response.output_text, response.status, response.user) == (
        "Hello there",
        "completed",
        "u",
    )


def test_a_stream_is_read_event_by_event(client: openai.OpenAI):
    events = list(client.responses.create(model="echo", input=CHINESE, stream=True))

    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == CHINESE
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == CHINESE
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_the_clients_own_accumulator_is_content(client: openai.OpenAI):
    with client.responses.stream(model="echo", input=CHINESE) as stream:
        stream.until_done()
        whole = stream.get_final_response()

    with client.responses.stream(response_id=whole.id, starting_after=3) as again:
        numbers = [event.sequence_number for event in again]
        replayed = again.get_final_response()

    assert whole.output_text == replayed.output_text == CHINESE
    assert numbers == list(range(4, numbers[-1] + 1))


def test_an_answer_goes_back_in_as_it_came(client: openai.OpenAI):
    turns: list[Any] = [{"role": "user", "content": "one"}]
    turns += client.responses.create(model="echo", input=turns).output

    response = client.responses.create(
        model="echo", input=[*turns, {"role": "user", "content": "two"}]
    )

    assert response.output_text == "two"
    assert [item.role for item in client.responses.input_items.list(response.id, order="asc")] == [
        "user", "assistant", "user",
    ]  # fmt: skip


def test_input_items_are_paged(client: openai.OpenAI):
    turns: list[Any] = [{"role": "user", "content": f"turn {n}"} for n in range(7)]
    made = client.responses.create(model="echo", input=turns)

    newest_first = list(client.responses.input_items.list(made.id, limit=3))
    raw = client.responses.input_items.with_raw_response.list(
        made.id, include=["message.input_image.image_url"]
    )

    check(raw.http_response.json(), ResponseItemList)
    assert [item.content[0].text for item in newest_first] == [
        f"turn {n}" for n in range(6, -1, -1)
    ]


def test_refusals_are_the_clients_own_exceptions(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.retrieve("resp_" + "0" * 32)
    with pytest.raises(openai.BadRequestError) as bad:
        client.responses.create(model="echo", input="x", truncation="auto")
    with pytest.raises(openai.ConflictError):
        client.responses.create(model="echo", input="x", previous_response_id=endless(client))

    assert missing.value.code == "response_not_found"
    assert bad.value.param == "truncation"


def endless(client: openai.OpenAI) -> str:
    made = client.responses.create(
        model="echo", input=ENDLESS, background=True, max_output_tokens=100_000, timeout=30
    )
    return made.id


async def test_every_event_is_of_the_clients_types(running: Service, here: openai.AsyncOpenAI):
    made = await here.responses.create(
        model="echo", input=f"{CHINESE}[[rate=300]]", background=True, instructions="be brief"
    )

    async with httpx.AsyncClient(base_url=running.url, timeout=30) as http:
        url = f"/v1/responses/{made.id}"
        frames = [frame async for frame in raw_frames(http, url, params={"stream": True})]

    assert len(frames) > 10
    for number, frame in enumerate(frames):
        check(frame.data, KINDS[frame.event])
        assert (frame.id, frame.data["sequence_number"]) == (str(number), number)
        assert frame.event == frame.data["type"]


async def test_a_reader_cut_at_every_event_resumes_at_the_other_process(
    here: openai.AsyncOpenAI, there: openai.AsyncOpenAI
):
    made = await here.responses.create(model="echo", input="[[tokens=25 rate=50]]", background=True)
    pieced: list[BaseModel] = []

    async with asyncio.timeout(20):
        while not pieced or not hasattr(pieced[-1], "response") or is_early(pieced[-1]):
            reader = (here, there)[len(pieced) % 2]
            after = {"starting_after": pieced[-1].sequence_number} if pieced else {}
            stream = await reader.responses.retrieve(made.id, stream=True, **after)
            async with stream:
                pieced.append(await anext(aiter(stream)))

    whole = await events_of(there, made.id)
    assert [as_json(event) for event in pieced] == whole


def is_early(event: Any) -> bool:
    return event.response.status in {"queued", "in_progress"}


async def test_a_stream_begun_at_one_process_is_the_same_at_the_other(
    here: openai.AsyncOpenAI, there: openai.AsyncOpenAI
):
    stream = await here.responses.create(model="echo", input="[[tokens=30 rate=60]]", stream=True)
    async with stream, aclosing(aiter(stream)) as events:
        created = await anext(events)
        begun = [as_json(created)] + [as_json(await anext(events)) for _ in range(7)]
    response_id = created.response.id

    rest, whole = await asyncio.gather(
        events_of(there, response_id, 7), events_of(here, response_id)
    )

    assert begun + rest == whole
    for cut in range(len(whole)):
        assert await events_of(there, response_id, cut) == whole[cut + 1 :]


async def test_a_response_is_cancelled_and_deleted_at_the_other_process(
    here: openai.AsyncOpenAI, there: openai.AsyncOpenAI
):
    made = await here.responses.create(
        model="echo", input=ENDLESS, background=True, max_output_tokens=100_000
    )
    reading = asyncio.create_task(events_of(here, made.id))

    cancelled = await there.responses.cancel(made.id)

    told = await reading
    assert cancelled.status == "cancelled"
    assert (await here.responses.retrieve(made.id)) == cancelled
    assert '"response.incomplete"' in told[-1]
    assert '"status":"cancelled"' in told[-1]
    await there.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await here.responses.retrieve(made.id)


async def test_one_response_goes_on_from_another_made_elsewhere(
    here: openai.AsyncOpenAI, there: openai.AsyncOpenAI
):
    first = await here.responses.create(model="echo", input="one", instructions="be brief")

    second = await there.responses.create(model="echo", input="two", previous_response_id=first.id)

    items = [item async for item in here.responses.input_items.list(second.id, order="asc")]
    assert second.previous_response_id == first.id
    assert [(i.role, i.content[0].text) for i in items] == [
        ("user", "one"), ("assistant", "one"), ("user", "two"),
    ]  # fmt: skip
