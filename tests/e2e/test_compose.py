"""The compose files: what they promise, and the main job through what they start."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.compose import (
    COMPOSE,
    CPU_FILES,
    EXAMPLE,
    GPU_FILES,
    ROOT,
    Stack,
    VariableMissingError,
    example,
    ours,
    read,
    seconds,
)
from worker.contract.settings import Settings, known_names
from worker.demo import MODEL_DIR, SHEEP_PICTURE
from worker.server import STOP_S
from worker.supervisor import DRAIN_MARGIN_S

SECRETS = set(example())
BOTH = pytest.mark.parametrize("files", [GPU_FILES, CPU_FILES], ids=["gpu", "cpu"])


# --- what the files say ---------------------------------------------------------------------------


@BOTH
def test_every_command_of_ours_is_a_forebay_command(files: tuple[Path, ...]):
    services = ours(read(files, example()))

    assert set(services) == {"api", "media", "chat-0", "flower"}
    assert {service["command"][0] for service in services.values()} == {"forebay"}


@BOTH
def test_every_service_is_watched_and_started_again(files: tuple[Path, ...]):
    services = read(files, example())["services"]

    assert [n for n, s in services.items() if not s["healthcheck"]["test"]] == []
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}


@BOTH
def test_services_wait_for_the_servers_that_they_need(files: tuple[Path, ...]):
    for name, service in ours(read(files, example())).items():
        needs = {"redis"} | ({"s3"} if "S3_ENDPOINT_URL" in service["environment"] else set())
        waits = {n for n, c in service["depends_on"].items() if c["condition"] == "service_healthy"}

        assert waits == needs, name


@BOTH
def test_docker_waits_longer_than_a_drain_may_take(files: tuple[Path, ...]):
    for name, service in ours(read(files, example())).items():
        drain_s = float(service["environment"]["FOREBAY_DRAIN_S"])

        assert seconds(service["stop_grace_period"]) >= drain_s + DRAIN_MARGIN_S + STOP_S, name


@BOTH
def test_only_loopback_ports_are_published(files: tuple[Path, ...]):
    services = read(files, example())["services"]

    published = {name: s["ports"] for name, s in services.items() if "ports" in s}

    assert published.keys() == {"api", "flower", "s3"}
    assert all(p.startswith("127.0.0.1:") for ports in published.values() for p in ports)


@BOTH
@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_missing_secret_stops_the_start_with_a_sentence(files: tuple[Path, ...], name: str):
    with pytest.raises(VariableMissingError, match=f"^{name}: set {name} in compose/.env to "):
        read(files, example() | {name: ""})


def test_the_example_sets_no_password():
    assert [line for line in EXAMPLE.read_text().splitlines() if line[:1].isalpha()] == [
        f"{name}=" for name in example()
    ]


@BOTH
def test_only_settings_that_exist_are_set(files: tuple[Path, ...]):
    for service in ours(read(files, example())).values():
        given = {n: str(v) for n, v in service["environment"].items() if n != "HF_HUB_OFFLINE"}

        assert given.keys() <= known_names().keys()
        assert Settings(_env_file=None, **given).redis_url == given["REDIS_URL"]


@BOTH
def test_flower_has_no_keys_to_the_object_store(files: tuple[Path, ...]):
    flower = read(files, example())["services"]["flower"]

    assert not [name for name in flower["environment"] if name.startswith(("AWS_", "S3_"))]
    assert flower["networks"] == ["queue"]


def test_a_gpu_is_reserved_and_the_cpu_file_gives_it_back():
    with_gpu, without = (read(f, example())["services"]["chat-0"] for f in (GPU_FILES, CPU_FILES))

    (device,) = with_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["0"]
    assert {"gpu", "utility"} <= set(device["capabilities"])
    assert {"deploy", "volumes"} & without.keys() == set()


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_the_images_run_as_nobody_special_and_tell_their_health(name: str):
    last_stage = (COMPOSE / name).read_text().rpartition("\nFROM ")[2].splitlines()

    assert "USER forebay" in last_stage
    assert [line for line in last_stage if line.startswith("HEALTHCHECK ")]


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.gpu"])
def test_what_an_image_copies_is_there_and_not_ignored(name: str):
    words = [line.split() for line in (COMPOSE / name).read_text().splitlines()]
    copied = {
        word for w in words if w[:1] == ["COPY"] and not w[1].startswith("--") for word in w[1:-1]
    }
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }

    assert copied == kept
    assert [path for path in copied if not (ROOT / path).exists()] == []


def has_compose() -> bool:
    """Tell whether there is a docker client that knows `compose`."""
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0  # noqa: PLW1510


@BOTH
@pytest.mark.skipif(not has_compose(), reason="there is no `docker compose` here")
def test_compose_itself_takes_the_files(files: tuple[Path, ...], tmp_path: Path):
    env = tmp_path / "env"
    env.write_text("".join(f"{name}={value}\n" for name, value in example().items()))
    given = [word for file in files for word in ("-f", str(file))]

    shown = subprocess.run(
        ["docker", "compose", "--env-file", str(env), *given, "config", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    theirs = json.loads(shown.stdout)["services"]
    mine = read(files, example())["services"]
    assert {n: s["command"] for n, s in theirs.items()} == {
        n: s["command"] for n, s in mine.items()
    }


# --- what they start ------------------------------------------------------------------------------


def with_echo(model: dict[str, Any]) -> dict[str, Any]:
    """Put the scripted engine in LMDeploy's place, which needs a GPU."""
    command = model["services"]["chat-0"]["command"]
    command[command.index("lmdeploy")] = "echo"
    return model


def with_demo_model(model: dict[str, Any]) -> dict[str, Any]:
    """Leave everything as it is, where what it needs is there."""
    if not (MODEL_DIR / "config.json").exists():
        pytest.skip("the demo model is not in worker/demo/model")
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'forebay[cpu]'")
    return model


@pytest.fixture(params=["gpu", "cpu"], scope="module")
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    if request.param == "gpu":
        model = with_echo(read(GPU_FILES, example()))
    else:
        model = with_demo_model(read(CPU_FILES, example()))
    with Stack(model, tmp_path_factory.mktemp("compose")).running() as running:
        yield running


def caller(stack: Stack) -> httpx.Client:
    key = stack.services["api"]["environment"]["FOREBAY_API_KEYS"]
    return httpx.Client(
        base_url=stack.url(8000), headers={"Authorization": f"Bearer {key}"}, timeout=90
    )


def upload(http: httpx.Client, picture: Path) -> str:
    """Send a picture straight to the object store, as the API says; return its file id."""
    data = picture.read_bytes()
    ticket = http.post(
        "/v1/uploads",
        json={
            "bytes": len(data),
            "content_type": "image/png",
            "sha256": hashlib.sha256(data).hexdigest(),
        },
    ).json()
    sent = httpx.put(ticket["url"], content=data, headers=ticket["headers"])
    assert sent.status_code == httpx.codes.OK, sent.text
    return str(ticket["id"])


def ask(http: httpx.Client, text: str, file_id: str) -> dict[str, Any]:
    """Hand a question about an uploaded picture in; return the job."""
    picture = {"type": "image_url", "image_url": {"file_id": file_id}}
    message = {"role": "user", "content": [picture, {"type": "text", "text": text}]}
    answer = http.post("/v1/jobs", json={"messages": [message]})
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    return dict(answer.json())


def streamed(http: httpx.Client, job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Follow a job to its end; return its deltas in one, and the job."""
    text, kind, data = "", "", "{}"
    with http.stream("GET", job["links"]["events"]) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                text += json.loads(data)["text"] if kind == "delta" else ""
    return text, json.loads(data)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_question_about_an_uploaded_picture_is_answered(stack: Stack):
    is_echo = "echo" in stack.services["chat-0"]["command"]

    with caller(stack) as http:
        job = ask(http, "[[media]]" if is_echo else "图片中有几只羊", upload(http, SHEEP_PICTURE))
        deltas, ended = streamed(http, job)
        polled = http.get(job["links"]["self"]).json()

    assert polled["status"] == "completed", polled["error"]
    assert deltas == polled["output"]["text"] == ended["output"]["text"]
    assert ("四只" in deltas) if not is_echo else (json.loads(deltas)[0]["kind"] == "image")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_api_wants_a_key(stack: Stack):
    assert httpx.get(f"{stack.url(8000)}/v1/jobs").status_code == httpx.codes.UNAUTHORIZED


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_flower_wants_its_password(stack: Stack):
    user, _, password = stack.services["flower"]["environment"][
        "FOREBAY_FLOWER_BASIC_AUTH"
    ].partition(":")

    def status(auth: tuple[str, str] | None) -> int:
        return httpx.get(f"{stack.url(5555)}/workers", auth=auth).status_code

    assert status(None) == httpx.codes.UNAUTHORIZED
    assert status((user, "wrong")) == httpx.codes.UNAUTHORIZED
    assert status((user, password)) == httpx.codes.OK


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_every_container_of_ours_calls_itself_healthy(stack: Stack):
    for name in stack.ours:
        health = stack.health(name)

        assert (health.returncode, health.stdout) == (0, "ok\n"), (name, health.stderr)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_sigterm_finishes_what_runs_and_ends_with_status_zero(tmp_path: Path):
    model = with_echo(read(GPU_FILES, example() | {"FOREBAY_DRAIN_S": "10"}))
    with Stack(model, tmp_path).running() as stack, caller(stack) as http:
        job = http.post("/v1/jobs", json={"query": "[[tokens=30 rate=10]]"}).json()
        with http.stream("GET", job["links"]["events"]) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if line == "event: delta")
            statuses = stack.stop()
            rest = list(lines)
        health = stack.health("chat-0")
        said = stack.log("chat-0")

    assert statuses == dict.fromkeys(stack.ours, 0)
    assert "event: completed" in rest
    assert health.returncode == 1
    assert "engine.died" not in said, "the engine's end was taken for a death"
