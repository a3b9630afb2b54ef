"""Files as the `openai` client sends, lists, reads and deletes them."""

import re
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api import multipart
from api.deps import Contract, Uses
from api.multipart import Head
from api.schemas import ERRORS
from worker.contract.errors import BodyTooLarge, InvalidRequest, RangeUnsatisfiable
from worker.contract.files import BATCH, Order, StoredFile, new_file_id
from worker.contract.incoming import IncomingFile
from worker.contract.s3 import file_key
from worker.contract.settings import Settings

router = APIRouter(prefix="/v1/files", tags=["files"], responses=ERRORS)

FORM_BYTES = 64 * 1024  # what a form may have beside its file: boundaries, heads, other fields
_FIELD_BYTES, _MAX_FIELDS = 1024, 8
_MAX_NAME = 255
_MIN_LIFE_S, _MAX_LIFE_S = 3600, 30 * 86_400  # OpenAI's own bounds
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}")
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"enum": ["batch", "vision", "user_data"]},
                        "expires_after[anchor]": {"enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": _MIN_LIFE_S,
                            "maximum": _MAX_LIFE_S,
                        },
                    },
                }
            }
        },
    }
}


class FileView(BaseModel):
    """A file. Moments are whole seconds since the epoch."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    status_details: str | None


class FileList(BaseModel):
    """One page of files; `last_id` is the cursor of the following page."""

    object: str
    data: list[FileView]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """That a file is deleted."""

    id: str
    object: str
    deleted: bool


class _Fields(BaseModel):
    """The form beside the file."""

    model_config = ConfigDict(extra="forbid")

    purpose: Literal["batch", "vision", "user_data"]
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    life_s: int | None = Field(None, alias="expires_after[seconds]", ge=_MIN_LIFE_S, le=_MAX_LIFE_S)


@router.post("", response_model=FileView, openapi_extra=_FORM)
async def create(request: Request, uses: Uses) -> Response:
    """Take a file in, straight into the object store; its id may then stand wherever a URL may.

    A file of batch lines has `purpose` batch. `expires_after` is one hour to 30 days.
    """
    form = _Form(uses)
    try:
        async with aclosing(multipart.parts(request)) as pieces:
            async for piece in pieces:
                await form.take(piece)
        file = await form.close()
    except BaseException:
        await form.drop()
        raise
    return JSONResponse(file.public())


class _Form:
    """The fields of one upload, and its file on the way to the object store."""

    def __init__(self, uses: Contract) -> None:
        self._uses = uses
        self._file_id = new_file_id()
        self._head: Head | None = None  # of the part that is being read
        self._file_head: Head | None = None
        self._file: IncomingFile | None = None
        self._texts: dict[str, bytes] = {}

    async def take(self, piece: Head | bytes) -> None:
        """Take a part's head, or a piece of the content of the part begun last."""
        if isinstance(piece, Head):
            self._begin(piece)
        elif self._head is self._file_head and self._file is not None:
            await self._file.write(piece)
        elif self._head is not None:
            self._add(self._head.name, piece)

    def _begin(self, head: Head) -> None:
        self._head = head
        if head.name != "file":
            self._add(head.name, b"")
            return
        if self._file is not None:
            raise InvalidRequest("send one file", param="file")
        kind = head.content_type if _TYPE.fullmatch(head.content_type) else ""
        self._file_head = head
        self._file = IncomingFile(
            self._uses.objects,
            file_key(self._file_id),
            kind or "application/octet-stream",
            max_bytes=max_file_bytes(self._uses.settings),
        )

    def _add(self, name: str, piece: bytes) -> None:
        text = self._texts.get(name, b"") + piece
        if len(text) > _FIELD_BYTES or len(name) > _FIELD_BYTES:
            raise InvalidRequest(f"a field is over {_FIELD_BYTES} bytes", param=name[:64])
        self._texts[name] = text
        if len(self._texts) > _MAX_FIELDS:
            raise InvalidRequest(f"the form has over {_MAX_FIELDS} fields")

    async def close(self) -> StoredFile:
        """Check all, make the object and its record."""
        fields = self._fields()
        if self._file is None or self._file_head is None:
            raise InvalidRequest("the form has no file", param="file")
        limits = self._uses.settings
        limit = limits.batch_max_bytes if fields.purpose == BATCH else limits.max_upload_bytes
        if self._file.size > limit:
            raise BodyTooLarge(
                f"{self._file.size} bytes; the limit for purpose {fields.purpose} is {limit}",
                param="file",
            )
        if self._file.size == 0:
            raise InvalidRequest("the file is empty", param="file")
        await self._file.close()
        return await self._uses.files.add(
            self._file_id,
            self._file.size,
            (self._file_head.filename or "upload")[:_MAX_NAME],
            fields.purpose,
            self._file_head.content_type[:_MAX_NAME] or "application/octet-stream",
            file_key(self._file_id),
            sha256=self._file.sha256,
            life_s=fields.life_s,
        )

    def _fields(self) -> _Fields:
        texts = {name: text.decode(errors="replace") for name, text in self._texts.items()}
        try:
            return _Fields.model_validate(texts)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidRequest(first["msg"], param=str(first["loc"][0])) from error

    async def drop(self) -> None:
        """Leave nothing behind in the object store."""
        if self._file is not None:
            await self._file.drop()


def max_file_bytes(limits: Settings) -> int:
    """Return what a file of any purpose may have."""
    return max(limits.batch_max_bytes, limits.max_upload_bytes)


@router.get("", response_model=FileList)
async def list_files(
    uses: Uses,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> Response:
    """List files, newest first unless `order` is asc. `after` is the `last_id` of a page."""
    files, has_more = await uses.files.list_files(
        purpose=purpose, after=after, limit=limit, order=order
    )
    return JSONResponse(as_page([file.public() for file in files], has_more=has_more))


def as_page(data: list[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return OpenAI's list object."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


@router.get("/{file_id}", response_model=FileView)
async def retrieve(file_id: str, uses: Uses) -> Response:
    """Return what is known of a file."""
    return JSONResponse((await uses.files.get(file_id)).public())


@router.get(
    "/{file_id}/content",
    response_class=StreamingResponse,
    responses={206: {"description": "the bytes that Range asks for"}},
)
async def content(
    file_id: str,
    uses: Uses,
    wanted: Annotated[str | None, Header(alias="Range")] = None,
) -> StreamingResponse:
    """Stream a file's bytes, or those that one `Range: bytes=a-b` asks for."""
    file = await uses.files.get(file_id)
    span = _span(wanted, file.bytes)
    start, end = span or (0, file.bytes)
    headers = {"Content-Length": str(end - start), "Accept-Ranges": "bytes"}
    # Whatever a stranger uploaded is handed out as bytes: a browser must not run it.
    headers |= {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment"}
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.bytes}"
    return StreamingResponse(
        uses.files.content(file, start, end),
        206 if span else 200,
        headers,
        "application/octet-stream",
    )


def _span(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Return the (start, end) of a Range, None where the whole file is to be sent.

    Several ranges or other units may be ignored, says RFC 9110; one beyond the end is an error.
    """
    match = _RANGE.fullmatch((wanted or "").strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= end:
        raise RangeUnsatisfiable(f"the file has {size} bytes", param="Range")
    return start, end


@router.delete("/{file_id}", response_model=FileDeleted)
async def delete(file_id: str, uses: Uses) -> Response:
    """Delete a file; 410 from then on. A batch that still reads it fails."""
    await uses.files.delete(file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})
