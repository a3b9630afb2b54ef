"""`forebay batch`: requests in, results out, through the batch door of a server.

The requests are asked in pieces, each a batch of its own, two at a time. Which batches are under
way stands in a folder beside the results before they are begun, so that the next run collects them;
a server that was started for the occasion keeps its data there as well.
"""

import contextlib
import json
import secrets
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from worker.client import ClientError, checked, complain, reporting, server
from worker.locks import LockTakenError, hold
from worker.progress import Bar, bar
from worker.requests import Requests, Results
from worker.up import UpOptions

PIECE_LINES, PIECE_BYTES = 2_000, 32_000_000
AT_A_TIME = 2  # so that the second runs while the first is collected
WINDOW = "30d"
_POLL_S = 0.3  # how often a batch is looked at: the bar moves, and the server hardly notices
_AGAIN_S = 1.0  # before a server that is away or full is asked again: neither ends in less
_PATIENCE_S = 120.0  # a server may be starting again
_BUSY_S = 3600.0  # others' batches may have to end first
_OVER = ("completed", "failed", "cancelled", "expired")
_WAIT = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY}
_UNKNOWN = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_SHOWN = 10  # errors of a refused batch


def batch(
    url: str | None, requests: Path, results: Path, model: str | None, up_options: UpOptions
) -> int:
    """Answer a file of requests; return 0 where all have an answer, 1 where lines failed.

    Raises RequestsError where one of the two files is no good.
    """
    asked, done = Requests(requests, model), Results(results)
    asked.check()
    done.open()
    folder = results.with_name(results.name + ".forebay")
    with reporting(), _alone(folder):
        if len(done.done) < asked.total:
            options = replace(up_options, data_dir=folder / "data")
            with server(url, options) as client, bar(asked.total, len(done.done)) as show:
                _Bulk(client, asked, done, _UnderWay(folder), show).run()
        return _sum_up(asked, done, results, folder)
    return 1


def _sum_up(asked: Requests, done: Results, results: Path, folder: Path) -> int:
    left = asked.total - len(done.done)
    if left <= 0:
        shutil.rmtree(folder, ignore_errors=True)
    if left > 0:
        complain(f"{left} of {asked.total} lines have no result yet: run it again")
    if done.failed:
        complain(f"{done.failed} of {asked.total} lines failed; see {results}")
    return 1 if done.failed or left > 0 else 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep a second run on the same results out."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder / "lock"):
            yield
    except LockTakenError as error:
        raise ClientError(f"another run writes these results (process {error.pid})") from error


@dataclass(frozen=True, slots=True)
class _Piece:
    """A batch that is under way, or was meant to be: asking again with its key is the same batch.

    `numbers` are the lines of the requests that are in it.
    """

    key: str
    input_file_id: str
    endpoint: str
    numbers: list[int]


class _UnderWay:
    """The pieces that are under way, in a file that is always whole."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "under-way.json"
        found = json.loads(self._path.read_text()) if self._path.exists() else []
        self.pieces = [_Piece(**piece) for piece in found]

    def add(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self._write()

    def remove(self, piece: _Piece) -> None:
        self.pieces.remove(piece)
        self._write()

    def _write(self) -> None:
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps([asdict(piece) for piece in self.pieces]))
        scratch.replace(self._path)


class _Bulk:
    """One run."""

    def __init__(
        self,
        client: httpx.Client,
        asked: Requests,
        done: Results,
        under_way: _UnderWay,
        show: Bar,
    ) -> None:
        self._client = client
        self._asked = asked
        self._done = done
        self._under_way = under_way
        self._show = show
        self._open: deque[tuple[_Piece, str]] = deque()  # with the ids of their batches
        self._counts: dict[str, tuple[int, int]] = {}

    def run(self) -> None:
        """Collect what runs before this one have begun, then ask what is left."""
        for piece in list(self._under_way.pieces):
            self._begin(piece)
        while self._open:
            self._finish()
        for piece in self._new_pieces():
            self._begin(piece)
            if len(self._open) == AT_A_TIME:
                self._finish()
        while self._open:
            self._finish()

    def _new_pieces(self) -> Iterator[_Piece]:
        requests = self._asked.missing(self._done.done)
        while True:
            with tempfile.TemporaryFile() as file:
                numbers: list[int] = []
                while len(numbers) < PIECE_LINES and file.tell() < PIECE_BYTES:
                    if (request := next(requests, None)) is None:
                        break
                    file.write(request.line())
                    numbers.append(request.number)
                if not numbers:
                    return
                file_id = self._upload(file)
            piece = _Piece(secrets.token_hex(16), file_id, self._asked.endpoint, numbers)
            self._under_way.add(piece)
            yield piece

    def _upload(self, file: Any) -> str:
        def send() -> httpx.Response:
            file.seek(0)
            form = {"purpose": "batch"}
            return self._client.post("/v1/files", data=form, files={"file": ("r.jsonl", file)})

        return str(checked(self._patiently(send))["id"])

    def _begin(self, piece: _Piece) -> None:
        body = {
            "input_file_id": piece.input_file_id,
            "endpoint": piece.endpoint,
            "completion_window": WINDOW,
        }
        key = {"Idempotency-Key": piece.key}
        answer = self._patiently(lambda: self._client.post("/v1/batches", json=body, headers=key))
        if answer.status_code in _UNKNOWN:  # another server, or one that has lost its data
            self._under_way.remove(piece)
        else:
            self._open.append((piece, checked(answer)["id"]))

    def _finish(self) -> None:
        """Wait for the oldest piece and write its results."""
        piece, batch_id = self._open[0]
        while (ended := self._look(batch_id))["status"] not in _OVER:
            for _, other in list(self._open)[1:]:
                self._look(other)
            self._tell()
            time.sleep(_POLL_S)
        self._open.popleft()
        self._explain(piece, ended)
        for name in ("output_file_id", "error_file_id"):
            if ended[name] is not None:
                self._collect(ended[name])
        self._counts.pop(batch_id, None)
        self._under_way.remove(piece)
        self._tidy(ended)
        self._tell()

    def _look(self, batch_id: str) -> dict[str, Any]:
        found = checked(self._patiently(lambda: self._client.get(f"/v1/batches/{batch_id}")))
        counts = found["request_counts"]
        self._counts[batch_id] = counts["completed"] + counts["failed"], counts["failed"]
        return found

    def _tell(self) -> None:
        done = len(self._done.done) + sum(done for done, _ in self._counts.values())
        failed = self._done.failed + sum(failed for _, failed in self._counts.values())
        self._show(min(done, self._asked.total), failed)

    def _explain(self, piece: _Piece, ended: dict[str, Any]) -> None:
        for error in ((ended["errors"] or {}).get("data") or [])[:_SHOWN]:
            line = error["line"]
            where = f"line {piece.numbers[line - 1]}: " if line else ""
            complain(f"{where}{error['message']}")

    def _collect(self, file_id: str) -> None:
        """Write a file's lines; where it breaks off it is read again, and nothing repeated."""

        def read() -> httpx.Response:
            with self._client.stream("GET", f"/v1/files/{file_id}/content") as answer:
                if answer.is_error:
                    answer.read()
                    return answer
                for line in _lines(answer):
                    self._done.add(line)
                return answer

        answer = self._patiently(read)
        if answer.is_error:
            checked(answer)

    def _tidy(self, ended: dict[str, Any]) -> None:
        for name in ("input_file_id", "output_file_id", "error_file_id"):
            if ended[name] is not None:
                with contextlib.suppress(httpx.HTTPError):
                    self._client.delete(f"/v1/files/{ended[name]}")

    def _patiently(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask again while the server is away or full."""
        began = time.monotonic()
        while True:
            try:
                answer = ask()
            except httpx.TransportError:
                if time.monotonic() - began > _PATIENCE_S:
                    raise
            else:
                if answer.status_code not in _WAIT or time.monotonic() - began > _BUSY_S:
                    return answer
            time.sleep(_AGAIN_S)


def _lines(answer: httpx.Response) -> Iterator[bytes]:
    """Yield whole lines; a rest without its end belongs to a transfer that broke off."""
    rest = b""
    for data in answer.iter_bytes():
        *whole, rest = (rest + data).split(b"\n")
        yield from (line + b"\n" for line in whole)
