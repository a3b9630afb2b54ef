"""The command line as a client: which server it takes for ours, and what it says of others."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from worker import client
from worker.contract.settings import Settings
from worker.up import UpOptions


class Stranger(BaseHTTPRequestHandler):
    """Lives, and knows nothing else."""

    def do_GET(self) -> None:
        lives = " /health/live " in self.requestline  # `path` has two slashes made one
        self.send_response(200 if lives else 404)
        self.end_headers()
        self.wfile.write(b"{}" if lives else b'{"detail": "Not Found"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_not_ours_is_told_in_a_sentence(
    stranger: str, capsys: pytest.CaptureFixture[str]
):
    status = client.show_job(stranger, "job_1")

    said = f"error: {stranger}/v1/jobs/job_1 answers 404, and is no server of Forebay's\n"
    assert (status, capsys.readouterr().err) == (1, said)


@pytest.mark.parametrize("end", ["", "/"])
def test_a_running_server_is_found_whether_its_url_ends_with_a_slash_or_not(
    stranger: str, end: str
):
    with client.server(stranger + end, UpOptions(Settings(_env_file=None), {})) as found:
        assert found.get("/health/live").is_success


def test_where_nothing_answers_the_server_is_named_alone(capsys: pytest.CaptureFixture[str]):
    client.list_jobs("http://127.0.0.1:1", status=None, model=None, limit=5)

    assert "nothing answers at http://127.0.0.1:1/: start it" in capsys.readouterr().err
