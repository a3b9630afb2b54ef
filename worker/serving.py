"""One process of the API: uvicorn, on a port of its own or on one that others listen on as well."""

import contextlib
import signal
import socket
import sys

import uvicorn

KEEP_ALIVE_S = 75  # longer than clients and proxies keep an idle connection: they shall close it


def serve(host: str, port: int, *, drain_s: float, shares_port: bool) -> None:
    """Serve until a signal, and give what runs `drain_s` seconds to end.

    Raises:
        SystemExit: 0 where it was asked to end, else it could not start.
        OSError: `shares_port`, and the address cannot be had.
    """
    # uvicorn drains, then raises the signal once more: an asked-for end is status 0.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(
        "api.app:create_app",
        factory=True,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(drain_s) + 1,
    )
    server = uvicorn.Server(config)
    with contextlib.suppress(KeyboardInterrupt):  # it has drained, and tells us
        server.run(sockets=[_shared(host, port)] if shares_port else None)
    if not server.started:
        sys.exit(1)


def _shared(host: str, port: int) -> socket.socket:
    """Return a socket of a port on which other processes may listen: the kernel spreads callers."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    shared = socket.socket(family, socket.SOCK_STREAM)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind((host, port))
    return shared
