"""What files are, by their bytes."""

import pytest
from PIL import Image

from tests.support import media_files as files
from worker.contract.errors import MediaUnreadable, MediaUnsupported
from worker.media.sniff import HEAD_BYTES, require, sniff

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)


@pytest.mark.parametrize(
    ("form", "name"),
    [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp"),
     ("TIFF", "tiff"), ("AVIF", "avif")],
)  # fmt: skip
def test_pictures_are_known_by_their_bytes(form: str, name: str) -> None:
    found = sniff(files.picture(form=form)[:HEAD_BYTES])

    assert found is not None
    assert found.name == name
    assert "image" in found.kinds


@pytest.mark.parametrize(
    ("form", "codec", "name"),
    [("mp4", "libx264", "mp4"), ("mov", "libx264", "mp4"), ("webm", "libvpx", "webm"),
     ("matroska", "libx264", "webm"), ("mpegts", "libx264", "mpegts"), ("avi", "mpeg4", "avi"),
     ("flv", "flv", "flv"), ("vob", "mpeg2video", "mpeg")],
)  # fmt: skip
def test_videos_are_known_by_their_bytes(form: str, codec: str, name: str) -> None:
    found = sniff(files.video(form, codec=codec, frames=3)[:HEAD_BYTES])

    assert found is not None
    assert found.name == name
    assert "video" in found.kinds


@pytest.mark.parametrize(
    "head",
    [b"hello world, this is no picture", b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"%!PS-Adobe-3.0 EPSF-3.0", b"#EXTM3U\n#EXTINF:1,\nhttp://10.0.0.1/", b"ffconcat version 1.0",
     b"BMX is a kind of bicycle, no bitmap", b"G" * 100, b"\0" * HEAD_BYTES],
)  # fmt: skip
def test_everything_else_is_unknown(head: bytes) -> None:
    assert sniff(head) is None
    with pytest.raises(MediaUnsupported):
        require(head, "image")


def test_an_empty_file_is_unreadable() -> None:
    with pytest.raises(MediaUnreadable, match="empty"):
        require(b"", "video")


def test_a_video_for_a_picture_is_named_as_such() -> None:
    with pytest.raises(MediaUnsupported, match=r"video \(mp4\), sent as a picture"):
        require(files.video(frames=1)[:HEAD_BYTES], "image")


def test_a_picture_for_a_video_is_named_as_such() -> None:
    with pytest.raises(MediaUnsupported, match=r"picture \(png\), sent as a video"):
        require(files.picture()[:HEAD_BYTES], "video")


def test_a_gif_is_both() -> None:
    head = files.encoded(Image.new("L", (8, 8)), "GIF")

    assert require(head, "image") is require(head, "video")


def test_heic_is_refused_with_a_way_out() -> None:
    with pytest.raises(MediaUnsupported, match="convert it to JPEG"):
        require(HEIC, "image")
