"""Redis and the S3 server on a data folder, with the real programs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from botocore.client import Config
from botocore.exceptions import ClientError

from tests.support.processes import is_running, until
from worker import embedded
from worker.datadir import HOST, PORTS, DataDir, DataDirError
from worker.server import EmbeddedError, RunningServer

Start = Callable[[Callable[[Path], RunningServer]], RunningServer]

PARENT = """
import sys
from pathlib import Path
from worker.embedded import start_redis, start_s3
servers = [start(Path(sys.argv[1])) for start in (start_redis, start_s3)]
print(*(server.child.pid for server in servers), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers on one folder; they are stopped after the test."""
    started: list[RunningServer] = []

    def on_the_folder(function: Callable[[Path], RunningServer]) -> RunningServer:
        started.append(function(tmp_path))
        return started[-1]

    yield on_the_folder
    for server in started:
        server.stop()


def s3_of(server: RunningServer, **keys: str) -> Any:
    given = {
        "aws_access_key_id": server.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": server.environ["AWS_SECRET_ACCESS_KEY"],
    }
    once = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
    return boto3.client(
        "s3", endpoint_url=server.url, region_name="us-east-1", config=once, **(given | keys)
    )


def test_redis_keeps_its_data_and_its_url_over_a_restart(start: Start):
    first = start(embedded.start_redis)
    with redis.Redis.from_url(first.url) as client:
        client.set("kept", "yes")
    first.stop()

    second = start(embedded.start_redis)

    assert second.url == first.url
    with redis.Redis.from_url(second.url) as client:
        assert client.get("kept") == b"yes"


def test_redis_comes_back_with_its_data_after_being_killed(start: Start):
    first = start(embedded.start_redis)
    with redis.Redis.from_url(first.url) as client:
        client.set("kept", "yes")
    first.child.send(signal.SIGKILL)
    first.child.wait(10)

    second = start(embedded.start_redis)

    with redis.Redis.from_url(second.url) as client:
        assert client.get("kept") == b"yes"


def test_redis_moves_to_another_port_when_its_own_is_taken(start: Start):
    first = start(embedded.start_redis)
    with redis.Redis.from_url(first.url) as client:
        client.set("kept", "yes")
    first.stop()
    port = int(first.url.rpartition(":")[2].removesuffix("/0"))

    with socket.create_server((HOST, port)):
        second = start(embedded.start_redis)

    assert second.url != first.url
    with redis.Redis.from_url(second.url) as client:
        assert client.get("kept") == b"yes"


def test_redis_answers_nobody_without_the_password(start: Start):
    url = start(embedded.start_redis).url
    nameless = f"redis://{url.partition('@')[2]}"

    with (
        redis.Redis.from_url(nameless) as client,
        pytest.raises(redis.exceptions.AuthenticationError),
    ):
        client.get("kept")


def test_secrets_are_readable_by_us_alone_and_not_in_the_process_list(tmp_path: Path, start: Start):
    server = start(embedded.start_redis)
    start(embedded.start_s3)

    for name in ("servers.json", "redis/redis.conf", "s3/keys.json"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    password = json.loads((tmp_path / "servers.json").read_text())["redis"]["password"]
    listed = Path(f"/proc/{server.child.pid}/cmdline").read_bytes()
    assert password.encode() not in listed


def test_the_object_store_takes_objects_at_once_and_keeps_them_over_a_restart(start: Start):
    first = start(embedded.start_s3)
    s3_of(first).create_bucket(Bucket="bucket")
    s3_of(first).put_object(Bucket="bucket", Key="a/b", Body=b"kept")
    first.stop()

    second = start(embedded.start_s3)

    assert second.url == first.url
    assert s3_of(second).get_object(Bucket="bucket", Key="a/b")["Body"].read() == b"kept"


def test_the_object_store_keeps_its_objects_when_killed_and_moved_to_other_ports(
    tmp_path: Path, start: Start
):
    first = start(embedded.start_s3)
    s3_of(first).create_bucket(Bucket="bucket")
    s3_of(first).put_object(Bucket="bucket", Key="a/b", Body=b"kept")
    first.child.send(signal.SIGKILL)
    first.child.wait(10)
    ports = DataDir(tmp_path).kept("s3")["ports"]

    with socket.create_server((HOST, ports["master"])):
        second = start(embedded.start_s3)

    assert s3_of(second).get_object(Bucket="bucket", Key="a/b")["Body"].read() == b"kept"
    left_behind = set(first.server.sockets) - set(second.server.sockets)
    assert not any(path.exists() for path in left_behind)


def test_the_object_store_refuses_other_keys(start: Start):
    server = start(embedded.start_s3)

    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        s3_of(server, aws_access_key_id="0123456789").list_buckets()


def test_the_object_store_leaves_no_socket_behind(start: Start):
    server = start(embedded.start_s3)
    assert any(path.is_socket() for path in server.server.sockets)

    server.stop()

    assert not any(path.exists() for path in server.server.sockets)


def test_both_servers_listen_on_the_loopback_address_alone(start: Start):
    pids = [start(function).child.pid for function in (embedded.start_redis, embedded.start_s3)]

    addresses = {address for pid in pids for address in listening(pid)}

    assert addresses == {"0100007F"}


def listening(pid: int) -> set[str]:
    """Return the addresses, in the kernel's hex, on which a process listens for TCP."""
    sockets = {
        str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()
    }
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        row[1].partition(":")[0]
        for row in rows
        if row[3] == "0A" and f"socket:[{row[9]}]" in sockets
    }


def test_both_servers_die_with_a_parent_that_is_killed(tmp_path: Path):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2

        parent.kill()

    until(lambda: not any(is_running(pid) for pid in pids))
    embedded.s3_server(DataDir(tmp_path))  # clears the sockets of the killed run


def test_a_second_holder_of_a_data_folder_is_told_who_has_it(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from worker.datadir import DataDir\n"
        "with DataDir(Path(sys.argv[1])).held(): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()

        with pytest.raises(DataDirError, match=f"in use by process {holder.pid};"):
            DataDir(tmp_path).held().__enter__()

        holder.kill()
        holder.wait()
        with DataDir(tmp_path).held():
            pass


def test_a_damaged_memory_of_passwords_is_not_replaced_by_a_new_one(tmp_path: Path):
    (tmp_path / "servers.json").write_text("{")

    with pytest.raises(DataDirError, match="is damaged"):
        embedded.start_redis(tmp_path)

    assert (tmp_path / "servers.json").read_text() == "{"


def test_a_server_on_path_is_taken_and_too_old_a_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))  # this machine may have one of its own
    wheel = embedded.redis_server(DataDir(tmp_path / "wheel")).command.argv[0]
    for version, taken in (("6.0.16", False), ("7.0.15", True)):
        fake = program(tmp_path / version / "redis-server", f"echo Redis server v={version}")
        monkeypatch.setenv("PATH", str(fake.parent))

        found = embedded.redis_server(DataDir(tmp_path / f"data-{version}")).command.argv[0]

        assert found == (str(fake) if taken else wheel)


def test_a_weed_on_path_is_taken_unless_it_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wheel = embedded.s3_server(DataDir(tmp_path / "wheel")).command.argv[0]
    for version, taken in (("3.97", False), ("4.50", True)):
        fake = program(tmp_path / version / "weed", f"echo version 8000GB {version} x linux amd64")
        monkeypatch.setenv("PATH", f"{fake.parent}:{os.defpath}")

        found = embedded.s3_server(DataDir(tmp_path / f"data-{version}")).command.argv[0]

        assert found == (str(fake) if taken else wheel)


def test_the_server_that_wrote_the_data_is_kept_when_another_appears_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", os.defpath)
    first = embedded.redis_server(DataDir(tmp_path)).command.argv[0]
    fake = program(tmp_path / "bin" / "redis-server", "echo Redis server v=7.0.15")
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.defpath}")

    assert embedded.redis_server(DataDir(tmp_path)).command.argv[0] == first


def test_a_server_that_ends_at_its_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    body = "case $1 in --version) echo v=7.0.15;; *) echo no room for you; exit 1;; esac"
    fake = program(tmp_path / "bin" / "redis-server", body)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.defpath}")

    with pytest.raises(EmbeddedError, match=r"redis server did not start .*: no room for you"):
        embedded.start_redis(tmp_path)


def test_no_port_of_the_object_store_is_one_that_outgoing_calls_get(tmp_path: Path):
    embedded.s3_server(DataDir(tmp_path))

    ports = DataDir(tmp_path).kept("s3")["ports"]

    assert len(set(ports.values())) == 5
    assert {*ports.values(), *(port + embedded.WEED_GRPC for port in ports.values())} < set(PORTS)


def test_the_wheels_carry_both_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", "")

    redis_path = embedded.redis_server(DataDir(tmp_path)).command.argv[0]
    weed_path = embedded.s3_server(DataDir(tmp_path)).command.argv[0]

    assert Path(redis_path).name == "valkey-server"
    assert Path(weed_path).name == "weed"
    assert shutil.which(redis_path)
    assert shutil.which(weed_path)


def program(path: Path, body: str) -> Path:
    """Write a shell script that stands for another version of a server."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_no_two_of_weeds_servers_get_the_same_port(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    data.keep("s3", {"ports": {"volume": 20182, "filer": 20182, "admin": 10182}})

    embedded.s3_server(data)

    ports = list(data.kept("s3")["ports"].values())
    both = ports + [port + embedded.WEED_GRPC for port in ports]
    assert len(set(both)) == 2 * len(embedded.WEED_PORTS)
