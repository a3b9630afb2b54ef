"""Scenes that the demo model knows, as data URLs."""

import base64
import io

import av

from worker.demo.pictures import walking_sheep
from worker.demo.scenes import draw


def png(scene: object) -> str:
    """Return a scene as a PNG."""
    out = io.BytesIO()
    draw(scene).save(out, "PNG")
    return data_url(out.getvalue(), "image/png")


def data_url(data: bytes, mime: str) -> str:
    """Return bytes as a data URL."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def film() -> str:
    """A second and a half of a sheep that walks to the right, as MP4."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 336, 224, "yuv420p"
        for scene in walking_sheep(24):
            container.mux(stream.encode(av.VideoFrame.from_image(draw(scene))))
        container.mux(stream.encode(None))
    return data_url(out.getvalue(), "video/mp4")
