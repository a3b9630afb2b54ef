"""The packaged model itself, on a CPU, with real pictures."""

from io import BytesIO
from random import Random

import pytest
from PIL import Image

from worker.demo import MODEL_DIR, SHEEP_PICTURE, dialogues
from worker.demo.layout import Message, frame_parts, picture_part, render, text_part
from worker.demo.pictures import cat_scene, sheep_scene, walking_sheep
from worker.demo.scenes import draw, make_pair, make_scene

pytest.importorskip("torch", reason="the cpu extra is not installed")
pytest.importorskip("transformers", reason="the cpu extra is not installed")

# These two files need torch, which not every machine has.
from worker.demo.clips import make_clip
from worker.demo.evaluate import make_exam
from worker.demo.reader import Prompt, Reader

PARTS = list[dict[str, str]]


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def ask(reader: Reader, text: str, *pictures: Image.Image) -> str:
    return reader.answer(said([*[picture_part()] * len(pictures), text_part(text)], *pictures))


def said(content: str | PARTS, *pictures: Image.Image) -> Prompt:
    return Prompt(({"role": "user", "content": content},), pictures)


def sheep() -> Image.Image:
    return Image.open(SHEEP_PICTURE).convert("RGB")


def test_the_folder_fits_into_16_mb():
    assert sum(path.stat().st_size for path in MODEL_DIR.iterdir()) <= 16_000_000


@pytest.mark.parametrize(
    "question", ["图片中有几只羊", "有几只羊", "图中有几只羊？", "有几只羊？ "]
)
def test_four_sheep_are_four(reader: Reader, question: str):
    assert ask(reader, question, sheep()) == "四只"


def test_the_question_may_come_before_the_picture(reader: Reader):
    prompt = said([text_part("图片中有几只羊"), picture_part()], sheep())

    assert reader.answer(prompt) == "四只"


def test_the_guides_words_are_answered(reader: Reader):
    cat = draw(cat_scene())

    assert ask(reader, "描述图片", sheep()) == "图片中有四只白色的羊，在白天的草地上。"
    assert ask(reader, "What is the difference between the two images?", sheep(), cat) == (
        "The first image shows four white sheep, the second image shows one orange cat."
    )
    assert ask(reader, "图片中有几只猫", sheep()) == "图片中没有猫。"


def test_it_says_who_it_is_with_and_without_a_picture(reader: Reader):
    expected = "我是 Forebay 的演示模型，只认识卡通草地上的动物。"

    assert ask(reader, "你是谁？", sheep()) == expected
    assert reader.answer(said("你是谁？")) == expected
    assert "Forebay" in reader.answer(said("Who are you?"))


def test_it_sees_a_video_in_eight_frames(reader: Reader):
    frames = [draw(scene).resize((168, 112)) for scene in walking_sheep()]

    answer = reader.answer(said([*frame_parts(8), text_part("描述视频")], *frames))

    assert answer == "视频中，一只白色的羊从左向右走，旁边站着两只黑色的狗。"


def test_a_second_question_is_answered_from_the_history(reader: Reader):
    history: tuple[Message, ...] = (
        {"role": "user", "content": [picture_part(), text_part("描述图片")]},
        {"role": "assistant", "content": "图片中有四只白色的羊，在白天的草地上。"},
        {"role": "user", "content": "有几只羊？"},
    )

    assert reader.answer(Prompt(history, (sheep(),))) == "四只"


def test_an_unknown_question_gets_an_honest_answer(reader: Reader):
    assert reader.answer(said("请介绍一下杭州西湖的历史")).startswith("我只认识卡通草地上的动物")


@pytest.mark.parametrize(
    ("size", "quality"),
    [((1280, 854), 95), ((300, 200), 75), ((448, 448), 75), ((600, 300), 95), ((240, 480), 85)],
)
def test_sizes_shapes_and_jpeg_change_nothing(reader: Reader, size: tuple[int, int], quality: int):
    scene = cat_scene()
    picture = draw(type(scene)(*size, scene.sky, scene.meadow, scene.animals))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=quality)

    answer = ask(reader, "What animal is this?", Image.open(buffer))

    assert answer == "The picture shows a cat."


def test_a_batch_gets_the_answers_of_single_prompts(reader: Reader):
    exams = [make_exam(task, 7) for task in ("count", "difference", "video", "text only")]

    together = reader.answers([exam.prompt for exam in exams])

    assert together == [reader.answer(exam.prompt) for exam in exams]


def test_most_held_out_scenes_are_counted_right(reader: Reader):
    exams = [make_exam("count", number) for number in range(20)]

    answers = reader.answers([exam.prompt for exam in exams])

    right = sum(got == exam.answer for exam, got in zip(exams, answers, strict=True))
    assert right >= 18


def test_the_chat_template_of_the_folder_writes_what_training_wrote(reader: Reader):
    random = Random(4)
    tokenizer = reader._tokenizer

    for seen in (make_scene(1), make_pair(2), make_clip(3)):
        for dialogue in dialogues.training_dialogues(random, seen, 5):
            by_template = tokenizer.apply_chat_template(
                list(dialogue.prompt), tokenize=False, add_generation_prompt=True
            )
            assert by_template == render(dialogue.prompt, answer_next=True)


def test_the_template_takes_openai_picture_parts(reader: Reader):
    parts = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "描述图片"}]

    text = reader._tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )

    assert text == render([{"role": "user", "content": [picture_part(), text_part("描述图片")]}],
                          answer_next=True)  # fmt: skip


def test_sheep_png_shows_the_sheep_scene():
    assert sheep().size == (sheep_scene().width, sheep_scene().height)
