"""Where texts and pictures stand in a prompt of LMDeploy's, and that no text is left out."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.prompts import picture
from worker.contract.errors import EngineFailed
from worker.engine.base import Clip, Turn
from worker.engine.lmdeploy.layout import AFTER, BEFORE, Layout, check_whole

ONE, TWO = picture(seed=1), picture(seed=2)
CLIP = Clip((ONE, TWO), (0.5, 1.5), "sha")
TRIED: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": BEFORE},
            {"type": "image", "data": None},
            {"type": "text", "text": AFTER},
        ],
    }
]


def laid_out(layout: Layout, *parts: Any) -> tuple[Any, ...]:
    (turn,) = layout.of((Turn("user", parts),))
    return turn.parts


@pytest.mark.parametrize(
    ("prompt", "layout"),
    [
        (f"<user>{BEFORE}<img>{AFTER}", Layout(takes_video=False)),
        (f"<user>{BEFORE}<img>\n{AFTER}", Layout(takes_video=False, breaks=True)),
        (f"<user><img>\n{BEFORE}", Layout(takes_video=False, keeps_texts=False)),
        (f"<user><img>{AFTER} {BEFORE}", Layout(takes_video=False, keeps_texts=False)),
    ],
    ids=["as it is", "a newline of its own", "the first text alone", "in another order"],
)
def test_a_models_layout_is_seen_in_a_prompt_that_it_made(prompt: str, layout: Layout):
    assert Layout.seen(prompt, takes_video=False) == layout


def test_a_clip_stays_whole_is_labelled_pictures_or_plain_ones_before_the_text():
    assert laid_out(Layout(takes_video=True), "a", CLIP, "b") == ("a", CLIP, "b")
    assert laid_out(Layout(takes_video=False), CLIP, "b") == (
        *("Frame1: ", ONE, "\n", "Frame2: ", TWO, "\n"),
        "b",
    )
    assert laid_out(Layout(takes_video=False, breaks=True), CLIP, "b") == (
        *("Frame1: ", ONE, "Frame2: ", TWO),
        "b",
    )
    assert laid_out(Layout(takes_video=False, keeps_texts=False), CLIP, "b") == (ONE, TWO, "b")


def test_texts_are_one_behind_the_pictures_where_a_model_keeps_only_the_first():
    layout = Layout(takes_video=False, keeps_texts=False)

    assert laid_out(layout, "Compare", ONE, "with", TWO, "!") == (ONE, TWO, "Compare\nwith\n!")
    assert laid_out(layout, ONE) == (ONE, "")
    assert layout.of((Turn("assistant", ("a", "b")),)) == (Turn("assistant", ("a", "b")),)


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_text_that_the_prompt_lacks_fails_the_job(role: str):
    turns = (Turn(role, (ONE, "Be kind. \n")), Turn("assistant", ("<think>?</think>!",)))

    check_whole(turns, f"<{role}>Be kind.", str)
    with pytest.raises(EngineFailed, match=f"leaves out a text of the {role}"):
        check_whole(turns, "<user>Frame1: ", str)


@pytest.mark.parametrize(
    ("module", "model", "layout"),
    [
        ("glm4_v", "GLM4VisionModel", Layout(takes_video=False, keeps_texts=False)),
        ("gemma3_vl", "Gemma3VisionModel", Layout(takes_video=False, keeps_texts=False)),
        ("llava_hf", "LlavaHfVisionModel", Layout(takes_video=False, keeps_texts=False)),
        ("internvl", "InternVLVisionModel", Layout(takes_video=False, breaks=True)),
        ("qwen2", "Qwen2VLModel", Layout(takes_video=False)),
    ],
)
def test_lmdeploys_own_models_are_seen_through(module: str, model: str, layout: Layout):
    pytest.importorskip("lmdeploy", reason="LMDeploy is not installed")
    from lmdeploy.model import MODELS  # noqa: PLC0415 - both need LMDeploy
    from lmdeploy.vl.model.base import VISION_MODELS  # noqa: PLC0415

    pytest.importorskip(f"lmdeploy.vl.model.{module}")
    render = vars(VISION_MODELS.get(model))["proc_messages"]
    me = () if isinstance(render, staticmethod) else (SimpleNamespace(image_token="<image>"),)

    prompt, _ = render(*me, [*TRIED], MODELS.get("base")())

    assert Layout.seen(prompt, takes_video=False) == layout
