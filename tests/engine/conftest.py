"""Engines of every kind, started and closed around a test."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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


def _scope(fixture_name: str, config: pytest.Config) -> str:  # noqa: ARG001 - pytest's signature
    """Load an engine per test; on a GPU, where loading takes 20 s, once for a file's tests.

    There the tests share a loop too: -o asyncio_default_test_loop_scope=module and the same for
    asyncio_default_fixture_loop_scope.
    """
    return "module" if config.getoption("markexpr") == "gpu" else "function"


@pytest.fixture(
    scope=_scope,
    params=[
        "echo",
        "echo in a process",
        "transformers",
        pytest.param("lmdeploy", marks=pytest.mark.gpu),
    ],
)
async def loaded(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Engine, ModelCard]]:
    """Give each engine in turn, loaded, with room for SLOTS prompts, and its card."""
    engine = _engine(request)
    yield engine, await engine.start()
    await engine.close()


@pytest.fixture(scope=_scope)
def engine(loaded: tuple[Engine, ModelCard]) -> Engine:
    return loaded[0]


@pytest.fixture(scope=_scope)
def card(loaded: tuple[Engine, ModelCard]) -> ModelCard:
    return loaded[1]


def _engine(request: pytest.FixtureRequest) -> Engine:
    match request.param:
        case "echo":
            return load_engine(EngineSpec("echo", "echo", slots=SLOTS))
        case "echo in a process":
            return EngineProcess(EngineSpec("echo", "echo", slots=SLOTS))
        case "transformers":
            folder = str(request.getfixturevalue("tiny_model"))
            return load_engine(EngineSpec(folder, "transformers", slots=SLOTS, decode=decode))
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    backend = os.environ.get("FOREBAY_TEST_BACKEND", "auto")
    return load_engine(EngineSpec("demo", "lmdeploy", backend=backend, slots=SLOTS, decode=decode))
