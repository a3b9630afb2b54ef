"""Registered receivers: made, changed, listed; their secrets change with an overlap."""

import pytest

from tests.conftest import MakeSettings
from tests.support.factories import ended, running
from worker.contract import callbacks, keys
from worker.contract import endpoints as module
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.errors import WebhookConflict, WebhookNotFound
from worker.contract.store import JobStore

URL = "https://receiver.example/hook"


@pytest.fixture
def endpoints(door: RedisDoor) -> Endpoints:
    return Endpoints(door)


async def owe(store: JobStore) -> None:
    """Let a job end."""
    await store.finish(await running(store), ended("a"))


async def test_the_secret_is_told_once(endpoints: Endpoints):
    made = await endpoints.add(URL, "shop", ["job.completed"])

    seen = await endpoints.get(made["id"])

    assert callbacks.key_of(made["signing_secret"])
    assert made == seen | {"signing_secret": made["signing_secret"]}
    assert made["signing_secret"] not in str(seen)
    assert (seen["name"], seen["url"], seen["event_types"]) == ("shop", URL, ["job.completed"])
    assert (seen["status"], seen["signing_secret_hint"][-4:]) == (
        "enabled",
        made["signing_secret"][-4:],
    )


async def test_they_are_listed_newest_first_page_by_page(endpoints: Endpoints):
    ids = [(await endpoints.add(URL, str(n), ()))["id"] for n in range(5)]
    listed: list[str] = []

    more, after = True, None
    while more:
        page, more = await endpoints.list(after, 2)
        listed += [one["id"] for one in page]
        after = listed[-1]

    assert sorted(listed) == sorted(ids)
    assert len(listed) == 5
    with pytest.raises(WebhookNotFound):
        await endpoints.list("we_none", 2)


async def test_there_is_room_for_so_many(endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_ENDPOINTS", 2)
    first = await endpoints.add(URL, "", ())
    await endpoints.add(URL, "", ())

    with pytest.raises(WebhookConflict, match="2 endpoints"):
        await endpoints.add(URL, "", ())

    await endpoints.delete(first["id"])
    await endpoints.add(URL, "", ())


async def test_only_what_is_given_changes(endpoints: Endpoints, store: JobStore, door: RedisDoor):
    made = await endpoints.add(URL, "shop", ["job.failed"])

    changed = await endpoints.change(
        made["id"], url=URL + "2", name=None, types=["job.completed", "job.failed"]
    )
    await owe(store)

    (event,) = (await Debts(door).claim(made["id"], 9)).events
    assert (changed["name"], changed["url"]) == ("shop", URL + "2")
    assert (event.type, event.url) == ("job.completed", URL + "2")


async def test_while_secrets_overlap_both_sign(
    endpoints: Endpoints, store: JobStore, door: RedisDoor
):
    debts = Debts(door)
    made = await endpoints.add(URL, "", ())
    rotated = await endpoints.rotate(made["id"], overlap=True)
    for _ in range(2):
        await owe(store)

    during = (await debts.claim(made["id"], 1)).secrets
    debts.ahead_ms = keys.HOOK_OVERLAP_MS
    after = (await debts.claim(made["id"], 1)).secrets

    assert during == (rotated["signing_secret"], made["signing_secret"])
    assert after == (rotated["signing_secret"],)


async def test_without_overlap_the_old_secret_signs_no_more(
    endpoints: Endpoints, store: JobStore, door: RedisDoor
):
    made = await endpoints.add(URL, "", ())
    rotated = await endpoints.rotate(made["id"], overlap=False)
    await owe(store)

    claimed = await Debts(door).claim(made["id"], 1)

    assert claimed.secrets == (rotated["signing_secret"],)


async def test_what_is_not_there_is_said_so(endpoints: Endpoints):
    for act in (
        endpoints.get("we_none"),
        endpoints.change("we_none", url=None, name="x", types=None),
        endpoints.rotate("we_none", overlap=True),
        endpoints.enable("we_none"),
        endpoints.delete("we_none"),
    ):
        with pytest.raises(WebhookNotFound, match="we_none"):
            await act


async def test_the_installation_makes_itself_one_secret_and_keeps_it(
    endpoints: Endpoints, door: RedisDoor
):
    (first,), (second,) = [await one.default_secrets() for one in (endpoints, Endpoints(door))]

    assert first == second
    assert callbacks.key_of(first)


async def test_configured_secrets_win(make_settings: MakeSettings):
    secret = callbacks.new_secret()
    door = RedisDoor(make_settings(FOREBAY_WEBHOOK_SECRET=secret))

    assert await Endpoints(door).default_secrets() == (secret,)
    await door.close()
