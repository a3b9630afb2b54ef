from random import Random

import pytest

from worker.demo import dialogues, language, questions
from worker.demo.clips import Clip, ClipEvent, make_clip
from worker.demo.layout import frame_parts, render
from worker.demo.pictures import cat_scene, sheep_scene
from worker.demo.scenes import Scene, make_pair, make_scene


def test_four_sheep_are_counted_in_both_languages():
    assert language.count(sheep_scene(), "sheep", None, "zh") == "四只"
    assert language.count(sheep_scene(), "sheep", None, "en") == "There are four sheep."


def test_what_is_not_there_is_named():
    assert language.count(sheep_scene(), "cat", None, "zh") == "图片中没有猫。"
    assert language.present(sheep_scene(), "cat", None, "en") == "There is no cat in the picture."


def test_a_picture_is_described_in_both_languages():
    assert language.describe(sheep_scene(), "zh") == "图片中有四只白色的羊，在白天的草地上。"
    expected = "The picture shows one orange cat on a meadow in the evening."
    assert language.describe(cat_scene(), "en") == expected


def test_the_difference_of_equal_pictures_is_none():
    answer = language.difference(sheep_scene(), sheep_scene(), "zh")

    assert answer == "两张图片没有区别，都有四只白色的羊。"


def test_one_more_animal_comes_and_two_more_come():
    joins = [clip for clip in map(make_clip, range(80)) if clip.event == ClipEvent.JOIN]
    by_number = {end - start: clip for clip in joins for start, end in [clip.counts]}

    assert "then one more comes," in language.describe_clip(by_number[1], "en")
    assert "then two more come," in language.describe_clip(by_number[2], "en")


@pytest.mark.parametrize("task", questions.PICTURE_TASKS)
@pytest.mark.parametrize("spoken", language.LANGUAGES)
def test_every_question_about_a_picture_has_words_and_an_answer(task: str, spoken: str):
    random = Random(1)

    asked = [questions.about_picture(random, make_scene(seed), task, spoken) for seed in range(30)]

    assert all(question.text.strip() and question.answer for question in asked)
    assert len({question.text for question in asked}) > 5
    assert not any("{" in question.text for question in asked)


def test_dialogues_name_as_many_pictures_as_they_show():
    random = Random(2)
    seen: list[Scene | tuple[Scene, Scene] | Clip] = [make_scene(1), make_pair(1), make_clip(1)]

    for one in seen:
        for dialogue in dialogues.training_dialogues(random, one, 20):
            text = render(dialogue.messages, answer_next=False)
            assert text.count("<|image_pad|>") == len(dialogue.pictures)
            assert dialogue.messages[-1]["role"] == "assistant"


def test_a_video_is_frames_with_labels_before_the_question():
    content = [*frame_parts(2), {"type": "text", "text": "描述视频"}]

    text = render([{"role": "user", "content": content}], answer_next=True)

    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == (
        f"<|im_start|>user\nFrame1: {picture}\nFrame2: {picture}\n描述视频<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
