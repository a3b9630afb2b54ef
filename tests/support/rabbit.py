"""A real RabbitMQ for tests, where one is installed: loopback only, ports and data of its own."""

import contextlib
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def rabbit_server(folder: Path) -> Iterator[str]:
    """Yield a broker's URL; the broker and its port mapper are gone afterwards."""
    programs = find()
    assert programs is not None
    server, epmd = programs
    ports = [str(choose_port()) for _ in range(3)]
    environ = _environ(folder, *ports)
    with _child(epmd, "-address", HOST, "-port", ports[2], environ=environ, folder=folder):
        until(lambda: _answers(ports[2]), START_S)
        with _child(server, environ=environ, folder=folder) as child:
            until(lambda: not child.is_alive or _answers(ports[0]), START_S)
            assert child.is_alive, (folder / "rabbitmq-server.log").read_text()[-2000:]
            yield f"amqp://guest:guest@{HOST}:{ports[0]}//"


def _environ(folder: Path, port: str, dist_port: str, epmd_port: str) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),  # Erlang's cookie
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": epmd_port,
        "RABBITMQ_NODENAME": f"forebay-{secrets.token_hex(4)}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": dist_port,
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
    }


@contextmanager
def _child(*argv: str, environ: dict[str, str], folder: Path) -> Iterator[Child]:
    name = Path(argv[0]).name
    child = Child(Command(name, argv, environ, log=folder / f"{name}.log", cwd=folder))
    try:
        yield child
    finally:
        child.stop(STOP_S)


def _answers(port: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, int(port)), 1):
        return True
    return False
