"""Children that never outlive their parent."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import command, is_running, until
from worker.children import Child, Command

PARENT = """
import sys
from pathlib import Path
from worker.children import Child, Command
argv = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")
child = Child(Command("kept", argv, {{}}, log=Path({log!r})), use_pipe={use_pipe})
print(child.pid, flush=True)
child.wait(60)
"""


@pytest.mark.parametrize("use_pipe", [False, True])
def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path, use_pipe: bool):
    log = tmp_path / "child.log"
    code = PARENT.format(log=str(log), use_pipe=use_pipe)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: log.exists() and log.read_text() == "up\n")

        parent.kill()

    until(lambda: not is_running(pid))


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path):
    log = tmp_path / "child.log"
    child = Child(
        command(
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print('deaf', flush=True); time.sleep(60)",
            log=log,
        )
    )
    until(lambda: log.read_text() == "deaf\n")

    status = child.stop(grace_s=0.1)

    assert status == -signal.SIGKILL
    assert not is_running(child.pid)


def test_what_a_child_forked_and_left_behind_is_killed_with_it(tmp_path: Path):
    log = tmp_path / "child.log"
    code = "import os, time\npid = os.fork()\nif pid: print(pid, flush=True)\nelse: time.sleep(60)"

    child = Child(command(code, log=log))

    assert child.wait(10) == 0
    orphan = int(log.read_text())
    until(lambda: not is_running(orphan))


def test_a_childs_last_words_are_the_last_line_of_its_log(tmp_path: Path):
    child = Child(command("print('first'); print('last'); print()", log=tmp_path / "child.log"))

    child.wait(10)

    assert child.last_words() == "last"


def test_a_childs_last_words_are_heard_where_it_has_no_log(capfd: pytest.CaptureFixture[str]):
    child = Child(command("import sys; print('why', file=sys.stderr); sys.exit(3)"))

    assert child.wait(10) == 3
    assert child.last_words() == "why"
    assert capfd.readouterr().err == "why\n"


def test_of_a_json_log_line_the_event_is_what_was_said(tmp_path: Path):
    line = '{"event": "engine.died", "traceback": "a page of it"}'

    child = Child(command(f"print({line!r})", log=tmp_path / "child.log"))
    child.wait(10)

    assert child.last_words() == "engine.died"


def test_a_program_that_is_not_there_is_named(tmp_path: Path):
    log = tmp_path / "child.log"

    child = Child(Command("none", ("/no/such/program",), {}, log=log))

    assert child.wait(10) == 1
    assert child.last_words() == "error: cannot start /no/such/program: No such file or directory"


def test_a_childs_environment_is_what_it_is_given_and_no_more(tmp_path: Path):
    child = Child(
        command("import os; print(sorted(os.environ))", log=tmp_path / "log", environ={"A": "1"})
    )
    child.wait(10)

    assert "'A'" in child.last_words()
    assert "PATH" not in child.last_words()


def test_a_child_leads_a_session_so_that_a_ctrl_c_does_not_reach_it(tmp_path: Path):
    child = Child(command("import os; print(os.getsid(0) == os.getpid())", log=tmp_path / "log"))
    child.wait(10)

    assert child.last_words() == "True"
