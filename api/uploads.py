"""Uploads that go straight to the object store: a presigned PUT of exactly the declared bytes."""

import secrets
import time
from typing import Annotated

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.deps import Uses
from api.schemas import ERRORS
from worker.contract.errors import MediaTooLarge
from worker.contract.s3 import upload_key

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], responses=ERRORS)

_EXPIRES_S = 900


class UploadBody(BaseModel):
    """What will be uploaded: its size in bytes, its type, and the SHA-256 of its content in hex."""

    model_config = ConfigDict(extra="forbid")

    bytes: int = Field(ge=1)
    content_type: Annotated[str, StringConstraints(pattern=r"^[\w.+-]{1,60}/[\w.+-]{1,60}$")]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class UploadView(BaseModel):
    """How to upload: one PUT to `url` with exactly these headers. Then use `id` as a file id."""

    id: str
    object: str = "upload"
    method: str = "PUT"
    url: str
    headers: dict[str, str]
    expires_at: int


@router.post("", status_code=201, response_model=UploadView)
async def create(body: UploadBody, uses: Uses) -> Response:
    """Sign one upload. The store refuses any other size, type or content."""
    limit = uses.settings.max_upload_bytes
    if body.bytes > limit:
        raise MediaTooLarge(f"{body.bytes} bytes; the limit is {limit}", param="bytes")
    upload_id = f"file_{secrets.token_hex(16)}"
    put = await uses.objects.presign_put(
        upload_key(upload_id), body.bytes, body.content_type, body.sha256, _EXPIRES_S
    )
    made = UploadView(
        id=upload_id, url=put.url, headers=put.headers, expires_at=int(time.time()) + _EXPIRES_S
    )
    return JSONResponse(made.model_dump(), 201)
