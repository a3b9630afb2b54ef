"""The models of random weights with which engines are compared."""

from pathlib import Path

import pytest

from tests.support.prompts import answer_of, ask, decode, picture
from worker.engine import EngineSpec, load_engine

pytest.importorskip("torch", reason="the extra `cpu` is not installed")

from tests.gpu.random_model import SIZES, write_random_model


@pytest.mark.parametrize("arch", ["qwen2_vl", "qwen3_vl"])
async def test_a_random_model_takes_text_and_pictures(arch: str, tmp_path: Path):
    parameters = write_random_model(arch, SIZES["tiny"], tmp_path)
    engine = load_engine(EngineSpec(str(tmp_path), "transformers", slots=1, decode=decode))

    card = await engine.start()
    plain = await answer_of(engine, ask("What is it?", max_tokens=4, ignore_eos=True))
    shown = await answer_of(engine, ask(picture(), "What is it?", max_tokens=4, ignore_eos=True))
    await engine.close()

    assert parameters > 9_000_000
    assert card.context_tokens == 32_768
    assert len(shown.token_ids) == len(plain.token_ids) == 4
    assert shown.prompt_tokens > plain.prompt_tokens + 64
