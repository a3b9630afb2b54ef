"""Engines of every kind, started and closed around a test."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.prompts import decode
from worker.engine import EngineSpec, load_engine
from worker.engine.base import Engine, ModelCard
from worker.engine.process import EngineProcess

SLOTS = 2


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random Qwen2-VL."""
    pytest.importorskip("torch", reason="the extra `cpu` is not installed")
    from tests.support.tiny_model import write_tiny_model  # noqa: PLC0415 - it loads torch

    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


# An engine on a GPU takes 20 s and more to load: a file's tests share it, and with it a loop. What
# LMDeploy uses of torch and should not any more is not ours to mend.
ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),
)


@pytest.fixture(
    params=[
        "echo",
        "echo in a process",
        "transformers",
        pytest.param("lmdeploy", marks=ON_GPU),
    ],
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def loaded(kind: str, request: pytest.FixtureRequest) -> tuple[Engine, ModelCard]:
    """Give each engine in turn, loaded, with room for SLOTS prompts, and its card."""
    fixture = "loaded_for_all" if kind == "lmdeploy" else "loaded_for_one"
    found: tuple[Engine, ModelCard] = request.getfixturevalue(fixture)
    return found


@pytest.fixture
async def loaded_for_one(
    kind: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Engine, ModelCard]]:
    """Load the engine that the test is given, for it alone."""
    engine = _engine(kind, request)
    yield engine, await engine.start()
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded_for_all() -> AsyncIterator[tuple[Engine, ModelCard]]:
    """Load LMDeploy once for a file's tests."""
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    backend = os.environ.get("FOREBAY_TEST_BACKEND", "auto")
    spec = EngineSpec("demo", "lmdeploy", backend=backend, slots=SLOTS, decode=decode)
    engine = load_engine(spec)
    yield engine, await engine.start()
    await engine.close()


@pytest.fixture
def engine(loaded: tuple[Engine, ModelCard]) -> Engine:
    return loaded[0]


@pytest.fixture
def card(loaded: tuple[Engine, ModelCard]) -> ModelCard:
    return loaded[1]


def _engine(kind: str, request: pytest.FixtureRequest) -> Engine:
    match kind:
        case "echo":
            return load_engine(EngineSpec("echo", "echo", slots=SLOTS))
        case "echo in a process":
            return EngineProcess(EngineSpec("echo", "echo", slots=SLOTS))
    folder = str(request.getfixturevalue("tiny_model"))
    return load_engine(EngineSpec(folder, "transformers", slots=SLOTS, decode=decode))
