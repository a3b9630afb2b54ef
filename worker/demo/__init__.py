"""The demo model: a tiny vision-language model, the cartoon meadows it knows, and its training.

Importing this costs nothing; `scenes` needs Pillow, `reader`, `train` and `evaluate` need the `cpu`
extra (torch and transformers).
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""The packaged Hugging Face folder, what `--model demo` means."""

SHEEP_PICTURE = Path(__file__).parent / "sheep.png"
"""A picture with exactly four sheep, drawn by `python -m worker.demo.pictures`."""
