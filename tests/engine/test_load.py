"""Which engine is loaded, and that no other is."""

import pickle
import subprocess
import sys

import pytest

from tests.support.prompts import decode
from worker.contract.errors import EngineFailed
from worker.engine import EngineSpec, choose, is_cuda_visible, load_engine, resolve_model
from worker.engine.echo import EchoEngine


def test_the_echo_engine_loads_no_library_of_models():
    code = (
        "import sys; from worker.engine import *; import worker.engine.process as p;"
        "load_engine(EngineSpec('echo', 'echo'));"
        "print([m for m in ('torch', 'transformers', 'lmdeploy', 'PIL') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_auto_is_transformers_where_there_is_no_gpu():
    if is_cuda_visible():
        pytest.skip("this machine has a GPU")

    assert choose("auto") == "transformers"
    assert choose("echo") == "echo"


def test_lmdeploy_is_refused_with_what_to_use_instead():
    with pytest.raises(EngineFailed, match="--engine transformers"):
        load_engine(EngineSpec("demo", "lmdeploy"))


def test_a_spec_goes_to_another_process():
    spec = EngineSpec("echo", "echo", slots=3, decode=decode)

    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own bytes


def test_slots_reach_the_engine():
    assert isinstance(load_engine(EngineSpec("any", "echo", slots=3)), EchoEngine)


def test_a_name_that_is_not_demo_stays_as_it_is():
    assert resolve_model("some/model") == "some/model"
