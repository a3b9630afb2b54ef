"""multipart/form-data read as it comes: heads of parts and pieces of their content, nothing kept.

FastAPI's own form reading puts a file on disk first; here it goes straight on.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from worker.contract.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Head:
    """Where a part begins; `filename` is None for a field, `content_type` as it was claimed."""

    name: str
    filename: str | None
    content_type: str


async def parts(request: Request) -> AsyncGenerator[Head | bytes, None]:
    """Yield each part's head, then its content in pieces.

    Raises InvalidRequest where the body is no such form, is cut off, or the caller hangs up.
    """
    boundary = _boundary(request.headers.get("content-type", ""))
    try:
        reader = _Reader(boundary)
        async for chunk in request.stream():
            for piece in reader.feed(chunk):
                yield piece
    except FormParserError as error:
        raise InvalidRequest(f"the body is not multipart/form-data: {error}") from error
    except ClientDisconnect as error:
        raise InvalidRequest("the caller hung up before the body was whole") from error
    if not reader.is_whole:
        raise InvalidRequest("the body ends before its last boundary")


def _boundary(content_type: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest("send multipart/form-data with a boundary", param="Content-Type")
    return boundary


class _Reader:
    """Turns the parser's calls into a list of what a chunk held."""

    def __init__(self, boundary: bytes) -> None:
        self.is_whole = False
        self._found: list[Head | bytes] = []
        self._headers: dict[str, str] = {}
        self._name = self._value = b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_head,
                "on_part_data": self._on_data,
                "on_end": self._on_end,
            },
        )

    def feed(self, chunk: bytes) -> list[Head | bytes]:
        self._found = []
        if chunk:
            self._parser.write(chunk)
        return self._found

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1")
        self._name = self._value = b""

    def _on_head(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition", ""))
        filename = options.get(b"filename")
        self._found.append(
            Head(
                options.get(b"name", b"").decode(errors="replace"),
                None if filename is None else filename.decode(errors="replace"),
                self._headers.get("content-type", ""),
            )
        )

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._found.append(data[start:end])

    def _on_end(self) -> None:
        self.is_whole = True
