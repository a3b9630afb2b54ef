"""Files through the `openai` client, and what it would never send."""

import hashlib
import os
from typing import Any

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject

from tests.api.conftest import MAX_BODY_BYTES
from tests.support.media_files import picture
from tests.support.processes import Service
from worker.contract.incoming import PART_BYTES
from worker.contract.s3 import ObjectStore

KNOWN = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status",
         "status_details"}  # fmt: skip


@pytest.fixture
def client(running: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def test_a_file_goes_round_with_the_openai_client(client: openai.OpenAI):
    data = os.urandom(PART_BYTES + 100_000)  # in parts, and over the limit of other bodies

    raw = client.files.with_raw_response.create(
        file=("réport.bin", data), purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )  # fmt: skip
    made = raw.parse()
    found = client.files.retrieve(made.id)
    back = client.files.content(made.id).content
    listed = [file.id for file in client.files.list(purpose="user_data", limit=2)]
    deleted = client.files.delete(made.id)

    assert len(data) > MAX_BODY_BYTES
    assert raw.http_response.json().keys() == KNOWN
    FileObject.model_validate(raw.http_response.json(), strict=True)
    assert (made.bytes, made.filename, made.purpose) == (len(data), "réport.bin", "user_data")
    assert (made.expires_at or 0) - made.created_at == 3600
    assert found == made
    assert back == data
    assert made.id in listed
    assert deleted == FileDeleted(id=made.id, object="file", deleted=True)
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.APIStatusError) as gone:
            call(made.id)
        assert (gone.value.status_code, gone.value.code) == (410, "file_gone")


def test_pages_of_files_are_read_by_the_client_itself(client: openai.OpenAI):
    mine = [client.files.create(file=(f"{n}.jsonl", b"{}"), purpose="batch").id for n in range(3)]

    listed = [file.id for file in client.files.list(purpose="batch", order="asc", limit=2)]

    assert [file_id for file_id in listed if file_id in mine] == mine


async def test_a_file_is_a_picture_of_a_job(http: httpx.AsyncClient):
    data = picture(64, 48)
    made = await http.post(
        "/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", data, "image/png")}
    )
    file_id = made.json()["id"]

    body = {"query": "<image>[[media]]", "images": [file_id]}
    job = (await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})).json()
    await http.delete(f"/v1/files/{file_id}")
    later = await http.post("/v1/jobs", json=body)

    assert (job["status"], job["media"][0]["sha256"]) == (
        "completed",
        hashlib.sha256(data).hexdigest(),
    )
    assert (later.status_code, later.json()["error"]["code"]) == (404, "upload_not_found")


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [
        ("bytes=0-9", 206, 0, 10),
        ("bytes=90-", 206, 90, 100),
        ("bytes=-10", 206, 90, 100),
        ("bytes=95-1000", 206, 95, 100),
        ("bytes=0-1,5-6", 200, 0, 100),
        ("lines=1-2", 200, 0, 100),
        ("bytes=-", 200, 0, 100),
    ],
)
async def test_a_range_of_a_file_can_be_read(
    http: httpx.AsyncClient, wanted: str, status: int, start: int, end: int
):
    data = bytes(range(100))
    made = await http.post("/v1/files", data={"purpose": "user_data"}, files={"file": data})

    read = await http.get(f"/v1/files/{made.json()['id']}/content", headers={"Range": wanted})

    assert (read.status_code, read.content) == (status, data[start:end])
    if status == 206:
        assert read.headers["content-range"] == f"bytes {start}-{end - 1}/100"


async def test_a_range_beyond_the_end_is_refused(http: httpx.AsyncClient):
    made = await http.post("/v1/files", data={"purpose": "user_data"}, files={"file": b"abc"})

    read = await http.get(f"/v1/files/{made.json()['id']}/content", headers={"Range": "bytes=3-"})

    assert (read.status_code, read.json()["error"]["code"]) == (416, "range_not_satisfiable")


@pytest.mark.parametrize(
    ("fields", "files", "status", "param"),
    [
        ({}, {"file": b"x"}, 400, "purpose"),
        ({"purpose": "batch_output"}, {"file": b"x"}, 400, "purpose"),
        ({"purpose": "batch"}, {"other": b"x"}, 400, "other"),
        ({"purpose": "batch"}, {"file": b""}, 400, "file"),
        ({"purpose": "batch", "color": "red"}, {"file": b"x"}, 400, "color"),
        ({"purpose": "batch" * 300}, {"file": b"x"}, 400, "purpose"),
        ({"purpose": "batch", "expires_after[seconds]": "60"}, {"file": b"x"}, 400,
         "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, {"file": b"x"}, 400,
         "expires_after[anchor]"),
        ({"purpose": "batch"}, [("file", b"x"), ("file", b"y")], 400, "file"),
    ],
)  # fmt: skip
async def test_a_bad_form_is_refused(
    http: httpx.AsyncClient, fields: dict[str, str], files: Any, status: int, param: str
):
    response = await http.post("/v1/files", data=fields, files=files)

    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (
        status,
        "invalid_request",
        param,
    )


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        (f"multipart/form-data; boundary={'b' * 257}", b""),
        ("multipart/form-data; boundary=b", b""),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut o',
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 50 + b"\r\n--b--"),
    ],
)
async def test_a_body_that_is_no_whole_form_is_refused(
    http: httpx.AsyncClient, content_type: str, body: bytes
):
    response = await http.post("/v1/files", content=body, headers={"Content-Type": content_type})

    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_file_may_come_before_its_purpose(http: httpx.AsyncClient):
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n12\r\n345\r\n'
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--b--\r\n'
    )

    made = await http.post(
        "/v1/files", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )

    assert (made.status_code, made.json()["bytes"], made.json()["filename"]) == (200, 7, "a")


async def test_a_file_over_the_limit_is_refused_and_leaves_nothing(
    http: httpx.AsyncClient, running: Service, objects: ObjectStore
):
    limit = int(running.environ["FOREBAY_MAX_UPLOAD_BYTES"])
    before = await _keys(objects)

    declared = await http.post(
        "/v1/files", data={"purpose": "vision"}, files={"file": bytes(limit + 100_000)}
    )
    measured = await http.post(
        "/v1/files", data={"purpose": "vision"}, files={"file": bytes(limit + 1)}
    )
    batch = await http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": bytes(limit - 1000)}
    )

    for response in (declared, measured, batch):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert await _keys(objects) == before


async def _keys(objects: ObjectStore) -> set[str]:
    listed = objects._client.list_objects_v2(Bucket=objects.bucket, Prefix="files/")
    return {item["Key"] for item in listed.get("Contents", [])}
