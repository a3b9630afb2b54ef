"""The main job, end to end: `forebay up` with the demo model, over HTTP, on real pictures."""

import concurrent.futures
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.meadows import film, png
from tests.support.up import FOREBAY, Up, up
from worker.demo import MODEL_DIR, SHEEP_PICTURE
from worker.demo.pictures import cat_scene, sheep_scene

pytestmark = pytest.mark.timeout(240)
WAIT = {"Prefer": "wait=60"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    assert MODEL_DIR.is_dir(), "the demo model is part of the repository"
    with up(tmp_path_factory.mktemp("main") / "data", flower=True) as running:
        yield running


def ask(server: Up, **body: object) -> dict[str, object]:
    response = server.api.post("/v1/jobs", json=body, headers=WAIT)
    assert response.status_code == 200, response.text
    job = response.json()
    assert job["status"] == "completed", job["error"]
    return job


def test_a_picture_with_four_sheep_is_counted(server: Up) -> None:
    job = ask(server, query="<image>图片中有几只羊", images=[png(sheep_scene())])

    assert job["output"] == {"text": "四只", "finish_reason": "stop"}
    assert set(job["generation_info"]) == {
        "num_prompt_tokens", "num_generated_tokens", "num_samples", "runtime", "samples/s",
        "tokens/s",
    }  # fmt: skip
    assert job["usage"]["prompt_tokens"] > 50  # the picture's tokens are counted
    assert job["media"][0]["type"] == "image"


def test_the_openai_form_gives_the_same_answer(server: Up) -> None:
    picture = {"type": "image_url", "image_url": {"url": png(sheep_scene())}}
    text = {"type": "text", "text": "图片中有几只羊"}

    answers = [
        ask(server, messages=[{"role": "user", "content": parts}])["output"]["text"]
        for parts in ([picture, text], [text, picture])
    ]

    assert answers == ["四只", "四只"]


def test_a_follow_up_is_answered_from_the_history(server: Up) -> None:
    tagged = f"<img>{png(sheep_scene())}</img>图片中有几只羊"
    first = ask(server, query=tagged)

    second = ask(server, query="它们是什么颜色？", history=first["history"])

    assert "白" in second["output"]["text"]
    assert second["history"] == [[tagged, "四只"], ["它们是什么颜色？", second["output"]["text"]]]
    assert second["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]


def test_the_difference_of_two_pictures_is_told(server: Up) -> None:
    pictures = [png(sheep_scene()), png(cat_scene())]

    job = ask(
        server,
        query="<image><image>What is the difference between the two images?",
        images=pictures,
    )

    text = job["output"]["text"].lower()
    assert "sheep" in text
    assert "cat" in text


def test_a_video_is_described_from_eight_frames(server: Up) -> None:
    job = ask(server, query="<video>描述视频", videos=[film()])

    assert "羊" in job["output"]["text"]
    assert "右" in job["output"]["text"]
    (media,) = job["media"]
    assert media["frames"] == 8
    assert media["times_s"] == pytest.approx([(2 * n + 1) * 1.5 / 16 for n in range(8)], abs=0.07)


def test_a_text_is_answered_in_the_same_second_as_three_pictures(server: Up) -> None:
    bodies = [{"query": "<image>图片中有几只羊", "images": [png(sheep_scene())]}] * 3
    bodies.append({"query": "你是谁？"})

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        jobs = list(threads.map(lambda body: ask(server, **body), bodies))

    assert max(j["created_at"] for j in jobs) - min(j["created_at"] for j in jobs) < 1
    assert [job["output"]["text"] for job in jobs[:3]] == ["四只"] * 3
    assert "Forebay" in jobs[3]["output"]["text"]


def test_chinese_deltas_concatenate_to_the_answer(server: Up) -> None:
    body = {"query": "<image>描述图片", "images": [png(sheep_scene())]}
    job = server.api.post("/v1/jobs", json=body).json()

    with server.api.stream("GET", job["links"]["events"]) as stream:
        lines = "".join(stream.iter_text()).split("\n")

    deltas = [line for line, kind in zip(lines[2:], lines[1:], strict=False)
              if kind == "event: delta"]  # fmt: skip
    import json  # noqa: PLC0415

    text = "".join(json.loads(line.removeprefix("data: "))["text"] for line in deltas)
    assert len(deltas) > 1
    assert text == server.api.get(job["links"]["self"]).json()["output"]["text"]


def test_the_command_line_asks_the_running_server(server: Up) -> None:
    answer = subprocess.run(
        [*FOREBAY, "infer", "--url", server.url, "--image", str(SHEEP_PICTURE), "图片中有几只羊"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert answer.stdout == "四只\n"


def test_flower_shows_a_job_under_its_id_without_its_question(server: Up) -> None:
    secret = "有几只紫色的恐龙"
    job = ask(server, query=f"<image>{secret}", images=[png(sheep_scene())])

    deadline = time.monotonic() + 15
    while True:
        page = server.api.get(f"{server.flower_url}/task/{job['id']}")
        if "SUCCESS" in page.text:
            break
        assert time.monotonic() < deadline, page.text[:2000]
        time.sleep(0.2)

    assert job["id"] in page.text
    assert secret not in page.text
    assert "base64" not in page.text
    assert job["output"]["text"] not in page.text


def test_jobs_outlive_a_restart_and_wait_for_a_worker(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with up(data, "--engine", "echo", "--served-name", "demo", FOREBAY_DRAIN_S="1") as first:
        done = first.api.post("/v1/jobs", json={"query": "before"}, headers=WAIT).json()
        waiting = first.api.post("/v1/jobs", json={"query": "[[hang]]"}).json()

    with up(data, "--engine", "echo", "--served-name", "demo", FOREBAY_DRAIN_S="1") as second:
        kept = second.api.get(done["links"]["self"]).json()
        again = second.api.get(waiting["links"]["self"]).json()
        cancelled = second.api.post(waiting["links"]["cancel"]).json()

    assert (kept["status"], kept["output"]["text"]) == ("completed", "before")
    assert again["status"] in {"queued", "in_progress"}
    assert cancelled["status"] == "cancelled"
