"""A receiver for the terminal: verifies callbacks as any receiver does, and prints them."""

import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from worker.webhook import UnverifiedError, verify

MAX_BYTES = 32 * 1024 * 1024
READ_S = 15.0

_TAKEN, _REFUSED, _TOO_LARGE, _NO_LENGTH = 204, 401, 413, 411

Tell = Callable[[str], None]


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 - a terminal program


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave out that a sender hung up; of a fault of ours print the traceback."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def serve(host: str, port: int, secret: str, tell: Tell = say) -> None:
    """Receive until Ctrl-C. Raises OSError where the port cannot be had; 0 takes a free one."""

    def end(*_: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()  # it waits for the loop

    def told(text: str) -> None:
        try:
            tell(text)
        except BrokenPipeError:  # whoever read what is printed has enough
            end()

    server = _Server((host, port), _handler(secret, told))

    # No KeyboardInterrupt: raised inside a finalizer it would be printed and forgotten.
    signal.signal(signal.SIGINT, end)
    with server:
        place = f"http://{host}:{server.server_port}/"
        sys.stderr.write(f"listening on {place} (Ctrl-C ends)\n")
        sys.stderr.flush()
        server.serve_forever(poll_interval=0.1)


def report(secret: str, headers: dict[str, str], body: bytes, now_s: float) -> tuple[int, str]:
    """Return the status to answer with, and what to print. Header names are in lower case."""
    try:
        verify(secret, headers, body, now_s)
    except UnverifiedError as error:
        return _REFUSED, f"NOT VERIFIED: {error}"
    event_id = headers["webhook-id"]
    try:
        event = json.loads(body)
    except ValueError:
        return _TAKEN, f"verified {event_id}\n{body.decode(errors='replace')}"
    shown = json.dumps(event, ensure_ascii=False, indent=2)
    kind = event.get("type") if isinstance(event, dict) else None
    return _TAKEN, f"verified {kind} {event_id}\n{shown}"


def _handler(secret: str, tell: Tell) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Takes POSTs."""

        protocol_version = "HTTP/1.1"
        timeout = READ_S

        def do_POST(self) -> None:
            """Verify, print, answer."""
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                self._answer(_NO_LENGTH)
            elif int(length) > MAX_BYTES:
                self._answer(_TOO_LARGE)
            else:
                given = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(length))
                status, text = report(secret, given, body, time.time())
                tell(text)
                self._answer(status)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if status not in {_TAKEN, _REFUSED}:
                self.close_connection = True  # its body was not read
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
            """Say nothing: what matters is printed."""

    return Handler
