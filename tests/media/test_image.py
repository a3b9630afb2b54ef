"""What Pillow's door makes of pictures, good and bad."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.support import media_files as files
from worker.contract.errors import MediaTooLarge, MediaUnreadable, MediaUnsupported
from worker.contract.job import MediaProfile
from worker.media.image import MAX_SCANS, decode, encode_frame, fitted_size, prepare, size_if_fit

LIMIT = 64_000_000
PROFILE = MediaProfile(max_pixels=28 * 28 * 16, multiple=28)
ROOMY = MediaProfile(max_pixels=10**6, multiple=28)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_upright_rgb_picture_that_fits_stays_as_it_is(form: str) -> None:
    data = files.picture(64, 48, form)

    found = prepare(data, PROFILE, LIMIT)

    assert found.is_original
    assert found.data == data
    assert (found.width, found.height) == (64, 48)
    assert found.content_type == f"image/{form.lower()}"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_shrunk_to_whole_multiples(form: str) -> None:
    found = prepare(files.picture(400, 300, form), PROFILE, LIMIT)

    assert not found.is_original
    assert found.content_type == "image/jpeg"
    assert (found.width, found.height) == (112, 84)
    pixels = decode(found.data)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (84, 112, 3)


def test_a_shrunk_picture_still_shows_the_same() -> None:
    found = prepare(files.picture(1600, 1200, "JPEG", quality=95), PROFILE, LIMIT)

    difference = np.abs(decode(found.data).astype(int) - files.gradient(112, 84).astype(int))
    assert difference.mean() < 3


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("size", [(64, 48), (1600, 1200)])
def test_photos_are_turned_upright(orientation: int, size: tuple[int, int]) -> None:
    found = prepare(files.turned_jpeg(orientation, *size), PROFILE, LIMIT)

    width, height = (48, 64) if orientation >= 5 else (64, 48)
    assert (found.width > found.height) == (width > height)
    pixels = decode(found.data).astype(int)
    turned = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
              5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
              7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
    expected = turned[orientation](files.gradient(*size).astype(int))
    corners = np.ix_([2, -3], [2, -3])
    assert np.abs(pixels[corners] - expected[corners]).max() < 30


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))

    found = prepare(files.encoded(clear), PROFILE, LIMIT)

    assert decode(found.data).min() == 255


def test_a_palette_with_a_transparent_colour_is_laid_on_white() -> None:
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])

    found = prepare(files.encoded(palette, transparency=0), PROFILE, LIMIT)

    assert decode(found.data).min() == 255


def test_sixteen_bit_samples_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 32, dtype=np.uint16)[None, :].repeat(32, 0)

    found = prepare(files.encoded(Image.fromarray(ramp)), PROFILE, LIMIT)

    assert decode(found.data)[16, :, 0].astype(int) == pytest.approx(np.linspace(0, 255, 32), abs=4)


@pytest.mark.parametrize(
    ("mode", "colour", "form", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("L", 100, "PNG", (100, 100, 100)),
        ("LA", (100, 0), "PNG", (255, 255, 255)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("P", 0, "GIF", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(
    mode: str, colour: object, form: str, expected: Sequence[float]
) -> None:
    found = prepare(files.encoded(Image.new(mode, (32, 32), colour), form), PROFILE, LIMIT)

    assert decode(found.data)[16, 16].astype(int) == pytest.approx(expected, abs=3)


def test_of_an_animation_the_first_picture_is_taken() -> None:
    found = prepare(files.animated_gif(5), PROFILE, LIMIT)

    assert decode(found.data).mean() == pytest.approx(files.grey(0), abs=2)


def test_floating_point_samples_are_refused() -> None:
    with pytest.raises(MediaUnsupported, match="floating point"):
        prepare(files.encoded(Image.new("F", (8, 8)), "TIFF"), PROFILE, LIMIT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("size", [(64, 48), (400, 300)])
def test_a_picture_that_is_cut_off_is_unreadable(form: str, size: tuple[int, int]) -> None:
    data = files.picture(*size, form)

    with pytest.raises(MediaUnreadable):
        prepare(data[: len(data) * 2 // 3], PROFILE, LIMIT)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_fits_is_told_by_its_size(form: str) -> None:
    assert size_if_fit(files.picture(64, 48, form), PROFILE, LIMIT) == (64, 48)


@pytest.mark.parametrize(
    "data",
    [files.picture(400, 300, "JPEG"), files.picture(64, 48, "GIF"), files.turned_jpeg(6, 64, 48)],
    ids=["large", "gif", "turned"],
)
def test_a_picture_that_must_be_changed_has_no_size_yet(data: bytes) -> None:
    assert size_if_fit(data, PROFILE, LIMIT) is None


@given(
    st.booleans(), st.integers(0, 10**6), st.integers(0, 300), st.binary(max_size=3), st.booleans()
)
def test_a_jpeg_counts_as_whole_where_decoding_it_succeeds(
    progressive: bool, at: int, lost: int, instead: bytes, ends: bool
) -> None:
    whole = files.picture(333, 222, "JPEG", progressive=progressive)
    header = whole.index(b"\xff\xda")
    at = header + at % (len(whole) - header)
    data = whole[:at] if ends else whole[:at] + instead + whole[at + lost :]

    assert is_refused(lambda: size_if_fit(data, ROOMY, LIMIT)) == is_refused(lambda: decode(data))


def is_refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except MediaUnreadable:
        return True
    return False


def test_a_picture_cut_off_is_unreadable_even_where_pillow_was_told_otherwise() -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_bomb_is_refused_by_its_header() -> None:
    with pytest.raises(MediaTooLarge):
        prepare(files.bomb_png(), PROFILE, LIMIT)


@pytest.mark.parametrize("side", [8001, 9000, 12000])
def test_a_picture_just_over_the_limit_is_refused_as_well(side: int) -> None:
    with pytest.raises(MediaTooLarge):
        prepare(files.bomb_png(side), PROFILE, LIMIT)


def test_a_tiffs_tiles_are_part_of_what_is_decoded() -> None:
    assert prepare(files.tiled_tiff(256), PROFILE, 256 * 256).width == 64
    with pytest.raises(MediaTooLarge, match="256 × 256"):
        prepare(files.tiled_tiff(256), PROFILE, 256 * 256 - 1)
    with pytest.raises(MediaUnreadable):
        prepare(files.tiled_tiff(256, in_64_bits=True), PROFILE, 256 * 256 - 1)


@pytest.mark.parametrize("read", [prepare, size_if_fit])
def test_a_jpeg_that_is_gone_over_again_and_again_is_refused(read: Callable[..., object]) -> None:
    assert read(files.scanned_jpeg(MAX_SCANS), ROOMY, LIMIT)
    with pytest.raises(MediaUnsupported, match="100 scans"):
        read(files.scanned_jpeg(MAX_SCANS + 1), ROOMY, LIMIT)


def test_of_a_jpeg_only_its_own_scans_count() -> None:
    others = b"\xff\xda\0\2" * 2 * MAX_SCANS
    photo = files.picture(64, 48, "JPEG", progressive=True, comment=others)

    assert size_if_fit(photo + b"\0\2" + others, ROOMY, LIMIT) == (64, 48)


def test_a_thumbnails_end_in_a_jpeg_is_not_its_own() -> None:
    bomb = files.scanned_jpeg(MAX_SCANS + 1)
    comment = b"\xff\xfe\0\4\xff\xd9"

    with pytest.raises(MediaUnsupported, match="100 scans"):
        size_if_fit(bomb[:2] + comment + bomb[2:], ROOMY, LIMIT)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (3000, 20)])
def test_extreme_shapes_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaUnsupported, match="times the other"):
        prepare(files.picture(*size), ROOMY, LIMIT)


@pytest.mark.parametrize("size", [(100, 1), (1, 1), (5000, 50), (30, 2000)])
def test_shapes_just_short_of_extreme_are_taken(size: tuple[int, int]) -> None:
    found = prepare(files.picture(*size), PROFILE, LIMIT)

    assert found.width * found.height <= PROFILE.max_pixels


@given(
    st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 10**7), st.sampled_from([1, 28])
)
def test_a_fitted_size_holds_the_bound_in_whole_multiples(
    width: int, height: int, max_pixels: int, multiple: int
) -> None:
    found = fitted_size(width, height, max_pixels, multiple)

    if width * height <= max_pixels:
        assert found == (width, height)
    else:
        assert all(side >= multiple and side % multiple == 0 for side in found)
        assert found[0] * found[1] <= max(max_pixels, multiple**2)


def test_a_frame_becomes_a_bounded_jpeg() -> None:
    found = encode_frame(files.gradient(640, 480), 28 * 28 * 4, 28)

    assert (found.width, found.height) == (56, 28)
    assert decode(found.data).shape == (28, 56, 3)


def test_a_damaged_prepared_picture_is_unreadable() -> None:
    with pytest.raises(MediaUnreadable):
        decode(files.picture()[:100])
