"""How large a picture a model uses, read off its processor."""

from typing import Any

_DEFAULT_MAX_PIXELS = 1_003_520


def picture_limits(processor: Any) -> tuple[int, int]:
    """Return the pixels that a picture may have, and what its sides should be multiples of."""
    pictures = getattr(processor, "image_processor", None)
    size = dict(getattr(pictures, "size", None) or {})
    patch, merge = getattr(pictures, "patch_size", None), getattr(pictures, "merge_size", None)
    if isinstance(patch, int) and isinstance(merge, int):  # Qwen-like: longest_edge is an area
        return int(size.get("longest_edge") or _DEFAULT_MAX_PIXELS), patch * merge
    tiles = int(getattr(pictures, "max_patches", None) or 1)
    if "height" in size and "width" in size:
        return int(size["height"] * size["width"] * tiles), 1
    return _DEFAULT_MAX_PIXELS, 1
