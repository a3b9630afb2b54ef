"""`forebay batch` against the running service."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.support.batches import jsonl, line
from tests.support.media_files import picture
from tests.support.processes import Service, until
from worker import bulk, requests
from worker.contract.settings import Settings
from worker.locks import hold
from worker.requests import Requests, RequestsError, Results
from worker.up import UpOptions

Run = Callable[..., "Ended"]


@dataclass
class Ended:
    """What a run said and returned."""

    status: int
    stderr: str


@pytest.fixture
def client(running: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)


def command(folder: Path) -> list[str]:
    asked, results = str(folder / "in.jsonl"), str(folder / "out.jsonl")
    return [sys.executable, "-m", "worker", "batch", asked, "-o", results]


@pytest.fixture
def run(running: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return what runs the command on lines, in this process and the test's folder."""

    def go(lines: list[Any]) -> Ended:
        (tmp_path / "in.jsonl").write_bytes(jsonl(lines))
        options = UpOptions(Settings(_env_file=None), {})
        asked, results = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        capsys.readouterr()
        status = bulk.batch(running.url, asked, results, None, options)
        return Ended(status, capsys.readouterr().err)

    return go


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(row) for row in (folder / "out.jsonl").read_text().splitlines()]
    by_name = {row["custom_id"]: row for row in found}
    assert len(by_name) == len(found)
    return by_name


def text(row: dict[str, Any]) -> str:
    return str(row["response"]["body"]["output"]["text"])


def test_bodies_alone_are_answered_by_line_number_with_pictures_from_files(
    run: Run, tmp_path: Path
):
    (tmp_path / "a.png").write_bytes(picture(32, 24))
    bodies = [{"query": f"word{n}"} for n in (1, 2)]

    ended = run([*bodies, {"query": "<image>[[media]]", "images": ["a.png"]}])

    assert ended.status == 0
    assert "3 of 3 lines, 0 failed" in ended.stderr
    found = rows(tmp_path)
    assert (text(found["1"]), text(found["2"])) == ("word1", "word2")
    assert '"image"' in text(found["3"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "in.jsonl", "out.jsonl"]


def test_a_picture_in_bare_base64_is_no_file(tmp_path: Path):
    bare = base64.b64encode(bytes(300)).decode()  # longer than a name may be, shorter than a path
    (tmp_path / "in.jsonl").write_bytes(jsonl([{"query": "<image>q", "images": bare}]))

    (asked,) = Requests(tmp_path / "in.jsonl", None).missing(set())

    assert asked.body["images"] == bare


def test_a_second_run_asks_only_what_is_missing(run: Run, tmp_path: Path, client: openai.OpenAI):
    lines = [line("a", "first"), line("b", "second"), line("c", "third")]
    run(lines[:2])
    out = tmp_path / "out.jsonl"
    whole, half = out.read_text().splitlines(keepends=True)
    out.write_text(whole + half[:30])  # killed in the middle of a line
    kept = json.loads(whole)["custom_id"]

    ended = run(lines)
    last = client.batches.list(limit=1).data[0]
    again = run(lines)

    assert (ended.status, again.status) == (0, 0)
    assert {name: text(row) for name, row in rows(tmp_path).items()} == {
        "a": "first",
        "b": "second",
        "c": "third",
    }
    assert out.read_text().startswith(whole), kept
    assert last.request_counts.total == 2
    assert client.batches.list(limit=1).data[0].id == last.id


def test_failed_lines_are_told_and_kept(run: Run, tmp_path: Path):
    lines = [line("good"), line("bad", "[[fail]]"), line("gone", "<image>x", images=["no.png"])]

    ended = run(lines)
    again = run(lines)

    for process in (ended, again):
        assert process.status == 1
        assert f"2 of 3 lines failed; see {tmp_path}/out.jsonl" in process.stderr
    assert rows(tmp_path).keys() == {"good", "bad", "gone"}


def test_a_batch_that_the_server_refuses_is_told_by_line(run: Run, tmp_path: Path):
    ended = run([line("a"), line("b", model="nobody")])

    assert ended.status == 1
    assert "error: line 2: no model 'nobody'" in ended.stderr
    assert "2 of 2 lines have no result yet" in ended.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_killed_run_is_gone_on_with_and_no_line_is_asked_twice(
    run: Run, tmp_path: Path, running: Service, client: openai.OpenAI
):
    lines = [
        line("slow", "[[tokens=30 rate=10]]", metadata={"test": "killed"}),
        *(line(f"l{n}", metadata={"test": "killed"}) for n in range(20)),
    ]
    (tmp_path / "in.jsonl").write_bytes(jsonl(lines))
    before = client.batches.list(limit=1).data
    killed = subprocess.Popen(
        command(tmp_path), env={**os.environ, "FOREBAY_URL": running.url}, stderr=subprocess.DEVNULL
    )
    until(lambda: client.batches.list(limit=1).data[:1] != before[:1])
    killed.kill()
    killed.wait()

    ended = run(lines)

    assert ended.status == 0, ended.stderr
    assert len(rows(tmp_path)) == 21
    jobs = httpx.get(f"{running.url}/v1/jobs?limit=100").json()["data"]
    assert sum(job["metadata"] == {"test": "killed"} for job in jobs) == 21


def test_a_second_run_beside_the_first_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "out.jsonl.forebay").mkdir()

    with hold(tmp_path / "out.jsonl.forebay" / "lock"):
        ended = run([line("a")])

    assert ended.status == 1
    assert "another run writes these results" in ended.stderr


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["{"], "line 1: no JSON"),
        (["[1]"], "line 1: no JSON object"),
        (['{"query": 7}'], "line 1: body.query"),
        (['{"custom_id": "a"}'], "line 1: send custom_id, method POST, body, and url"),
        ([json.dumps(line("a")), json.dumps(line("a"))], "line 2: custom_id 'a' came before"),
        (["", " "], "has no line"),
        (
            [json.dumps(line("a")), json.dumps(line("b") | {"url": "/v1/completions"})],
            "line 2: url: the url is '/v1/completions'",
        ),
    ],
)
def test_requests_that_are_no_good_are_told_before_anything_is_asked(
    tmp_path: Path, lines: list[str], said: str
):
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))

    with pytest.raises(RequestsError, match=r".") as error:
        Requests(path, None).check()

    assert said in str(error.value)


def test_a_usage_error_ends_with_2(run: Run, tmp_path: Path):
    (tmp_path / "in.jsonl").write_bytes(jsonl([{"query": 7}]))
    bad = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=50, check=False)
    (tmp_path / "out.jsonl").write_text("a novel\n")

    assert (bad.returncode, bad.stderr[:7]) == (2, "error: ")
    assert "line 1: body.query" in bad.stderr
    with pytest.raises(RequestsError, match="holds no results"):
        run([{"query": "q"}])


def test_a_large_file_is_not_sent_inside_a_line(tmp_path: Path):
    (tmp_path / "big.png").write_bytes(bytes(9_000_000))
    (tmp_path / "in.jsonl").write_bytes(jsonl([{"query": "<image>q", "images": ["big.png"]}]))

    with pytest.raises(requests.attachments.AttachmentError, match="/v1/files"):
        list(Requests(tmp_path / "in.jsonl", None).missing(set()))


@pytest.mark.parametrize("code", sorted(requests._NOT_EXECUTED))
def test_a_line_that_was_not_executed_is_no_result(tmp_path: Path, code: str):
    results = Results(tmp_path / "out.jsonl")

    results.add(json.dumps({"custom_id": "a", "response": None, "error": {"code": code}}).encode())

    assert (results.done, results.failed) == (set(), 0)


@pytest.mark.parametrize(
    "foreign",
    [
        b"an only copy, without a line's end",
        b'{"id":"batch_rex',
        json.dumps(line("a")).encode(),
        jsonl([line("a")]) + json.dumps(line("b")).encode(),
    ],
)
def test_a_file_that_holds_no_results_is_left_as_it_is(tmp_path: Path, foreign: bytes):
    (tmp_path / "out.jsonl").write_bytes(foreign)

    with pytest.raises(RequestsError, match="holds no results"):
        Results(tmp_path / "out.jsonl").open()

    assert (tmp_path / "out.jsonl").read_bytes() == foreign


@pytest.mark.parametrize("half", [b"", b"{", b'{"id":"batch_req_', b'{"id":"batch_req_0f","cu'])
def test_half_a_result_is_cut_off(tmp_path: Path, half: bytes):
    whole = json.dumps({"custom_id": "a", "response": {"status_code": 200}, "error": None})
    (tmp_path / "out.jsonl").write_bytes(whole.encode() + b"\n" + half)
    results = Results(tmp_path / "out.jsonl")

    results.open()

    assert (len(results.done), results.failed) == (1, 0)
    assert (tmp_path / "out.jsonl").read_text() == whole + "\n"
