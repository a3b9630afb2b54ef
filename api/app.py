"""The FastAPI application: lifespan, routers, error handlers. No route in it."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI

from api import (
    batches,
    chat,
    completions,
    errors,
    files,
    health,
    jobs,
    metrics,
    models,
    responses,
    stream,
    uploads,
    webhooks,
)
from api.deps import Contract, authorized
from api.limits import BodyLimit
from api.request_id import RequestId
from worker.contract import broker, log, settings
from worker.contract.batches import Batches
from worker.contract.debts import Debts
from worker.contract.door import RedisDoor
from worker.contract.endpoints import Endpoints
from worker.contract.files import Files
from worker.contract.intake import Intake
from worker.contract.live import LiveEvents
from worker.contract.metrics import read_totals
from worker.contract.models import Models
from worker.contract.reader import JobReader
from worker.contract.registry import Registry
from worker.contract.responses.door import Responses
from worker.contract.s3 import ObjectStore
from worker.contract.store import JobStore

_GC_THRESHOLDS = (5_000, 20, 10)  # a full one after a million objects more, not after 70 000


def create_app() -> FastAPI:
    """Return the application; settings come from the environment."""
    config = settings.load()
    log.set_up(config.log_level)
    app = FastAPI(
        title="Forebay", version=version("forebay"), lifespan=_lifespan,
        description="Multimodal chat jobs: hand one in, get the answer by poll or stream.",
    )  # fmt: skip
    app.state.settings = config
    file_bytes = files.max_file_bytes(config) + files.FORM_BYTES
    app.add_middleware(
        BodyLimit, max_bytes=config.max_body_bytes, own={files.router.prefix: file_bytes}
    )
    app.add_middleware(RequestId)  # the last one is the outermost
    errors.install(app)
    app.include_router(health.health)
    rooms = (
        jobs, stream, chat, completions, responses, models, uploads, files, batches, webhooks,
        metrics,
    )  # fmt: skip
    for room in rooms:
        app.include_router(room.router, dependencies=[Depends(authorized)])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    config = app.state.settings
    door = RedisDoor(config)
    store, registry, objects = JobStore(door), Registry(door), ObjectStore(config)
    models, files_kept = Models(registry, config.model_names), Files(door, objects)
    tickets = broker.Tickets(broker.make_app(config), store.published)
    door.on_owed = tickets.wake
    reader, live = JobReader(door), LiveEvents(door)
    intake = Intake(config, store, models, objects, tickets.send, files_kept)
    made = app.state.contract = Contract(
        settings=config,
        store=store,
        reader=reader,
        registry=registry,
        live=live,
        objects=objects,
        debts=Debts(door),
        endpoints=Endpoints(door),
        totals=lambda: read_totals(door),
        models=models,
        files=files_kept,
        batches=Batches(door),
        intake=intake,
        tickets=tickets,
        responses=Responses(config, intake, reader, live),
    )
    _look_for_garbage_rarely()
    try:
        yield
    finally:
        await made.tickets.close()
        await made.live.close()
        await made.objects.close()
        await door.close()


def _look_for_garbage_rarely() -> None:
    """Keep full collections short and few: each stops every stream of the process.

    What is loaded by now stays for good and is left out of them; the thresholds let a burst of new
    readers come without one. (With Python's own, a thousand readers waited 0.2 s at a time.)
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
