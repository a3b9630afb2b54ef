"""Which models are served, as OpenAI's client asks for them."""

from collections.abc import Container
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.deps import Contract, Uses
from api.schemas import ERRORS, ModelList, ModelView
from worker.contract.models import aliases

router = APIRouter(prefix="/v1/models", tags=["models"], responses=ERRORS)


@router.get("", response_model=ModelList)
async def list_models(uses: Uses) -> Response:
    """List the models, the default one first."""
    cards, ready = await uses.models.cards(), await _ready_names(uses)
    data = [_view(name, card, ready) for name, card in cards.items()]
    return JSONResponse({"object": "list", "data": data})


@router.get("/{model:path}", response_model=ModelView)
async def retrieve(model: str, uses: Uses) -> Response:
    """Return one model, also under an alias; the answer has the name it is served under."""
    name, card = await uses.models.resolve(model)
    return JSONResponse(_view(name, card, await _ready_names(uses)))


async def _ready_names(uses: Contract) -> set[str]:
    return {w["model"] for w in await uses.registry.workers() if w["state"] == "ready"}


def _view(name: str, card: dict[str, Any], ready: Container[str]) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": card.get("created", 0),
        "owned_by": "forebay",
        "aliases": aliases(name),
        "is_chat": True,
        "is_multimodal": card.get("is_multimodal"),
        "engine": card.get("engine"),
        "context_tokens": card.get("context_tokens"),
        "options": card.get("options"),
        "status": "ready" if name in ready else "loading",
    }
