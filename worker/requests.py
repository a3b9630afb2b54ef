"""The two files of `forebay batch`: the requests as they are asked, the results as they come."""

import hashlib
import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import attachments
from worker.contract import lines
from worker.contract.lines import ENDPOINTS, LineError

_JOBS = "/v1/jobs"
_MEDIA = ("images", "videos")
_MAX_PATH = 1024
_NOT_REFERENCES = ("http://", "https://", "data:", "file_")
# Of lines that were never asked: the next run asks them.
_NOT_EXECUTED = {"batch_expired", "batch_cancelled", "batch_failed", "job_cancelled"}


class RequestsError(Exception):
    """Why a file of requests cannot be asked, as one sentence."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line: its number from 1, and what a batch asks in its place."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]

    def line(self) -> bytes:
        """Return it as a line of a batch."""
        asked = {
            "custom_id": self.custom_id,
            "method": "POST",
            "url": self.url,
            "body": self.body,
        }
        return json.dumps(asked).encode() + b"\n"


class Requests:
    """A file of requests, read line by line each time it is asked for."""

    def __init__(self, path: Path, model: str | None) -> None:
        """`model` is asked where a line names none."""
        self._path = path
        self._model = model
        self.endpoint = ""
        self.total = 0

    def check(self) -> None:
        """Read all of it once. Raises RequestsError for the first line that is no good."""
        seen: set[bytes] = set()
        for request in self._all():
            self.endpoint = self.endpoint or request.url
            self.total += 1
            name = digest(request.custom_id)
            if name in seen:
                raise self._refusal(request.number, f"custom_id {request.custom_id!r} came before")
            seen.add(name)
            try:
                lines.read(request.line(), self.endpoint)
            except LineError as error:
                place = f"{error.param}: " if error.param else ""
                raise self._refusal(request.number, f"{place}{error.message}") from error
        if not self.total:
            raise RequestsError(f"{self._path} has no line")

    def missing(self, done: Container[bytes]) -> Iterator[Request]:
        """Yield the requests whose `digest` is not among those done, with files read in."""
        for request in self._all():
            if digest(request.custom_id) not in done:
                if request.url == _JOBS:
                    self._read_files_in(request)
                yield request

    def _all(self) -> Iterator[Request]:
        with self._path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield self._request(number, raw)

    def _request(self, number: int, raw: bytes) -> Request:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._refusal(number, f"no JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._refusal(number, "no JSON object")
        if not {"custom_id", "method", "url", "body"} & value.keys():
            value = {"custom_id": str(number), "method": "POST", "url": _JOBS, "body": value}
        name, url, body = (value.get(key) for key in ("custom_id", "url", "body"))
        if not isinstance(name, str) or not isinstance(body, dict) or url not in ENDPOINTS:
            known = ", ".join(ENDPOINTS)
            raise self._refusal(number, f"send custom_id, method POST, body, and url, of {known}")
        if self._model is not None:
            body.setdefault("model", self._model)
        return Request(number, name, url, body)

    def _refusal(self, number: int, why: str) -> RequestsError:
        return RequestsError(f"{self._path}, line {number}: {why}")

    def _read_files_in(self, request: Request) -> None:
        for name in _MEDIA:
            given = request.body.get(name)
            if isinstance(given, str):
                request.body[name] = self._reference(given)
            elif isinstance(given, list):
                request.body[name] = [self._reference(one) for one in given]

    def _reference(self, text: str) -> str:
        """Return a data URL for what is a file here; anything else is for the server to judge."""
        if len(text) > _MAX_PATH or text.lower().startswith(_NOT_REFERENCES):
            return text
        path = self._path.parent / text
        return attachments.inline(path) if _is_file(path) else text


def _is_file(path: Path) -> bool:
    """Return whether a file lies there; bare base64 makes no path that the system would look at."""
    try:
        return path.is_file()
    except OSError:
        return False


class Results:
    """The file of results: only ever appended to, whole lines at a time.

    `done` has the digests of the custom_ids in it, `failed` counts those without an answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: set[bytes] = set()
        self.failed = 0

    def open(self) -> None:
        """Read what is there; half a last line, of a run that was killed, is cut off.

        Raises RequestsError where the file holds something else, and leaves it as it is.
        """
        if not self._path.exists():
            return
        end = 0
        with self._path.open("rb+") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    self._check_half(raw)
                    break
                self._note(self._read(raw))
                end += len(raw)
            file.truncate(end)

    def _read(self, raw: bytes) -> dict[str, Any]:
        try:
            row = json.loads(raw)
            # Requests have names, too: only results have a response, be it null.
            if isinstance(row, dict) and isinstance(row.get("custom_id"), str) and _HAS in row:
                return row
        except ValueError:
            pass
        raise self._refusal()

    def _check_half(self, raw: bytes) -> None:
        """Let only what is the beginning of a result be cut off; it may be somebody's only copy."""
        if not raw.startswith(_BEGINS[: len(raw)]):
            raise self._refusal()

    def _refusal(self) -> RequestsError:
        return RequestsError(f"{self._path} holds no results: choose another file for them")

    def add(self, raw: bytes) -> None:
        """Append a result line, unless it is there already or says that nothing was asked."""
        row = json.loads(raw)
        if digest(row["custom_id"]) in self.done or _code(row) in _NOT_EXECUTED:
            return
        with self._path.open("ab") as file:
            file.write(raw if raw.endswith(b"\n") else raw + b"\n")
        self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        self.done.add(digest(row["custom_id"]))
        response = row.get("response") or {}
        self.failed += row.get("error") is not None or response.get("status_code") != _OK


_OK = 200
_HAS = "response"  # what every result line has, and no request
_BEGINS = b'{"id":"batch_req_'  # as every server of ours writes it


def _code(row: dict[str, Any]) -> str | None:
    error = row.get("error")
    return str(error["code"]) if isinstance(error, dict) and "code" in error else None


def digest(custom_id: str) -> bytes:
    """Return what stands for a name in memory: names may be long and many."""
    return hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
