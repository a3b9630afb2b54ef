"""Sets of GPUs: which there are, which are refused, who holds them."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from worker import gpus
from worker.gpus import Gpu, GpuError

LISTED = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-0000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-1111)
  MIG 1g.10gb     Device  0: (UUID: MIG-cccc-2222)
"""
FOUR = tuple(Gpu(str(n), f"GPU-{n}") for n in range(4))

HOLDER = """
import sys
from pathlib import Path
from worker import gpus
with gpus.held(["1,2"], gpus.read_list(""), Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_the_drivers_list_is_read_with_its_slices():
    assert gpus.read_list(LISTED) == (
        Gpu("0", "GPU-aaaa-0000"),
        Gpu("1", "GPU-bbbb-1111"),
        Gpu("MIG-cccc-2222", "MIG-cccc-2222"),
    )


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")

    assert gpus.present() == ()


@pytest.mark.parametrize(
    ("asked", "tp", "there", "sets"),
    [
        ((), None, (), (None,)),
        ((), 1, (), (None,)),
        ((), None, FOUR, ("0",)),
        ((), 2, FOUR, ("0,1",)),
        (("0,1", "2,3"), None, FOUR, ("0,1", "2,3")),
        (("0,1", "2,3"), 2, FOUR, ("0,1", "2,3")),
        (("3", "GPU-0"), None, FOUR, ("3", "GPU-0")),
        ((" 1, 2 ",), None, FOUR, ("1,2",)),
    ],
)
def test_each_set_is_one_worker(
    asked: tuple[str, ...],
    tp: int | None,
    there: tuple[Gpu, ...],
    sets: tuple[str | None, ...],
):
    assert gpus.choose(asked, tp, there) == sets


@pytest.mark.parametrize(
    ("asked", "tp", "there", "said"),
    [
        (("4",), None, FOUR, "--gpus names GPU 4; this host has 0, 1, 2, 3"),
        (("0",), None, (), "leave --gpus out to run on the CPU"),
        (("0,1", "1,2"), None, FOUR, "GPU 1 stands twice"),
        (("0,0",), None, FOUR, "GPU 0 stands twice"),
        (("1", "GPU-1"), None, FOUR, "GPU GPU-1 stands twice"),
        (("0;1",), None, FOUR, "such as 0,1"),
        (("",), None, FOUR, "such as 0,1"),
        (("0,1",), 1, FOUR, "names 2 GPUs and --tp 1 uses 1"),
        ((), 8, FOUR, "--tp 8 needs 8 GPUs; this host has 4"),
    ],
)
def test_a_set_that_cannot_be_had_is_refused_in_a_sentence(
    asked: tuple[str, ...], tp: int | None, there: tuple[Gpu, ...], said: str
):
    with pytest.raises(GpuError) as caught:
        gpus.choose(asked, tp, there)

    assert said in str(caught.value)


def test_an_inherited_choice_of_devices_is_kept_to():
    assert gpus.visible(FOUR, None) == FOUR
    assert gpus.visible(FOUR, "2,GPU-3") == FOUR[2:]
    assert gpus.visible(FOUR, "") == ()
    assert gpus.visible(FOUR, "-1") == ()
    assert gpus.visible(FOUR, "GPU-zzzz") == ()


def test_an_inherited_choice_is_read_as_the_driver_reads_it():
    two = gpus.read_list(LISTED)[:2]

    assert gpus.visible(two, "1,0") == (two[1], two[0])
    assert gpus.visible(two, "GPU-b") == (two[1],)
    assert gpus.visible(two, "GPU-b,GPU-aaaa") == (two[1], two[0])
    assert gpus.visible(two, "GPU-") == ()  # which of them?
    assert gpus.visible(two, "1,7,0") == (two[1],)
    assert gpus.choose((), 2, gpus.visible(two, "1,0")) == ("1,0",)


def test_another_folder_for_temporary_files_is_no_way_around_a_lock(tmp_path: Path):
    uuid = f"GPU-{secrets.token_hex(6)}"
    file = gpus.LOCKS / f"forebay-{uuid}.lock"
    code = f"""
from worker import gpus
with gpus.held([{uuid!r}], ()):
    print(flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            with pytest.raises(GpuError, match="in use"), gpus.held([uuid], ()):
                pytest.fail("held")
        finally:
            holder.kill()
            file.unlink(missing_ok=True)


def test_a_gpu_of_another_chat_worker_of_this_host_is_refused_until_that_one_is_gone(
    tmp_path: Path,
):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with (
            pytest.raises(GpuError, match=rf"GPU 2 is in use .*\(process {holder.pid}\)"),
            gpus.held(["0", "2"], (), tmp_path),
        ):
            pytest.fail("held")

        holder.kill()

    with gpus.held(["0", "2"], (), tmp_path):
        pass


def test_a_number_and_a_uuid_of_the_same_gpu_are_one_lock(tmp_path: Path):
    with (
        gpus.held(["1"], FOUR, tmp_path),
        pytest.raises(GpuError, match="GPU GPU-1 is in use"),
        gpus.held(["GPU-1"], FOUR, tmp_path),
    ):
        pytest.fail("held")


def test_a_worker_that_is_not_pinned_holds_nothing(tmp_path: Path):
    with gpus.held([None], (), tmp_path):
        assert list(tmp_path.iterdir()) == []
