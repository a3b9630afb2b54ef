"""The house: who may import whom, and which module is the door to which outside world.

Every import statement of the source counts, also those inside functions and those for typing.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

DOORS = {
    "redis": {"worker.contract.door", "worker.contract.live"},
    "jsonschema_rs": {"worker.contract.options"},
    "llguidance": {"worker.engine.alphabet", "worker.engine.transformers.*"},
    "boto3": {"worker.contract.s3"},
    "botocore": {"worker.contract.s3", "worker.contract.s3_quick"},
    "httptools": {"worker.contract.s3_wire"},
    "celery": {"worker.contract.broker", "worker.pool*", "worker.runtime.*", "worker.tasks"},
    "kombu": {"worker.contract.broker*", "worker.pool*"},
    "billiard": {"worker.pool*"},
    "flower": {"worker.cli"},
    "PIL": {"worker.media.image", "worker.demo.*", "worker.engine.lmdeploy.reading"},
    "decord": {"worker.media.decoder"},
    "av": {"worker.media.decoder"},
    "torch": {"worker.engine.transformers.*", "worker.engine.lmdeploy.*", "worker.demo.*"},
    "transformers": {"worker.engine.transformers.*", "worker.demo.*"},
    "tokenizers": {"worker.engine.transformers.*", "worker.demo.*"},
    "lmdeploy": {"worker.engine.lmdeploy*"},
    "aiohttp": {"worker.outbound", "worker.bench.client"},
    # The command line is a caller like any other.
    "httpx": {"worker.client", "worker.attachments", "worker.bulk"},
    "requests": set(),
    "fastapi": {"api.*"},
    "starlette": {"api.*"},
    "python_multipart": {"api.multipart"},
    "uvicorn": {"worker.serving"},
    "prometheus_client": {"api.metrics"},
    "click": {"worker.cli", "worker.cli_webhooks"},
    "rich": {"worker.client", "worker.progress"},
}
"""Library → the only modules that may import it."""

READS_ENVIRONMENT = {
    "worker.contract.settings": "the settings themselves",
    "worker.cli": "gives its environment to the processes that it starts",
    "worker.tasks": "names the process after the GPUs that it was started on",
    "worker.runtime.base": "announces those GPUs",
    "worker.demo.team": "hears from torch's launcher which member it is",
    "worker.engine.lmdeploy.backend": "tells LMDeploy what it reads there while it is imported",
}

LADDER = (
    "worker.__main__",
    "worker.cli",
    "worker.tasks",
    "worker.runtime",
    "worker.preparing",
    "worker.chat",
    "worker.runner",
    "worker.holds",
    "worker.courier",
    "worker.webhook",
    "worker.sweeper",
    "worker.expiry",
    "worker.batches",
    "worker.stream",
    "worker.telling",
    "worker.batcher",
    "worker.media",
    "worker.engine",
    "worker.outbound",
    "worker.contract",
)
"""Arrows point down: nobody here imports a module that stands above."""

NEIGHBOURS = (
    "worker.media",
    "worker.engine",
    "worker.stream",
    "worker.webhook",
    "worker.sweeper",
    "worker.expiry",
    "worker.batches",
)

SPOKEN_ON_THE_FLOOR = {"worker.engine.base"}  # the protocol: prompts, deltas and cards, no engine

OFF_THE_LADDER = {"worker", "worker.leash", "worker.demo"}  # used from anywhere, use no rung

KNOWS_NOTHING_OF_OURS = ("worker.batcher", "worker.engine.base", "worker.contract.job")

HEAVY = {"torch", "transformers", "lmdeploy", "decord", "av", "PIL"}


@cache
def imports() -> dict[str, frozenset[str]]:
    """Return every module of ours with the full names of what it imports."""
    files = [file for package in ("worker", "api") for file in (ROOT / package).rglob("*.py")]
    names = {_module_of(file): file for file in files}
    return {
        name: frozenset(_imported(ast.parse(file.read_text()), names))
        for name, file in names.items()
    }


def _module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imported(tree: ast.Module, ours: Iterable[str]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in ours else str(node.module)


def ours(module: str) -> set[str]:
    """Return what a module imports of ours."""
    return {name for name in imports()[module] if name.split(".")[0] in {"worker", "api"}}


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def place(module: str, packages: tuple[str, ...]) -> int | None:
    """Return the number of the package that holds a module, None if none does."""
    return next((n for n, package in enumerate(packages) if is_in(module, package)), None)


def arrows() -> list[tuple[str, str]]:
    return [(module, used) for module in imports() for used in sorted(ours(module))]


def test_the_ground_floor_uses_nothing_of_ours():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if is_in(module, "worker.contract") and not is_in(used, "worker.contract")
    ]

    assert bad == []


def test_the_api_uses_the_contract_and_nothing_else_of_the_worker():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if is_in(module, "api") and not (is_in(used, "api") or is_in(used, "worker.contract"))
    ]

    assert bad == []


def test_the_worker_never_imports_the_api():
    bad = [f"{m} → {used}" for m, used in arrows() if is_in(m, "worker") and is_in(used, "api")]

    assert bad == []


def test_arrows_point_down():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if (place(used, LADDER) is not None and place(module, LADDER) is not None)
        and place(used, LADDER) < place(module, LADDER)
    ]

    assert bad == []


def test_what_runs_jobs_does_not_know_what_starts_processes():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if place(module, LADDER[3:]) is not None
        and place(used, LADDER) is None
        and used not in OFF_THE_LADDER
    ]

    assert bad == []


def test_neighbours_on_one_floor_do_not_know_each_other():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if None not in {place(module, NEIGHBOURS), place(used, NEIGHBOURS)}
        and place(module, NEIGHBOURS) != place(used, NEIGHBOURS)
        and used not in SPOKEN_ON_THE_FLOOR
    ]

    assert bad == []


@pytest.mark.parametrize("module", KNOWS_NOTHING_OF_OURS)
def test_what_needs_nothing_of_ours_imports_nothing_of_ours(module: str):
    assert ours(module) == set()


def test_our_pool_knows_nothing_but_celery():
    bad = [
        f"{module} → {used}"
        for module, used in arrows()
        if module.startswith("worker.pool") and not used.startswith("worker.pool")
    ]

    assert bad == []


def test_no_import_runs_in_a_circle():
    waiting = {module: ours(module) - {module} for module in imports()}

    while leaves := {module for module, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {module: needs for module, needs in waiting.items() if module not in leaves}

    assert waiting == {}


@pytest.mark.parametrize("library", DOORS)
def test_each_outside_world_has_its_door(library: str):
    users = {
        module
        for module, used in imports().items()
        if any(name.split(".")[0] == library for name in used)
    }

    assert {u for u in users if not any(fnmatchcase(u, door) for door in DOORS[library])} == set()


def test_the_environment_is_read_where_processes_start():
    readers = {
        module
        for module in imports()
        if {"environ", "getenv"} & _attributes_of_os(_file_of(module))
    }

    assert readers <= READS_ENVIRONMENT.keys()


def _file_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _attributes_of_os(file: Path) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("worker", {"worker.*", "celery", "redis", "pydantic", "numpy"}),
        ("api.app", {"numpy"}),
        ("worker.contract.store", {"celery", "boto3", "fastapi", "numpy"}),
        ("worker.cli", {"celery", "redis", "pydantic", "numpy"}),
        ("worker.tasks", {"fastapi", "aiohttp", "numpy"}),  # those are other roles' and engines'
    ],
)
def test_importing_costs_only_what_is_needed(module: str, more: set[str]):
    code = f"import {module}, sys; print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()

    assert [name for name in loaded if any(fnmatchcase(name, p) for p in HEAVY | more)] == []
