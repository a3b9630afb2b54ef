"""Which GPUs there are, which a command asked for, and holding them against this host's others."""

import contextlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker import locks

_LISTED = re.compile(r"^GPU (\d+):.*\(UUID: (GPU-[\w-]+)\)|^\s+MIG .*\(UUID: (MIG-[\w-]+)\)")
LIST_S = 20.0  # nvidia-smi takes seconds where the driver is not kept loaded


class GpuError(Exception):
    """A set of GPUs cannot be had; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device: `name` as callers write it, an index or a MIG UUID; `uuid` is the driver's."""

    name: str
    uuid: str


def present() -> tuple[Gpu, ...]:
    """Return the GPUs of this host in the driver's order; none where there is no driver."""
    try:
        listed = subprocess.run(
            ("nvidia-smi", "-L"), capture_output=True, text=True, timeout=LIST_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_list(listed)


def read_list(listed: str) -> tuple[Gpu, ...]:
    """Read the output of `nvidia-smi -L`."""
    found = (_LISTED.match(line) for line in listed.splitlines())
    return tuple(Gpu(hit[1] or hit[3], hit[2] or hit[3]) for hit in found if hit)


def choose(asked: Sequence[str], tp: int | None, there: Sequence[Gpu]) -> tuple[str | None, ...]:
    """Return one CUDA_VISIBLE_DEVICES per worker; None means that this worker is not pinned.

    Args:
        asked: the values of `--gpus`, such as `0,1`; empty: one worker, on the first `tp` GPUs
            where there are any.
        tp: GPUs per worker, None for as many as each set has.
        there: the GPUs of this host.

    Raises:
        GpuError: a set is malformed, not there, overlaps another, or does not fit `tp`.
    """
    if not asked:
        return (_first(tp or 1, there),)
    sets = [_parsed(text) for text in asked]
    _check_there(sets, there)
    _check_apart(sets, there)
    for gpus in sets:
        if tp is not None and tp != len(gpus):
            raise GpuError(
                f"--gpus {','.join(gpus)} names {len(gpus)} GPUs and --tp {tp} uses {tp}"
            )
    return tuple(",".join(gpus) for gpus in sets)


def visible(there: Sequence[Gpu], setting: str | None) -> tuple[Gpu, ...]:
    """Return the GPUs that an inherited CUDA_VISIBLE_DEVICES leaves, in its order; None leaves all.

    As the driver reads it: the beginning of a UUID will do where only one has it, and a name that
    is not there hides all that come after it.
    """
    if setting is None:
        return tuple(there)
    found: list[Gpu] = []
    for name in setting.split(","):
        gpu = _named(name.strip(), there)
        if gpu is None or gpu in found:
            break
        found.append(gpu)
    return tuple(found)


def _named(name: str, there: Sequence[Gpu]) -> Gpu | None:
    for gpu in there:
        if name in {gpu.name, gpu.uuid}:
            return gpu
    alike = [gpu for gpu in there if gpu.uuid.startswith(name)] if "-" in name else []
    return alike[0] if len(alike) == 1 else None


def lock_folder() -> Path:
    """Return where every user of this host finds the locks, whatever TMPDIR says."""
    folder = Path("/run/lock")
    try:
        is_shared = bool(folder.stat().st_mode & stat.S_IWOTH) and os.access(folder, os.W_OK)
    except OSError:
        is_shared = False
    return folder if is_shared else Path("/tmp")  # noqa: S108 - shared on purpose, opened with care


LOCKS = lock_folder()


@contextlib.contextmanager
def held(sets: Sequence[str | None], there: Sequence[Gpu], folder: Path = LOCKS) -> Iterator[None]:
    """Hold every GPU of the sets for the length of the block.

    Raises:
        GpuError: another chat worker of this host has one of them.
    """
    uuids = {gpu.name: gpu.uuid for gpu in there}
    names = [name for gpus in sets if gpus for name in gpus.split(",")]
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                stack.enter_context(
                    locks.hold(folder / f"forebay-{uuids.get(name, name)}.lock", shared=True)
                )
            except locks.LockTakenError as error:
                raise GpuError(
                    f"GPU {name} is in use by another chat worker of this host "
                    f"(process {error.pid})"
                ) from error
        yield


def _first(count: int, there: Sequence[Gpu]) -> str | None:
    if not there:
        return None
    if count > len(there):
        raise GpuError(f"--tp {count} needs {count} GPUs; this host has {len(there)}")
    return ",".join(gpu.name for gpu in there[:count])


def _parsed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(re.fullmatch(r"\d+|(GPU|MIG)-[\w-]+", name) for name in names):
        raise GpuError(f"--gpus {text!r}: expected GPU numbers with commas between, such as 0,1")
    return names


def _check_there(sets: Sequence[Sequence[str]], there: Sequence[Gpu]) -> None:
    known = {gpu.name for gpu in there} | {gpu.uuid for gpu in there}
    for name in (name for gpus in sets for name in gpus):
        if name not in known:
            has = (
                ", ".join(gpu.name for gpu in there) or "none (leave --gpus out to run on the CPU)"
            )
            raise GpuError(f"--gpus names GPU {name}; this host has {has}")


def _check_apart(sets: Sequence[Sequence[str]], there: Sequence[Gpu]) -> None:
    uuids = {gpu.name: gpu.uuid for gpu in there}
    seen: set[str] = set()
    for name in (name for gpus in sets for name in gpus):
        uuid = uuids.get(name, name)
        if uuid in seen:
            raise GpuError(f"GPU {name} stands twice in --gpus; each GPU belongs to one worker")
        seen.add(uuid)
