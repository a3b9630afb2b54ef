"""The engines, of which a process loads exactly one.

Importing this package imports none of them; `load_engine` does, and with it whatever that engine
needs (torch, LMDeploy).
"""

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from worker.contract.errors import EngineFailed
from worker.engine.base import Engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EngineName = Literal["auto", "lmdeploy", "transformers", "echo"]
Decode = Callable[[bytes], "NDArray[np.uint8]"]
"""Turns an encoded picture into pixels, uint8 (height, width, 3) RGB."""

DEMO = "demo"
"""The model name that stands for the one in this package."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which engine to load, with which model, how large. Picklable: it goes to another process.

    `model` is a checkpoint folder, a hub id that is in the local cache, or `demo`; the echo engine
    takes any name. `backend` (auto, turbomind, pytorch) and `tp` (GPUs per model) are LMDeploy's.
    `slots` prompts inside at once and `context_tokens` prompt + answer: None is the engine's own.
    `threads` cores per prompt of the transformers engine, None: all, divided by its slots. `decode`
    opens pictures; it must be a module's function to be picklable, and an engine without one
    refuses pictures. LMDeploy's alone: `readers` processes that prepare prompts (None: by the
    cores), `has_prefix_cache` keep what prompts have in common, where the backend can; and
    `trust_remote_code` run Python that a checkpoint brings along.
    """

    model: str
    engine: EngineName = "auto"
    backend: str = "auto"
    tp: int = 1
    slots: int | None = None
    context_tokens: int | None = None
    threads: int | None = None
    decode: Decode | None = None
    readers: int | None = None
    has_prefix_cache: bool = True
    trust_remote_code: bool = False


def load_engine(spec: EngineSpec) -> Engine:
    """Import the one engine that `spec` names and build it; it is loaded by its `start`.

    Raises:
        EngineFailed: what this engine needs is not installed.
    """
    match choose(spec.engine):
        case "echo":
            from worker.engine.echo import EchoEngine  # noqa: PLC0415 - exactly one is imported

            return EchoEngine(spec.model, slots=spec.slots or 256)
        case "transformers":
            return _transformers(spec)
    return _lmdeploy(spec)


def choose(engine: EngineName) -> EngineName:
    """Return the engine that `auto` means here: LMDeploy where it and a GPU are, else transformers.

    Call it only in the process that then holds the engine: a CUDA driver that was asked once cannot
    be used in a fork.
    """
    if engine != "auto":
        return engine
    return "lmdeploy" if _is_installed("lmdeploy") and is_cuda_visible() else "transformers"


def is_cuda_visible() -> bool:
    """Return whether CUDA_VISIBLE_DEVICES leaves this process a GPU, without loading torch."""
    driver = _cuda_driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return False
    return count.value > 0


def _cuda_driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None


def resolve_model(name: str) -> str:
    """Return the folder for `demo` and every other name as it is."""
    if name != DEMO:
        return name
    from worker.demo import MODEL_DIR  # noqa: PLC0415 - only who asks for the demo pays for it

    return str(Path(MODEL_DIR))


def _lmdeploy(spec: EngineSpec) -> Engine:
    if not _is_installed("lmdeploy"):
        raise EngineFailed(
            "the LMDeploy engine needs lmdeploy, which is not installed: pip install "
            "'forebay[gpu]' on a machine with an NVIDIA GPU; --engine transformers answers on a CPU"
        )
    if not is_cuda_visible():
        raise EngineFailed(
            "the LMDeploy engine needs an NVIDIA GPU, and this process sees none "
            "(nvidia-smi, CUDA_VISIBLE_DEVICES); use --engine transformers on a CPU",
            is_everywhere=_cuda_driver() is None,  # else others may have been left theirs
        )
    from worker.engine.lmdeploy import LmdeployEngine  # noqa: PLC0415 - it loads LMDeploy

    return LmdeployEngine(
        resolve_model(spec.model),
        name=spec.model,
        backend=spec.backend,
        tp=spec.tp,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        readers=spec.readers,
        has_prefix_cache=spec.has_prefix_cache,
        trust_remote_code=spec.trust_remote_code,
        decode=spec.decode,
    )


def _transformers(spec: EngineSpec) -> Engine:
    missing = [name for name in ("torch", "transformers") if not _is_installed(name)]
    if missing:
        raise EngineFailed(
            f"the transformers engine needs {' and '.join(missing)}, which is not installed: "
            "pip install 'forebay[cpu]'"
        )
    from worker.engine.transformers import TransformersEngine  # noqa: PLC0415 - it loads torch

    return TransformersEngine(
        resolve_model(spec.model),
        name=spec.model,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        threads=spec.threads,
        decode=spec.decode,
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
