"""Uploads: signed by the API, sent to the store, named in a job."""

import hashlib
from typing import Any

import httpx
import pytest

from tests.support.media_files import picture

DATA = picture(64, 48)
HASH = hashlib.sha256(DATA).hexdigest()
GOOD = {"bytes": len(DATA), "content_type": "image/png", "sha256": HASH}


async def test_an_upload_goes_to_the_store_and_its_id_into_a_job(http: httpx.AsyncClient):
    signed = await http.post("/v1/uploads", json=GOOD)
    upload = signed.json()
    async with httpx.AsyncClient() as anybody:
        put = await anybody.put(upload["url"], content=DATA, headers=upload["headers"])
    part = {"type": "image_url", "image_url": {"file_id": upload["id"]}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "[[media]]"}]}]

    sent = await http.post("/v1/jobs", json={"messages": messages}, headers={"Prefer": "wait=30"})

    job = sent.json()
    assert (signed.status_code, upload["object"], upload["method"]) == (201, "upload", "PUT")
    assert put.status_code == 200
    assert (job["status"], job["media"][0]["sha256"]) == ("completed", HASH)


async def test_the_store_takes_only_what_was_signed(http: httpx.AsyncClient):
    upload = (await http.post("/v1/uploads", json=GOOD)).json()
    other = bytes(len(DATA))

    async with httpx.AsyncClient() as anybody:
        put = await anybody.put(upload["url"], content=other, headers=upload["headers"])
    body = {"query": "<image>q", "images": [upload["id"]]}
    job = await http.post("/v1/jobs", json=body)

    assert put.status_code >= 400
    assert (job.status_code, job.json()["error"]["code"]) == (404, "upload_not_found")


@pytest.mark.parametrize(
    ("changed", "status", "code", "param"),
    [
        ({"bytes": 0}, 400, "invalid_request", "bytes"),
        ({"bytes": 2**40}, 413, "media_too_large", "bytes"),
        ({"content_type": "png"}, 400, "invalid_request", "content_type"),
        ({"sha256": "abc"}, 400, "invalid_request", "sha256"),
        ({"name": "x"}, 400, "invalid_request", "name"),
    ],
)
async def test_a_bad_upload_is_refused(
    http: httpx.AsyncClient, changed: dict[str, Any], status: int, code: str, param: str
):
    response = await http.post("/v1/uploads", json=GOOD | changed)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
