"""The command line: help, one-line errors, and what is handed over."""

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from tests.support.processes import until
from tests.support.servers import redis_server, s3_server
from worker.check import describe_model
from worker.cli import cli
from worker.datadir import choose_port

FOREBAY = (sys.executable, "-m", "worker")


def run(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        (*FOREBAY, *arguments),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def commands(
    group: click.Command = cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every command with its words."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def test_every_command_has_help_with_an_example_of_itself():
    for path, command in commands():
        assert command.help, path
        words = " ".join(("forebay", *path))
        assert (command.epilog or "").startswith(f"Example: {words}"), path


def test_help_loads_nothing_that_takes_time():
    code = (
        "import sys; from worker.cli import cli; cli(['up', '--help'], standalone_mode=False); "
        "heavy = {'celery', 'redis', 'boto3', 'pydantic', 'fastapi', 'PIL', 'numpy', 'torch'}; "
        "sys.exit(', '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )

    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )

    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "environ", "status", "said"),
    [
        (("up", "--port", "high"), {}, 2, "error: Invalid value for '--port'"),
        (("nothing",), {}, 2, "error: No such command 'nothing'"),
        (("jobs", "show"), {}, 2, "error: Missing argument 'JOB_ID'"),
        (("worker", "media"), {"FOREBAY_LEASE_S": "no"}, 2, "error: FOREBAY_LEASE_S='no'"),
        (("api",), {"FOREBAY_LEASES": "1"}, 2, "error: unknown setting FOREBAY_LEASES"),
        (("worker", "chat", "--gpus", "0,x"), {}, 1, "error: --gpus '0,x'"),
        (("worker", "chat", "--gpus", "77"), {}, 1, "error: --gpus names GPU 77; this host has"),
        (("flower", "--host", "0.0.0.0"), {}, 2, "error: --host 0.0.0.0 lets others in"),
        (("up", "--data-dir", "/proc/none"), {}, 1, "error: cannot use /proc/none as data folder"),
    ],
)
def test_an_error_is_one_line_with_a_status(
    arguments: tuple[str, ...], environ: dict[str, str], status: int, said: str
):
    ended = run(*arguments, **environ)

    assert ended.returncode == status
    assert ended.stderr.startswith(said)
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""


def say(stdout: int) -> "subprocess.CompletedProcess[bytes]":
    """Run a command that prints a line, which waits in the interpreter until the end."""
    code = (
        "import click; from worker import cli;"
        "cli.cli.add_command(click.Command('say', callback=lambda: print('a line')));"
        "cli.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, "say"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )


def test_a_reader_that_has_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)

    ended = say(writer)

    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_an_answer_that_cannot_be_written_is_an_error():
    with Path("/dev/full").open("wb") as full:
        ended = say(full.fileno())

    assert (ended.returncode, ended.stderr) == (1, b"error: [Errno 28] No space left on device\n")


def test_a_folder_called_worker_where_one_stands_is_not_ours(tmp_path: Path):
    """Children are found by where we are, not by where the caller stands."""
    for name in ("worker", "api"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger')")
    code = (
        "import subprocess, os; from worker import commands;"
        "argv = (*commands.forebay('--help'),);"
        "env = commands.importable(dict(os.environ));"
        f"ran = subprocess.run(argv, env=env, cwd={str(tmp_path)!r}, capture_output=True);"
        "print(ran.returncode, ran.stderr.decode())"
    )

    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.split() == ["0"]


def test_check_says_one_line_each_and_what_to_do(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    with redis_server() as redis_settings, s3_server() as s3_settings:
        well = run("check", "--model", str(tmp_path), **redis_settings, **s3_settings)

    assert well.returncode == 0, well.stdout
    assert re.findall(r"^ok +(\w+)", well.stdout, re.MULTILINE) == [
        "redis",
        "broker",
        "s3",
        "gpus",
        "model",
    ]
    assert "qwen2_vl" in well.stdout
    password = urlsplit(redis_settings["REDIS_URL"]).password
    assert password
    assert password not in well.stdout


def test_check_fails_where_nothing_answers_and_tells_no_password(tmp_path: Path):
    nowhere = {
        "REDIS_URL": "redis://:hidden@127.0.0.1:1/0",
        "S3_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }

    ended = run("check", "--model", str(tmp_path / "none"), **nowhere)

    assert ended.returncode == 1
    failed = re.findall(r"^FAIL +(\w+)", ended.stdout, re.MULTILINE)
    assert failed == ["redis", "broker", "s3", "model"]
    assert "REDIS_URL" in ended.stdout
    assert "S3_ENDPOINT_URL" in ended.stdout
    assert "hidden" not in ended.stdout + ended.stderr


def test_check_looks_at_the_rest_where_a_setting_is_no_url(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    wrong = {
        "REDIS_URL": "127.0.0.1:6379",
        "S3_ENDPOINT_URL": "127.0.0.1:8333",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden",
    }

    ended = run("check", "--model", str(tmp_path), **wrong)

    assert (ended.returncode, ended.stderr) == (1, "")
    failed = re.findall(r"^FAIL +(\w+)", ended.stdout, re.MULTILINE)
    assert failed == ["redis", "broker", "s3", "model"]


@pytest.mark.parametrize(
    ("model", "hub"),
    [
        ("internvl2-2b", "OpenGVLab/InternVL2-2B"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ],
)
def test_check_knows_models_of_the_hub(model: str, hub: str):
    assert describe_model(model).startswith(f"{hub} of the Hugging Face hub")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("qwen_vl_chat", "0.14.0 was the last"),
        ("none", "none/config.json: No such file"),
        ("sub/none", "sub/none/config.json: No such file"),
        ("./a/b", "a/b/config.json: No such file"),
    ],
)
def test_check_says_what_is_no_model(
    model: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(Exception, match=reason):
        describe_model(model)


def test_a_worker_that_cannot_load_its_model_ends_with_78_and_the_reason():
    with redis_server() as redis_settings, s3_server() as s3_settings:
        ended = run(
            *("worker", "chat", "--engine", "lmdeploy", "--model", "/no/such/model"),
            **redis_settings,
            **s3_settings,
        )

    assert ended.returncode == 78
    *_, reason, told = (line for line in ended.stderr.splitlines() if not line.startswith("{"))
    assert told == f"error: {reason}"


def test_flower_answers_and_its_command_line_has_no_password():
    port = choose_port()
    with (
        redis_server() as settings,
        subprocess.Popen(
            (*FOREBAY, "flower", "--port", str(port)),
            env={**os.environ, **settings},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as flower,
    ):
        until(lambda: status_of(port, "/healthcheck") == http.HTTPStatus.OK)
        listed = Path(f"/proc/{flower.pid}/cmdline").read_bytes()
        flower.terminate()

    assert urlsplit(settings["REDIS_URL"]).password.encode() not in listed


def test_flower_asks_for_the_password_that_it_was_given():
    port = choose_port()
    with (
        redis_server() as settings,
        subprocess.Popen(
            (*FOREBAY, "flower", "--port", str(port)),
            env={**os.environ, **settings, "FOREBAY_FLOWER_BASIC_AUTH": "me:mine"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as flower,
    ):
        until(lambda: status_of(port, "/healthcheck") == http.HTTPStatus.OK)
        status = status_of(port, "/workers")
        flower.terminate()

    assert status == http.HTTPStatus.UNAUTHORIZED


def status_of(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
