"""A real RabbitMQ for tests, where one is installed: loopback only, ports and data of its own."""

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import until
from worker.children import Child, Command
from worker.datadir import HOST, choose_port

START_S = 60.0
STOP_S = 20.0

# Debian's program on PATH insists on the user `rabbitmq`; what it wraps runs as anybody.
_PLACES = ("/usr/lib/rabbitmq/bin/rabbitmq-server",)


def find() -> tuple[str, str] | None:
    """Return where rabbitmq-server and epmd are, None where one is missing."""
    server = next((place for place in _PLACES if Path(place).exists()), None)
    server, epmd = server or shutil.which("rabbitmq-server"), shutil.which("epmd")
    return (server, epmd) if server and epmd else None


@dataclass(frozen=True)
class Rabbit:
    """A broker that can be started any number of times, always in the same place.

    `mapper` is Erlang's port mapper, which must run before and besides.
    """

    server: Command
    mapper: Command
    port: int
    mapper_port: int

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"amqp://guest:guest@{HOST}:{self.port}//"


def make(folder: Path) -> Rabbit:
    """Return how to start a broker with its data in a folder."""
    programs = find()
    assert programs is not None, "rabbitmq-server and epmd are not installed"
    server, epmd = programs
    port, dist_port, mapper_port = (choose_port() for _ in range(3))
    environ = _environ(folder, port, dist_port, mapper_port)
    mapper = (epmd, "-address", HOST, "-port", str(mapper_port))
    return Rabbit(
        Command("rabbit", (server,), environ, log=folder / "rabbit.log", cwd=folder),
        Command("epmd", mapper, environ, log=folder / "epmd.log", cwd=folder),
        port,
        mapper_port,
    )


def answers(port: int) -> bool:
    """Tell whether somebody listens on a port."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
        return True
    return False


@contextmanager
def rabbit_server(folder: Path) -> Iterator[str]:
    """Yield a broker's URL; the broker and its port mapper are gone afterwards."""
    made = make(folder)
    with _child(made.mapper):
        until(lambda: answers(made.mapper_port), START_S)
        with _child(made.server) as child:
            until(lambda: not child.is_alive or answers(made.port), START_S)
            assert child.is_alive, (folder / "rabbit.log").read_text()[-2000:]
            yield made.url


def _environ(folder: Path, port: int, dist_port: int, epmd_port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # Erlang's cookie
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_NODENAME": f"forebay-{secrets.token_hex(4)}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
    }


@contextmanager
def _child(command: Command) -> Iterator[Child]:
    child = Child(command)
    try:
        yield child
    finally:
        child.stop(STOP_S)
