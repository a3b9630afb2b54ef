import json
import signal
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.pool_lab import PATIENCE_S, Lab, until
from tests.support.servers import redis_server
from worker.pool_run import CAN_LOSE_A_CANCEL


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with redis_server() as settings:
        yield settings["REDIS_URL"]


@pytest.fixture(scope="module")
def shared(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A worker with four slots, shared by the tests that leave it as it was."""
    lab = Lab(url, tmp_path_factory.mktemp("shared"))
    lab.start_worker(concurrency=4)
    lab.told("booted with 4")
    yield lab
    lab.close()


@pytest.fixture
def lab(url: str, tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(url, tmp_path)
    yield lab
    lab.close()


def booted(lab: Lab, **env: str) -> "subprocess.Popen[bytes]":
    worker = lab.start_worker(concurrency=4, **env)
    lab.told("booted with 4")
    return worker


def test_a_value_reaches_the_result_backend(shared: Lab):
    result = shared.app.send_task("echo", [{"a": 1}], ignore_result=False)

    assert result.get(timeout=PATIENCE_S) == {"a": 1}


def test_the_events_of_a_task_come_in_order(shared: Lab):
    task = shared.send("echo", 7)

    succeeded = shared.event("task-succeeded", task)

    assert shared.events(task) == ["task-received", "task-started", "task-succeeded"]
    assert succeeded["result"] == "7"
    shared.until_all_acked()


def test_exactly_as_many_tasks_are_in_flight_as_the_pool_has_slots(shared: Lab):
    held = [shared.start_holding() for _ in range(4)]
    waiting = shared.send("hold")
    inspect = shared.app.control.inspect(destination=["w0@lab"], timeout=PATIENCE_S)

    active = {task["id"] for task in inspect.active()["w0@lab"]}
    reserved = inspect.reserved()["w0@lab"]
    stats = inspect.stats()["w0@lab"]

    assert active == set(held)
    assert reserved == []
    assert (shared.unacked(), shared.queued()) == (4, 1)
    assert stats["pool"]["in-flight"] == stats["pool"]["max-concurrency"] == 4
    assert not shared.was_told(f"{waiting} started")
    for task in (*held, waiting):
        shared.go(task)
        shared.told(f"{task} done")
    shared.until_all_acked()


def test_a_task_revoked_in_the_queue_never_runs(shared: Lab):
    held = [shared.start_holding() for _ in range(4)]
    task = shared.send("hold")

    shared.app.control.revoke(task, destination=["w0@lab"], reply=True, timeout=PATIENCE_S)
    for other in held:
        shared.go(other)

    shared.event("task-revoked", task)
    shared.until_all_acked()
    assert "task-started" not in shared.events(task)


def test_terminating_a_running_task_cancels_it(shared: Lab):
    task = shared.start_holding()

    shared.app.control.revoke(task, terminate=True)

    shared.told(f"{task} cancelled: terminated")
    assert shared.event("task-revoked", task)["terminated"]
    shared.until_all_acked()
    assert shared.events(task) == ["task-received", "task-started", "task-revoked"]


def test_a_terminated_task_that_returns_is_still_revoked(shared: Lab):
    task = shared.start_holding("return")

    shared.app.control.revoke(task, terminate=True)

    shared.told(f"{task} cancelled: terminated")
    shared.event("task-succeeded", shared.send("echo", 1))
    shared.until_all_acked()
    assert shared.events(task)[-1] == "task-revoked"


@pytest.mark.skipif(not CAN_LOSE_A_CANCEL, reason="no cancel is lost on this Python")
def test_a_task_that_missed_its_cancel_is_cancelled_again(shared: Lab):
    task = shared.start_holding("stay")

    shared.app.control.revoke(task, terminate=True)

    shared.told(f"{task} cancelled: terminated")
    until(lambda: in_flight(shared) == 0, "the task is gone")


def test_a_task_over_its_soft_limit_fails(shared: Lab):
    task = shared.start_holding(soft_time_limit=0.1)

    failed = shared.event("task-failed", task)

    assert failed["exception"].startswith("SoftTimeLimitExceeded")
    shared.told(f"{task} cancelled: soft_limit")
    shared.until_all_acked()


def test_a_task_may_come_to_an_end_of_its_own_after_the_soft_limit(shared: Lab):
    task = shared.start_holding("return", soft_time_limit=0.1)

    assert shared.event("task-succeeded", task)["result"] == "'stopped early'"


def test_the_hard_limit_ends_a_task_that_ignored_the_soft_one(shared: Lab):
    task = shared.start_holding("stay", soft_time_limit=0.1, time_limit=0.3)

    failed = shared.event("task-failed", task)

    assert "TimeLimitExceeded(0.3,)" in failed["traceback"]
    shared.until_all_acked()
    until(lambda: in_flight(shared) == 0, "the task is gone")
    assert shared.events(task).count("task-failed") == 1


def in_flight(lab: Lab) -> int:
    inspect = lab.app.control.inspect(destination=["w0@lab"], timeout=PATIENCE_S)
    return int(inspect.stats()["w0@lab"]["pool"]["in-flight"])


def test_a_failing_task_is_tried_again_as_its_options_say(shared: Lab):
    task = shared.send("flaky", 2)

    succeeded = shared.event("task-succeeded", task)

    assert succeeded["result"] == "2"
    assert shared.events(task).count("task-retried") == 2
    assert "task-failed" not in shared.events(task)
    shared.until_all_acked()


def test_a_task_fails_with_its_own_error_once_its_retries_are_used_up(shared: Lab):
    task = shared.send("flaky", 9)

    failed = shared.event("task-failed", task)

    assert failed["exception"] == "ValueError('attempt 2')"
    assert shared.events(task).count("task-retried") == 2
    shared.until_all_acked()


def test_a_countdown_is_waited_for(shared: Lab):
    task = shared.send("echo", 1, countdown=0.5)

    started = shared.event("task-started", task)

    assert started["timestamp"] - shared.event("task-received", task)["timestamp"] > 0.3


def test_a_task_past_its_expiry_is_not_run(shared: Lab):
    task = shared.send("echo", 1, expires=datetime.now(UTC) - timedelta(seconds=1))

    assert shared.event("task-revoked", task)["expired"]
    assert "task-started" not in shared.events(task)
    shared.until_all_acked()


def test_a_rate_limit_spaces_tasks_out(shared: Lab):
    tasks = [shared.send("rate_limited") for _ in range(3)]

    started = sorted(shared.event("task-started", task)["timestamp"] for task in tasks)

    assert started[2] - started[0] > 0.3
    shared.until_all_acked()


def test_links_and_chains_get_the_value(shared: Lab):
    echo = shared.app.signature("echo")
    link = shared.app.signature("echo", task_id="linked-" + shared.prefix)
    last = shared.app.signature("echo", ignore_result=False)

    result = (shared.app.signature("echo", ["passed on"]).on_error(echo) | last).apply_async(
        link=[]
    )
    shared.app.send_task("echo", ["linked"], link=link)

    assert result.get(timeout=PATIENCE_S) == "passed on"
    assert shared.event("task-succeeded", "linked-" + shared.prefix)["result"] == "'linked'"


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("value", "ValueError('bad value')"),
        ("exit", "RuntimeError('the task ended with SystemExit(3)')"),
        ("interrupt", "RuntimeError('the task ended with KeyboardInterrupt()')"),
        ("memory", "RuntimeError('the task ended with MemoryError()')"),
        ("cancelled", "RuntimeError('the task ended with CancelledError()')"),
    ],
)
def test_whatever_a_task_raises_ends_that_task_alone(shared: Lab, kind: str, told: str):
    held = shared.start_holding()

    task = shared.send("fail", kind)

    assert shared.event("task-failed", task)["exception"] == told
    shared.go(held)
    shared.told(f"{held} done")
    shared.until_all_acked()


def test_an_exit_in_a_subtask_leaves_the_loop_alive(shared: Lab):
    task = shared.send("exit_in_subtask")

    assert shared.event("task-succeeded", task)["result"] == "'SystemExit'"


def test_an_error_shared_by_tasks_does_not_kill_those_that_still_clean_up(shared: Lab):
    others = [shared.send("share_an_error", 4, kwargs={"is_patient": False}) for _ in range(2)]
    patient = [shared.send("share_an_error", 4, kwargs={"is_patient": True}) for _ in range(2)]
    for group in ("others", "others", "patient", "patient"):
        shared.told(group)

    for _ in others:
        shared.go("others")
    for task in others:
        shared.event("task-failed", task)
    for _ in patient:
        shared.go("patient")
        shared.told("cleaned up")

    for task in patient:
        assert shared.event("task-failed", task)["exception"] == "RuntimeError('engine died')"
    shared.until_all_acked()


def test_a_plain_function_runs_in_a_thread(shared: Lab):
    result = shared.app.send_task("plain", [5], ignore_result=False)

    assert result.get(timeout=PATIENCE_S) == [5, "pool-task", result.id]


def test_a_task_knows_the_delivery_tag_of_its_message(shared: Lab):
    task = shared.send("delivery_tag")

    assert shared.event("task-succeeded", task)["result"] == "True"


def test_a_message_with_a_broken_body_is_dropped(shared: Lab):
    task = shared.send("echo", 1, countdown=0)
    shared.event("task-succeeded", task)
    message = {
        "body": "bm8ganNvbg==",  # base64 of: no json
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": "echo", "id": "broken", "lang": "py"},
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": "q"},
            "delivery_tag": "broken-tag",
            "body_encoding": "base64",
        },
    }

    shared.redis.lpush(f"{shared.prefix}q", json.dumps(message))

    shared.until_all_acked()
    shared.event("task-succeeded", shared.send("echo", 2))


def test_a_blocked_loop_shows_as_lag(shared: Lab):
    shared.send("block_the_loop")
    shared.told("blocking")
    inspect = shared.app.control.inspect(destination=["w0@lab"], timeout=PATIENCE_S)

    until(lambda: inspect.stats()["w0@lab"]["pool"]["loop-lag-s"] > 0.2, "lag shows")
    shared.go("unblock")

    until(lambda: inspect.stats()["w0@lab"]["pool"]["loop-lag-s"] < 0.1, "lag is over")


def test_running_tasks_outlive_a_lost_broker_connection(lab: Lab):
    strangers = {client["id"] for client in lab.redis.client_list()}
    booted(lab)
    held = lab.start_holding()

    for client in lab.redis.client_list():
        if client["id"] not in strangers and client["cmd"] in {"brpop", "psubscribe"}:
            lab.redis.client_kill_filter(_id=client["id"])

    again = lab.start_holding()
    for task in {held, again}:
        lab.go(task)
        lab.told(f"{task} done")
    lab.event("task-succeeded", lab.send("echo", 1))


def test_a_worker_can_leave_tickets_to_others_and_take_them_again(lab: Lab):
    ours = "worker.pool_consumer:BatchingConsumer"
    booted(lab, consumer=ours)
    leaving = lab.send("leave_tickets")
    lab.told("leaving")
    other = booted(lab)
    by_others = [lab.event("task-succeeded", lab.send("echo", n)) for n in range(4)]
    other.send_signal(signal.SIGTERM)
    lab.exit_status(other)

    waiting = lab.send("echo", "waiting")
    lab.go(leaving)

    assert {event["hostname"] for event in by_others} == {"w1@lab"}
    assert lab.event("task-succeeded", waiting)["hostname"] == "w0@lab"


def test_sigterm_lets_running_tasks_finish(lab: Lab):
    worker = booted(lab)
    held = lab.start_holding()
    worker.terminate()
    lab.event("worker-offline", None)
    left = lab.send("echo", 1)

    lab.go(held)

    assert lab.exit_status(worker) == 0
    lab.told(f"{held} done")
    lab.told("shut down with 0 in flight")
    assert lab.event("task-succeeded", held)
    assert (lab.queued(), lab.unacked()) == (1, 0)
    assert lab.events(left) == []


def test_after_the_drain_time_tasks_decide_about_their_messages(lab: Lab):
    worker = booted(lab, drain_s="0.3")
    tasks = {how: lab.start_holding(how) for how in ("raise", "fail", "ignore", "return")}

    worker.terminate()

    assert lab.exit_status(worker) == 0
    for task in tasks.values():
        lab.told(f"{task} cancelled: shutdown")
    assert waiting(lab) == {tasks["raise"], tasks["fail"]}
    assert lab.unacked() == 0


def waiting(lab: Lab) -> set[str]:
    messages = lab.redis.lrange(f"{lab.prefix}q", 0, -1)
    return {json.loads(message)["headers"]["id"] for message in messages}


def test_a_message_that_goes_back_is_first_in_its_queue(lab: Lab):
    worker = booted(lab, drain_s="0.1")
    tasks = [lab.start_holding() for _ in range(4)]
    late = lab.send("echo", 1)

    worker.terminate()
    lab.exit_status(worker)

    messages = lab.redis.lrange(f"{lab.prefix}q", 0, -1)
    assert json.loads(messages[0])["headers"]["id"] == late  # BRPOP takes from the other end
    assert waiting(lab) == {*tasks, late}


def test_a_second_sigterm_hands_back_at_once(lab: Lab):
    worker = booted(lab, drain_s="1000")
    task = lab.start_holding()
    worker.terminate()
    until(lambda: "Warm shutdown" in lab.log.read_text(), "the first was seen")

    worker.terminate()

    assert lab.exit_status(worker) == 0
    lab.told(f"{task} cancelled: shutdown")
    assert waiting(lab) == {task}


def test_a_second_sigterm_in_the_middle_of_the_first_hands_back_as_well(lab: Lab):
    worker = booted(lab, drain_s="1000", boot="impatient")
    task = lab.start_holding()

    worker.terminate()

    assert lab.exit_status(worker) == 0
    assert waiting(lab) == {task}


def test_sigquit_hands_back_at_once(lab: Lab):
    worker = booted(lab, drain_s="1000")
    tasks = {how: lab.start_holding(how) for how in ("raise", "ignore")}

    worker.send_signal(signal.SIGQUIT)

    lab.exit_status(worker)
    for task in tasks.values():
        lab.told(f"{task} cancelled: shutdown")
    lab.told("shut down with 0 in flight")
    assert waiting(lab) == {tasks["raise"]}
    assert lab.unacked() == 0


def test_sigquit_cuts_a_drain_short(lab: Lab):
    worker = booted(lab, drain_s="1000")
    task = lab.start_holding()
    worker.terminate()
    until(lambda: "Warm shutdown" in lab.log.read_text(), "the drain")

    worker.send_signal(signal.SIGQUIT)

    lab.exit_status(worker)
    lab.told(f"{task} cancelled: shutdown")
    assert waiting(lab) == {task}


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGQUIT])
def test_a_task_that_will_not_end_is_left_behind(lab: Lab, first: signal.Signals):
    worker = booted(lab, drain_s="0.1", hand_back_s="0.3")
    task = lab.start_holding("refuse")
    lab.send("plain_hold")
    lab.told("plain started")

    worker.send_signal(first)

    lab.exit_status(worker)
    lab.told(f"{task} cancelled: shutdown")
    assert task in waiting(lab)
    assert lab.unacked() == 0


def test_sigterm_interrupts_a_boot(lab: Lab):
    worker = lab.start_worker(boot="hangs")
    lab.told("booting")

    worker.terminate()

    assert lab.exit_status(worker) == 0
    lab.told("boot cancelled")
    lab.told("shut down with 0 in flight")


def test_sigquit_interrupts_a_boot(lab: Lab):
    worker = lab.start_worker(boot="hangs")
    lab.told("booting")

    worker.send_signal(signal.SIGQUIT)

    lab.exit_status(worker)
    lab.told("boot cancelled")


def test_a_boot_that_fails_ends_the_worker_before_it_takes_a_task(lab: Lab):
    task = lab.send("echo", 1)

    worker = lab.start_worker(boot="fails")

    assert lab.exit_status(worker) == 1
    assert "no such model" in lab.log.read_text()
    assert lab.queued() == 1
    assert lab.events(task) == []


def test_a_killed_worker_leaves_its_messages_to_the_visibility_timeout(lab: Lab):
    worker = booted(lab)
    lab.start_holding()

    worker.kill()
    lab.exit_status(worker)

    assert (lab.queued(), lab.unacked()) == (0, 1)
