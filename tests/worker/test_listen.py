"""`forebay webhooks listen`: what arrives is verified and printed, until Ctrl-C."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.support.processes import until_async
from worker.contract.guard import Guard
from worker.listen import report
from worker.outbound import Poster
from worker.webhook import deliver, headers

SECRET, OTHER = "whsec_" + "QUJD" * 8, "whsec_" + "REVG" * 8
BODY = '{"type":"job.completed","data":{"text":"四只"}}'.encode()


@dataclass
class Listener:
    """A running `forebay webhooks listen` and what it has said."""

    process: asyncio.subprocess.Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return re.search(r"http://\S+", self.err[0])[0]

    async def read(self, stream: asyncio.StreamReader, into: list[str]) -> None:
        while line := await stream.readline():
            into.append(line.decode().rstrip())


@asynccontextmanager
async def listener(*arguments: str) -> AsyncIterator[Listener]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "webhooks", "listen", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    made = Listener(process)
    reading = asyncio.gather(
        made.read(process.stdout, made.out), made.read(process.stderr, made.err)
    )
    try:
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def test_what_arrives_is_verified_and_printed_and_ctrl_c_ends_it():
    poster = Poster(Guard.from_entries(["127.0.0.1"]), total_s=5, head_bytes=64)
    async with listener("--port", "0", "--secret", SECRET) as heard:
        await until_async(lambda: bool(heard.err))

        good = await deliver(poster, heard.url, "msg_1", BODY, [SECRET])
        bad = await deliver(poster, heard.url, "msg_2", BODY, [OTHER])
        heard.process.send_signal(signal.SIGINT)
        status = await heard.process.wait()

    await poster.close()
    assert (good.status, bad.status, status) == (204, 401, 0)
    assert heard.out[0] == "verified job.completed msg_1"
    assert '    "text": "四只"' in heard.out
    assert heard.out[-1] == "NOT VERIFIED: no signature is this secret's"


async def test_a_sender_that_hangs_up_is_not_told_of():
    async with listener("--port", "0", "--secret", SECRET) as heard:
        await until_async(lambda: bool(heard.err))
        where = (heard.url.split(":")[1].strip("/"), int(heard.url.split(":")[2].strip("/")))
        with socket.create_connection(where) as sender:
            sender.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        poster = Poster(Guard.from_entries(["127.0.0.1"]), total_s=5, head_bytes=64)
        await deliver(poster, heard.url, "msg_1", BODY, [SECRET])  # heard after it
        await poster.close()

    assert len(heard.err) == 1


def test_it_ends_where_nobody_reads_it_any_more():
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "webhooks", "listen", "--port", "0", "--secret", SECRET],
        stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(writer)
        os.close(reader)
        assert process.stderr is not None
        url = process.stderr.readline().split()[2].decode()
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(url, data=b"{}", timeout=10)

        process.wait(20)

        assert process.stderr.read() == b""


def test_a_port_that_is_taken_and_a_secret_that_is_none_are_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        for arguments in (("--port", port), ("--port", "0", "--secret", "x")):
            ended = subprocess.run(
                [sys.executable, "-m", "worker", "webhooks", "listen", "--secret", SECRET,
                 *arguments],
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip

            assert ended.returncode == 1
            assert ended.stderr.startswith("error: ")
            assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("body", [b"no json", b"[1]", b"\xff", b"7"])
def test_a_body_of_any_kind_is_printed(body: bytes):
    now = int(time.time())

    status, text = report(SECRET, headers("msg_1", now, body, [SECRET]), body, now)

    assert status == 204
    assert text.startswith("verified ")


def test_a_stranger_is_answered_401():
    status, text = report(SECRET, {}, json.dumps({}).encode(), time.time())

    assert (status, text) == (401, "NOT VERIFIED: the header 'webhook-id' is missing")
