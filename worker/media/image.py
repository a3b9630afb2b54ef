"""The only door to Pillow: any picture file becomes an upright RGB picture of bounded size."""

import io
import math
import struct
import warnings
import zlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from worker.contract.errors import MediaTooLarge, MediaUnreadable, MediaUnsupported
from worker.contract.job import MediaProfile
from worker.media.scans import has_more_scans
from worker.media.tiles import tile_size

Pixels = npt.NDArray[np.uint8]
"""uint8 (height, width, 3), RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""All that Pillow may try. Without the list it would run Ghostscript on an EPS file."""

JPEG_QUALITY = 95  # with 4:4:4 about 40 dB, a tenth of raw, 5 ms a megapixel
MAX_SCANS = 100  # of a JPEG, libtiff's bound; an encoder makes a dozen, a file has room for 200 000
MAX_ASPECT = 100  # Qwen2-VL refuses 200; rounding the short side may double a ratio

_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
_JPEGS = frozenset({"JPEG", "MPO"})  # an MPO is a JPEG with more of them behind it
_ORIENTATION, _UPRIGHT, _SIDEWAYS = 0x0112, 1, frozenset({5, 6, 7, 8})  # EXIF tag, its values
_WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
# What Pillow's decoders raise on damaged files, found by feeding them 2800 of those.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError,
           AttributeError, RuntimeError, struct.error, zlib.error)  # fmt: skip

# Our own limit is checked on every picture; Pillow's warning, should it ever come first, must stop.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # odd metadata
warnings.simplefilter("error", Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An encoded picture for a model; `is_original` where `data` are the very bytes given.

    `width` × `height` in pixels.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    content_type: str
    is_original: bool


def prepare(data: bytes, profile: MediaProfile, max_source_pixels: int) -> Prepared:
    """Make a picture upright, RGB and at most `profile.max_pixels` large.

    JPEG, PNG and WebP that are so already stay as they are. Of an animation the first picture is
    taken, transparency is laid on white, 16-bit samples are scaled down to 8.

    Args:
        data: a whole file in one of `FORMATS`.
        profile: what the model wants; resized sides are multiples of `profile.multiple`.
        max_source_pixels: bound of width × height, checked before anything is decoded.

    Raises:
        MediaUnreadable: truncated or damaged.
        MediaTooLarge: more than `max_source_pixels`, also in one tile of a TIFF.
        MediaUnsupported: more than `MAX_ASPECT` times as long as wide, floating point samples, or
            a JPEG of more than `MAX_SCANS` scans.
    """
    try:
        with _open(data, max_source_pixels) as source:
            if _is_fit(source, profile.max_pixels):
                return _as_it_is(data, source)
            picture = _resized(source, profile)
            return Prepared(_encoded(picture), *picture.size, "image/jpeg", is_original=False)
    except _DAMAGE as error:
        raise MediaUnreadable(f"the picture is damaged or cut off ({_short(error)})") from error


def size_if_fit(
    data: bytes, profile: MediaProfile, max_source_pixels: int
) -> tuple[int, int] | None:
    """Return width × height of a picture that `prepare` would leave as it is, None for others.

    Such a picture is proved to be whole, at a fraction of what decoding it takes. Raises as
    `prepare` does.
    """
    try:
        with _open(data, max_source_pixels) as source:
            if not _is_fit(source, profile.max_pixels):
                return None
            return _proved_whole(source)
    except _DAMAGE as error:
        raise MediaUnreadable(f"the picture is damaged or cut off ({_short(error)})") from error


def decode(data: bytes) -> Pixels:
    """Decode a prepared picture, for an engine. Raises MediaUnreadable."""
    try:
        with Image.open(io.BytesIO(data), formats=list(_AS_THEY_ARE)) as picture:
            return np.asarray(picture.convert("RGB"))
    except _DAMAGE as error:
        raise MediaUnreadable(f"a prepared picture is damaged ({_short(error)})") from error


def encode_frame(pixels: Pixels, max_pixels: int, multiple: int) -> Prepared:
    """Make one video frame a JPEG of at most `max_pixels`. Raises MediaUnsupported as `prepare`."""
    height, width = pixels.shape[:2]
    _check_aspect(width, height)
    target = fitted_size(width, height, max_pixels, multiple)
    picture = _scaled(Image.fromarray(pixels), target)
    return Prepared(_encoded(picture), *picture.size, "image/jpeg", is_original=False)


def fitted_size(width: int, height: int, max_pixels: int, multiple: int) -> tuple[int, int]:
    """Return the size to which a picture is resized; its own where it fits.

    Otherwise the aspect is kept as far as whole multiples go: each side is rounded down, and is one
    multiple at least, the other then giving way so that `max_pixels` still holds (unless even one
    multiple squared is more).
    """
    if width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    fitted = [max(multiple, int(side * scale) // multiple * multiple) for side in (width, height)]
    longer = 0 if width >= height else 1
    room = max_pixels // fitted[1 - longer] // multiple * multiple
    fitted[longer] = max(multiple, min(fitted[longer], room))
    return fitted[0], fitted[1]


def _open(data: bytes, max_source_pixels: int) -> Image.Image:
    """Read the header and check it; no pixel is decoded."""
    try:
        source = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaTooLarge(f"the picture has more than {max_source_pixels} pixels") from error
    tiles = tile_size(data) if source.format == "TIFF" else (0, 0)
    for width, height in (source.size, tiles):
        if width * height > max_source_pixels:
            raise MediaTooLarge(
                f"the picture has {width} × {height} pixels; the limit is {max_source_pixels}"
            )
    _check_aspect(*source.size)
    if source.format in _JPEGS and has_more_scans(data, MAX_SCANS):
        raise MediaUnsupported(f"the JPEG has more than {MAX_SCANS} scans; save it anew")
    return source


def _check_aspect(width: int, height: int) -> None:
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise MediaUnsupported(
            f"{width} × {height} pixels: no side may be more than {MAX_ASPECT} times the other"
        )


def _is_fit(source: Image.Image, max_pixels: int) -> bool:
    """Return whether a model's own processor would read these bytes as we would."""
    return (
        (source.format in _AS_THEY_ARE)
        and source.mode == "RGB"
        and source.width * source.height <= max_pixels
        and not source.has_transparency_data
        and not getattr(source, "is_animated", False)
        and source.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT
    )


def _as_it_is(data: bytes, source: Image.Image) -> Prepared:
    content_type = _AS_THEY_ARE[str(source.format)]
    return Prepared(data, *_proved_whole(source), content_type, is_original=True)


def _proved_whole(source: Image.Image) -> tuple[int, int]:
    """Return width × height of a picture that can be decoded to its end; only decoding tells."""
    size = source.size
    # libjpeg reads all of the file at 1/8 of the size as well: what it leaves out are the steps
    # from coefficients to pixels, which cannot fail. Other formats take no notice.
    source.draft(source.mode, (1, 1))
    source.load()
    return size


def _resized(source: Image.Image, profile: MediaProfile) -> Image.Image:
    target = fitted_size(*source.size, profile.max_pixels, profile.multiple)
    if source.format in _JPEGS and target != source.size:
        # libjpeg decodes at 1/2, 1/4 or 1/8 for a fraction of the time, never below the target.
        source.draft(source.mode, target)
    if source.getexif().get(_ORIENTATION, _UPRIGHT) in _SIDEWAYS:
        target = target[::-1]
    return _scaled(_rgb(ImageOps.exif_transpose(source)), target)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _WIDE_MODES:
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.mode == "F":
        raise MediaUnsupported("the picture has floating point samples; convert it to 8 or 16 bits")
    if picture.has_transparency_data:
        return _on_white(picture.convert("RGBA"))
    return picture.convert("RGB")


def _eight_bits(samples: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Scale 16-bit samples; Pillow's own conversion clips them, which turns most pictures white."""
    return (np.clip(samples.astype(np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)


def _on_white(picture: Image.Image) -> Image.Image:
    """Lay transparency on white; dropping it would show the colour beneath, often black."""
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _scaled(picture: Image.Image, target: tuple[int, int]) -> Image.Image:
    return picture if target == picture.size else picture.resize(target, Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def _short(error: BaseException) -> str:
    """Return Pillow's reason where it is a short sentence; some carry whole objects."""
    text = str(error)
    return text if 0 < len(text) <= 80 and "<" not in text else type(error).__name__  # noqa: PLR2004
