"""Compose files read as Compose reads them, and their services run as plain processes.

What a container would add is taken away again: names become loopback ports, mounted files and
volumes become folders. Commands and environments stay as the files have them.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.support.processes import until
from worker import embedded
from worker.children import Child, Command
from worker.datadir import HOST, choose_port
from worker.server import Server, start

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
GPU_FILES = (COMPOSE / "compose.yaml",)
CPU_FILES = (COMPOSE / "compose.yaml", COMPOSE / "compose.cpu.yaml")
EXAMPLE = COMPOSE / ".env.example"

READY_S = 60.0
REPLACED_NOT_JOINED = {"command", "entrypoint", "test"}  # Compose joins every other list

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?::([-?])([^{}]*))?\})")
_ADDRESS = re.compile(r"\b(?:redis|s3|127\.0\.0\.1):(6379|8333|8000|5555)\b")
_RESET = object()


class VariableMissingError(Exception):
    """A variable without a default is not set; the message is the file's own."""


class _Loader(yaml.SafeLoader):
    """Knows Compose's `!reset`, which takes a value of the file below away."""


_Loader.add_constructor("!reset", lambda _loader, _node: _RESET)


def read(files: Sequence[Path], variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the files laid over each other, variables put in. Raises VariableMissingError."""
    model: dict[str, Any] = {}
    for file in files:
        # S506: it is a SafeLoader
        loaded = yaml.load(file.read_text(), _Loader)  # noqa: S506
        model = _laid_over(model, _filled(loaded, variables))
    return model


def example() -> dict[str, str]:
    """Return the variables of .env.example with every empty one made up, as it asks for."""
    lines = (line.partition("=") for line in EXAMPLE.read_text().splitlines())
    names = [name for name, is_set, _ in lines if is_set and re.fullmatch(r"\w+", name)]
    made_up = {name: secrets.token_hex(12) for name in names}
    return made_up | {"FOREBAY_FLOWER_BASIC_AUTH": f"admin:{secrets.token_hex(12)}"}


def seconds(duration: str) -> float:
    """Read a duration such as `60s`, the only form that the files use."""
    return float(duration.removesuffix("s"))


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, variables) for inner in value]
    if isinstance(value, str):
        return _VARIABLE.sub(lambda found: _value_of(found, variables), value)
    return value


def _value_of(found: "re.Match[str]", variables: Mapping[str, str]) -> str:
    name, kind, rest = found.groups()
    if name is None:
        return "$"
    if kind == "?" and not variables.get(name):
        raise VariableMissingError(f"{name}: {rest}")
    return variables.get(name) or (rest if kind == "-" else "")


def _laid_over(below: Any, above: Any, key: str = "") -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        keys = [name for name in {**below, **above} if above.get(name) is not _RESET]
        return {
            name: _laid_over(below.get(name), above[name], name) if name in above else below[name]
            for name in keys
        }
    if isinstance(below, list) and isinstance(above, list) and key not in REPLACED_NOT_JOINED:
        return below + above
    return above


class Stack:
    """The services of one model, each a process on this machine."""

    def __init__(self, model: Mapping[str, Any], folder: Path) -> None:
        self.services: dict[str, Any] = model["services"]
        self._configs: dict[str, Any] = model["configs"]
        self._folder = folder
        self._weed = {name: choose_port(also=embedded.WEED_GRPC) for name in embedded.WEED_PORTS}
        self._ports = {port: str(choose_port()) for port in ("6379", "8000", "5555")}
        self._ports["8333"] = str(self._weed["s3"])
        self._children: dict[str, Child] = {}

    @property
    def ours(self) -> dict[str, Any]:
        """The services that are built from this project."""
        return ours({"services": self.services})

    def url(self, port: int) -> str:
        """Return where the port of a container is on this machine."""
        return f"http://{HOST}:{self._ports[str(port)]}"

    @contextmanager
    def running(self) -> Iterator["Stack"]:
        """Run Redis and the object store, then ours, until jobs are answered; then end it all."""
        with ExitStack() as stack:
            http = stack.enter_context(httpx.Client(timeout=5))
            for server in (self._redis(), self._s3()):
                stack.callback(start(server).stop)
            for name, service in self.ours.items():
                self._children[name] = Child(self._command(name, service))
                stack.callback(self._children[name].send, signal.SIGKILL)
            until(lambda: self._is_ready(http), READY_S)
            yield self

    def health(self, name: str) -> "subprocess.CompletedProcess[str]":
        """Ask a service of ours what its container's health check asks."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD", f"{name} has a health check for a shell"
        return subprocess.run(
            [self._local(word) for word in words],
            env=self._environ(self.services[name]),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=seconds(self.services[name]["healthcheck"]["timeout"]),
            check=False,
        )

    def stop(self) -> dict[str, int | None]:
        """Send SIGTERM to all of ours; return their statuses, None where grace was too short."""
        for child in self._children.values():
            child.send(signal.SIGTERM)
        return {
            name: child.wait(seconds(self.services[name]["stop_grace_period"]))
            for name, child in self._children.items()
        }

    def log(self, name: str) -> str:
        """Return what a service wrote."""
        return (self._folder / f"{name}.log").read_text()

    def _is_ready(self, http: httpx.Client) -> bool:
        dead = {n: child.last_words() for n, child in self._children.items() if not child.is_alive}
        assert not dead, f"ended while starting: {dead}"
        try:
            ready = http.get(f"{self.url(8000)}/health/ready")
            flower = http.get(f"{self.url(5555)}/healthcheck")
        except httpx.TransportError:
            return False
        return ready.status_code == flower.status_code == httpx.codes.OK

    def _command(self, name: str, service: Mapping[str, Any]) -> Command:
        words = tuple(self._local(word) for word in service["command"])
        environ = self._environ(service)
        return Command(name, words, environ, log=self._folder / f"{name}.log", cwd=self._folder)

    def _environ(self, service: Mapping[str, Any]) -> dict[str, str]:
        """Return what the file sets and what an image has anyway; nothing of this shell."""
        binaries = str(Path(sys.executable).parent)
        own = {name: self._address(value) for name, value in service["environment"].items()}
        return {"PATH": f"{binaries}:{os.defpath}", "HOME": str(self._folder), **own}

    def _local(self, word: str) -> str:
        """Return a word of a container's command as it is meant on this machine."""
        known = {
            "forebay": str(Path(sys.executable).with_name("forebay")),
            "python": sys.executable,
            "/opt/forebay/healthy.py": str(COMPOSE / "healthy.py"),
            "0.0.0.0": HOST,
            **self._ports,
        }
        return known.get(word) or self._address(word)

    def _address(self, text: str) -> str:
        return _ADDRESS.sub(lambda found: f"{HOST}:{self._ports[found[1]]}", text)

    def _redis(self) -> Server:
        folder, words = self._mounted("redis")
        port, password = self._ports["6379"], self.services["redis"]["environment"]["REDISCLI_AUTH"]
        binary = embedded._find_redis(None)
        return Server(
            self._server("redis", (binary, *words[1:], "--port", port, "--bind", HOST), folder),
            environ={},
            is_ready=lambda: embedded._redis_answers(int(port), password),
        )

    def _s3(self) -> Server:
        folder, words = self._mounted("s3")
        elsewhere = (  # of two flags with one name the later one counts
            f"-ip.bind={HOST}",
            *(f"-{name}.port={port}" for name, port in self._weed.items()),
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
        )
        return Server(
            self._server("s3", (embedded._find_weed(), *words, *elsewhere), folder),
            environ={},
            is_ready=lambda: embedded._s3_answers(self._weed["s3"], self._weed["filer"]),
            sockets=embedded._weed_sockets(folder, self._weed),
        )

    def _mounted(self, name: str) -> tuple[Path, tuple[str, ...]]:
        """Write a service's configuration; return its folder and command with the paths changed."""
        folder = self._folder / name
        folder.mkdir()
        places = {"/data": str(folder)}
        for config in self.services[name]["configs"]:
            file = folder / Path(config["target"]).name
            file.write_text(
                self._configs[config["source"]]["content"].replace("/data", str(folder))
            )
            places[config["target"]] = str(file)
        pattern = re.compile("|".join(map(re.escape, places)))
        command = self.services[name]["command"]
        return folder, tuple(pattern.sub(lambda f: places[f[0]], word) for word in command)

    def _server(self, name: str, words: tuple[str, ...], folder: Path) -> Command:
        return Command(
            name, words, {"HOME": str(folder)}, log=self._folder / f"{name}.log", cwd=folder
        )


def ours(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the services of a model that are built from this project."""
    return {name: s for name, s in model["services"].items() if "build" in s}
