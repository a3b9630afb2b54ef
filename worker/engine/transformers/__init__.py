"""Any Hugging Face vision-language or text model on a CPU: for laptops, demos and tests.

The only package of this house that knows torch and transformers, beside the demo's training.
"""

from worker.engine.transformers.engine import TransformersEngine

__all__ = ["TransformersEngine"]
