"""How our own processes are started: their arguments and what their environment must hold."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from worker.children import Command

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What a chat worker serves, as on the command line.

    `tp` GPUs per worker, None for as many as its set has; `slots` jobs inside the engine at once,
    None for the engine's own choice; `served_name` the name that callers use, '' for the model's;
    `trust_remote_code` run Python that the checkpoint brings along.
    """

    model: str = "demo"
    engine: str = "auto"
    backend: str = "auto"
    tp: int | None = None
    slots: int | None = None
    served_name: str = ""
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """The name by which callers ask for the model."""
        return self.served_name or self.model

    def arguments(self) -> tuple[str, ...]:
        """Return them as arguments."""
        given = {
            "--model": self.model,
            "--engine": self.engine,
            "--backend": self.backend,
            "--tp": self.tp,
            "--slots": self.slots,
            "--served-name": self.name,
        }
        flags = ("--trust-remote-code",) if self.trust_remote_code else ()
        pairs = (pair for pair in given.items() if pair[1] is not None)
        return (*(str(part) for pair in pairs for part in pair), *flags)


def chat(options: ChatOptions, gpus: str | None, environ: Mapping[str, str], owner: str) -> Command:
    """Return the command of one chat worker, on these GPUs only; None leaves it unpinned."""
    tp = options.tp or (1 if gpus is None else len(gpus.split(",")))
    arguments = ("chat", "--owner", owner, *replace(options, tp=tp).arguments())
    if gpus is not None:
        # CUDA's own order is by speed: its 0 need not be the 0 of nvidia-smi.
        environ = {**environ, "CUDA_VISIBLE_DEVICES": gpus, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return Command("chat", python("worker.tasks", *arguments), importable(environ))


def with_hub_token(environ: Mapping[str, str], token: str) -> Mapping[str, str]:
    """Return an environment in which the hub's client finds the token, also one of a .env file."""
    return {**environ, "HF_TOKEN": token} if token else environ


def media(slots: int | None, environ: Mapping[str, str], owner: str) -> Command:
    """Return the command of one media worker; `slots` jobs at once, None for its own choice."""
    arguments = ("media", "--owner", owner, *(() if slots is None else ("--slots", str(slots))))
    return Command("media", python("worker.tasks", *arguments), importable(environ))


def webhooks(environ: Mapping[str, str], owner: str) -> Command:
    """Return the command of one worker that delivers callbacks and does nothing else."""
    arguments = ("webhooks", "--owner", owner)
    return Command("webhooks", python("worker.tasks", *arguments), importable(environ))


def sweep(environ: Mapping[str, str]) -> Command:
    """Return the command of one sweeper."""
    return Command("sweep", python("worker.tasks", "sweep"), importable(environ))


def forebay(*arguments: str) -> tuple[str, ...]:
    """Return the `forebay` command as it runs in this very installation."""
    return python("worker.cli", *arguments)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs a module, whatever folders lie in the working folder.

    Without -P a caller's own `worker/` or `api/` would be imported instead of ours.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def importable(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which children find us, also where we run from a checkout."""
    if _ROOT.name in {"site-packages", "dist-packages"}:
        return dict(environ)
    return {
        **environ,
        "PYTHONPATH": ":".join(filter(None, (str(_ROOT), environ.get("PYTHONPATH")))),
    }
