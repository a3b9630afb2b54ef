"""Alive and ready."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from api.deps import Uses
from api.schemas import Ready, Trouble
from worker.contract.errors import StoreUnavailable

health = APIRouter(prefix="/health", tags=["health"])


@health.get("/live")
async def live() -> dict[str, str]:
    """Say that this process answers."""
    return {"status": "ok"}


@health.get("/ready", response_model=Ready, responses={503: {"model": Ready}})
async def ready(uses: Uses) -> Response:
    """Say whether jobs are answered: 200 with a chat and a media worker ready, else 503.

    `reasons` tell of every worker that is not well, also while others answer.
    """
    try:
        workers, depths = await uses.registry.workers(), await uses.registry.depths()
    except StoreUnavailable as error:
        return JSONResponse({"status": "unavailable", "reason": error.message}, 503)
    roles = {role: _by_state(workers, role) for role in ("chat", "media")}
    is_ready = all(states.get("ready") for states in roles.values())
    body = {
        "status": "ready" if is_ready else "waiting",
        "reason": None if is_ready else _reason(workers, roles),
        "reasons": [Trouble(**worker).model_dump() for worker in workers if worker["reason"]],
        "workers": roles,
        "models": sorted({w["model"] for w in workers if w["state"] == "ready" and w["model"]}),
        "queued": depths,
    }
    return JSONResponse(body, 200 if is_ready else 503)


def _by_state(workers: list[dict[str, Any]], role: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in workers:
        if worker["role"] == role:
            counts[worker["state"]] = counts.get(worker["state"], 0) + 1
    return counts


def _reason(workers: list[dict[str, Any]], roles: dict[str, dict[str, int]]) -> str:
    for worker in workers:
        if worker["state"] == "failed":
            return f"a {worker['role']} worker failed: {worker['reason']}"
    missing = [role for role, states in roles.items() if not states.get("ready")]
    return f"no {' and no '.join(missing)} worker is ready"
