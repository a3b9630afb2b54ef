import subprocess
import sys
from dataclasses import replace

import pytest

from worker.demo import SHEEP_PICTURE
from worker.demo.clips import ClipEvent, make_clip
from worker.demo.pictures import cat_scene, sheep_scene, walking_sheep
from worker.demo.scenes import (
    COLOURS_OF,
    MAX_ANIMALS,
    draw,
    make_pair,
    make_scene,
)


def test_the_same_seed_draws_the_same_picture():
    first, again, other = make_scene(17), make_scene(17), make_scene(18)

    assert first == again
    assert draw(first).tobytes() == draw(again).tobytes()
    assert draw(first).tobytes() != draw(other).tobytes()


def test_the_same_seed_makes_the_same_pair_and_the_same_clip():
    assert make_pair(5) == make_pair(5)
    assert make_clip(5) == make_clip(5)


def test_drawing_twice_leaves_the_first_picture_as_it_was():
    scene = make_scene(3)
    picture = draw(scene)
    before = picture.tobytes()

    draw(replace(scene, animals=()))

    assert picture.tobytes() == before


@pytest.mark.parametrize("size", [(448, 336), (336, 448), (224, 224), (400, 200), (200, 400)])
def test_scenes_of_every_shape_hold_one_to_six_known_animals_inside_the_picture(
    size: tuple[int, int],
):
    for seed in range(60):
        scene = make_scene(seed, *size)

        assert 1 <= len(scene.animals) <= MAX_ANIMALS
        assert scene.count() == len(scene.animals) == sum(group.count for group in scene.groups)
        for animal in scene.animals:
            assert animal.colour in COLOURS_OF[animal.kind]
            assert 0 < animal.x < 1
            assert 0.5 < animal.y < 1
        assert draw(scene).size == size


def test_counts_ask_for_kind_colour_or_all():
    scene = sheep_scene()

    assert scene.count("sheep") == 4
    assert scene.count("sheep", "white") == 4
    assert scene.count("sheep", "black") == 0
    assert scene.count() == 4


def test_pairs_are_sometimes_equal_and_mostly_different():
    pairs = [make_pair(seed) for seed in range(100)]

    equal = [first == second for first, second in pairs]

    assert 3 < sum(equal) < 40


def test_a_walking_animal_goes_the_way_its_event_says():
    clips = [make_clip(seed) for seed in range(60)]

    walks = [clip for clip in clips if clip.event in (ClipEvent.WALKS_LEFT, ClipEvent.WALKS_RIGHT)]

    assert walks
    for clip in walks:
        start, end = (
            next(one for one in frame.animals if (one.kind, one.colour) == (clip.kind, clip.colour))
            for frame in (clip.frames[0], clip.frames[-1])
        )
        facing = "right" if clip.event == ClipEvent.WALKS_RIGHT else "left"
        assert start.facing == end.facing == facing
        assert (end.x > start.x) == (facing == "right")


def test_joining_animals_become_more_and_leaving_ones_fewer():
    clips = [make_clip(seed) for seed in range(60)]

    for clip in clips:
        start, end = clip.counts
        if clip.event == ClipEvent.JOIN:
            assert 1 <= start < end <= 5
        if clip.event == ClipEvent.LEAVE:
            assert 1 <= end < start <= 5


def test_the_walking_sheep_of_the_tests_walks_from_left_to_right():
    places = [scene.animals[-1].x for scene in walking_sheep(16)]

    assert len(places) == 16
    assert places == sorted(places)


def test_the_packaged_pictures_are_small():
    assert SHEEP_PICTURE.stat().st_size < 60_000
    assert SHEEP_PICTURE.with_name("cat.png").stat().st_size < 60_000
    assert cat_scene().count("cat") == 1


def test_importing_the_package_loads_neither_torch_nor_pillow():
    check = "import sys, worker.demo; print([m for m in ('torch', 'PIL') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
