"""The training pass against transformers' own."""

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the cpu extra is not installed")
pytest.importorskip("transformers", reason="the cpu extra is not installed")

import numpy as np  # noqa: E402
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration  # noqa: E402

from worker.demo import MODEL_DIR  # noqa: E402
from worker.demo.batches import IGNORED, Batch, BatchMaker  # noqa: E402
from worker.demo.network import hidden_states, patches  # noqa: E402
from worker.demo.train import schedule  # noqa: E402


@pytest.fixture(scope="module")
def step() -> tuple[Batch, ...]:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    maker = BatchMaker(lambda text: tokenizer.encode(text, add_special_tokens=False))
    return next(maker.steps(3, 0.02))


@pytest.fixture(scope="module")
def model() -> Any:
    return Qwen2VLForConditionalGeneration.from_pretrained(MODEL_DIR, dtype=torch.float32).eval()


def tensors(batch: Batch) -> dict[str, Any]:
    return {
        name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in vars(batch).items()
    }


def test_training_predicts_what_transformers_predicts(step: tuple[Batch, ...], model: Any):
    for batch in map(tensors, step):
        _, height, width, _ = batch["pixels"].shape
        area = height * width // 28**2
        shown = batch["features"].view(-1, area)[:, 0] // area
        grid = torch.tensor([[1, height // 14, width // 14]] * len(shown))
        pictures = batch["tokens"] == model.config.image_token_id

        with torch.inference_mode():
            ours = model.lm_head(hidden_states(model, batch)[0])
            theirs = model(
                input_ids=batch["tokens"],
                pixel_values=patches(batch["pixels"])[shown].flatten(0, 1),
                image_grid_thw=grid,
                mm_token_type_ids=pictures.int(),
            ).logits
            positions, _ = model.model.get_rope_index(
                batch["tokens"], image_grid_thw=grid, mm_token_type_ids=pictures.int()
            )

        assert torch.equal(positions, batch["positions"])
        assert torch.allclose(ours, theirs, atol=1e-3)


def test_only_answers_are_learned(step: tuple[Batch, ...]):
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)

    for batch in step:
        for labels in batch.labels:
            learned = tokenizer.decode(labels[labels != IGNORED])
            assert learned.endswith("<|im_end|>")
            assert "<|im_start|>" not in learned


def test_marks_name_the_animals_of_the_pictures(step: tuple[Batch, ...]):
    pictures = step[0]

    marked = (pictures.marks > 0).sum(axis=1)

    assert ((marked >= 1) & (marked <= 6)).all()


def test_the_learning_rate_rises_and_falls():
    rates = [schedule(done) for done in (0.0, 0.01, 0.02, 0.5, 1.0)]

    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0
