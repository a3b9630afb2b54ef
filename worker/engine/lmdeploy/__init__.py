"""LMDeploy on GPUs: TurboMind or its PyTorch engine, fed by processes of their own.

Written against LMDeploy 0.18. The engine's loop does nothing but hand prepared tensors in and token
ids out; LMDeploy's own server renders, tokenizes, preprocesses pictures, hashes them and decodes
every single token on that loop. The only package of this house that knows lmdeploy.
"""

from worker.engine.lmdeploy.engine import LmdeployEngine

__all__ = ["LmdeployEngine"]
