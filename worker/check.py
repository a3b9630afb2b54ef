"""`forebay check`: is everything there that a worker on this host needs? One line each."""

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from worker import gpus
from worker.contract import broker
from worker.contract.door import RedisDoor
from worker.contract.errors import JobError
from worker.contract.s3 import ObjectStore
from worker.contract.settings import Settings, without_password
from worker.engine import resolve_model
from worker.engine.lmdeploy.models import hub_id

PROBE_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, whether it is well, and what was seen or is to be done."""

    name: str
    is_ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.is_ok else 'FAIL'}  {self.name:<7} {self.text}"


class _Fault(Exception):
    """Something is not well; the message says what to do."""


def findings(settings: Settings, model: str) -> list[Finding]:
    """Look at everything, one after the other; each look takes at most 15 s."""
    return asyncio.run(_findings(settings, model))


async def _findings(settings: Settings, model: str) -> list[Finding]:
    async def look_at_model() -> str:
        return describe_model(model)

    looks: list[tuple[str, Callable[[], Awaitable[str]]]] = [
        ("redis", lambda: _redis(settings)),
        ("broker", lambda: _broker(settings)),
        ("s3", lambda: _s3(settings)),
        ("gpus", _gpus),
        ("model", look_at_model),
    ]
    return [await _finding(name, look) for name, look in looks]


async def _finding(name: str, look: Callable[[], Awaitable[str]]) -> Finding:
    try:
        return Finding(name, is_ok=True, text=await asyncio.wait_for(look(), PROBE_S))
    except TimeoutError:
        return Finding(name, is_ok=False, text=f"no answer within {PROBE_S:.0f} s")
    except Exception as error:  # noqa: BLE001 - such as a URL that is none; what is left is looked at
        return Finding(name, is_ok=False, text=str(error) or type(error).__name__)


async def _redis(settings: Settings) -> str:
    door = RedisDoor(settings, max_connections=1)
    where = without_password(settings.redis_url)
    try:
        await door.ping()
    except JobError as error:
        raise _Fault(f"{error}; start it, or set REDIS_URL") from error
    finally:
        await door.close()
    return where


async def _broker(settings: Settings) -> str:
    where = without_password(settings.broker_url)
    try:
        await asyncio.to_thread(_connect, settings)
    except Exception as error:  # the transport's own; there are as many kinds as transports
        raise _Fault(f"{where} does not answer ({error}); set CELERY_BROKER_URL") from error
    return where


def _connect(settings: Settings) -> None:
    with broker.make_app(settings).connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=5)


async def _s3(settings: Settings) -> str:
    store, key = ObjectStore(settings, threads=1), f"check/{secrets.token_hex(8)}"
    try:
        await store.ensure_bucket()
        await store.put_bytes(key, b"probe", "text/plain")
        if await store.get_bytes(key, max_bytes=64) != b"probe":
            raise _Fault(f"{settings.s3_endpoint_url} gave back other bytes than were stored")
        await store.delete(key)
    except JobError as error:
        raise _Fault(
            f"{error} ({settings.s3_endpoint_url}); set S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
            f"AWS_SECRET_ACCESS_KEY"
        ) from error
    finally:
        await store.close()
    return f"{settings.s3_endpoint_url} bucket {settings.s3_bucket}"


async def _gpus() -> str:
    there = await asyncio.to_thread(gpus.present)
    return ", ".join(f"{gpu.name} ({gpu.uuid})" for gpu in there) or "none: CPU"


def describe_model(model: str) -> str:
    """Return what a --model is. Raises EngineFailed or a fault with what to do instead."""
    name = hub_id(resolve_model(model))
    folder = Path(name)
    if _is_of_hub(folder, name):
        return f"{name} of the Hugging Face hub; the lmdeploy engine fetches it at its first start"
    try:
        config = json.loads((folder / "config.json").read_text())
    except OSError as error:
        raise _Fault(
            f"{folder}/config.json: {error.strerror}; --model takes the folder of a checkpoint, "
            "or a hub id"
        ) from error
    except ValueError as error:
        raise _Fault(f"{folder}/config.json is no JSON ({error}); fetch the model again") from error
    return f"{folder} ({config.get('model_type', 'no model_type')})"


def _is_of_hub(folder: Path, name: str) -> bool:
    """Return whether a name can only be a hub id: nothing of that kind lies here."""
    looks_so = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None
    return looks_so and not folder.exists() and not folder.parent.exists()
