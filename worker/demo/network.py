"""The training pass of the demo model: transformers' modules, driven for batches of equal pictures.

transformers' own forward pass attends picture by picture and walks over grids in Python, which
leaves a GPU idle. Pictures of one size can be attended as one batch; weights and arithmetic are the
same (tests/demo/ compares both passes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.demo.batches import IGNORED, SPECIES
from worker.demo.folder import CELL, MERGE, PATCH


def patches(pixels: Tensor) -> Tensor:
    """Cut pictures into patches in the order of Qwen2-VL's preprocessor.

    Args:
        pixels: uint8 (pictures, height, width, 3); sides are multiples of 28.

    Returns:
        float32 (pictures, patches, 1176), values -1 to 1; the frame stands twice, as a still does.
    """
    count, height, width, _ = pixels.shape
    split = pixels.view(count, height // CELL, MERGE, PATCH, width // CELL, MERGE, PATCH, 3)
    ordered = split.permute(0, 1, 4, 2, 5, 7, 3, 6).float() / 127.5 - 1.0
    doubled = ordered.unsqueeze(6).expand(*ordered.shape[:6], 2, PATCH, PATCH)
    return doubled.reshape(count, (height // PATCH) * (width // PATCH), -1)


def picture_features(model: Any, pixels: Tensor) -> Tensor:
    """Encode pictures of one size.

    Args:
        model: a Qwen2VLForConditionalGeneration.
        pixels: uint8 (pictures, height, width, 3).

    Returns:
        (pictures × cells, 256), cells in reading order.
    """
    tower = model.model.visual
    weight = tower.patch_embed.proj.weight.flatten(1)  # a convolution without overlap is a product
    hidden = functional.linear(patches(pixels), weight)
    cosine, sine = _vision_rotation(pixels.shape[1] // PATCH, pixels.shape[2] // PATCH, tower)
    for block in tower.blocks:
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cosine, sine)
        hidden = hidden + block.mlp(block.norm2(hidden))
    features: Tensor = tower.merger(hidden)
    return features


def _vision_rotation(tall: int, wide: int, tower: Any) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (patches, 64) of the rotary position of every patch."""
    rows = torch.arange(tall).view(tall // MERGE, MERGE, 1, 1).expand(-1, -1, wide // MERGE, MERGE)
    columns = (
        torch.arange(wide).view(1, 1, wide // MERGE, MERGE).expand(tall // MERGE, MERGE, -1, -1)
    )
    places = torch.stack([rows, columns], dim=-1).transpose(1, 2).reshape(-1, 2)
    frequencies = tower.rotary_pos_emb.inv_freq
    angles = places.to(frequencies.device)[:, :, None] * frequencies
    doubled = angles.flatten(1).repeat(1, 2)
    return doubled.cos(), doubled.sin()


def _attend(attention: Any, hidden: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    count, length, width = hidden.shape
    mixed = (
        attention.qkv(hidden).view(count, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    )
    query, key, value = mixed.unbind(0)
    query, key = _rotated(query, cosine, sine), _rotated(key, cosine, sine)
    seen = functional.scaled_dot_product_attention(query, key, value)
    out: Tensor = attention.proj(seen.transpose(1, 2).reshape(count, length, width))
    return out


def _rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    left, right = heads.float().chunk(2, dim=-1)
    turned = heads.float() * cosine + torch.cat([-right, left], dim=-1) * sine
    return turned.to(heads.dtype)


def hidden_states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run the model over a batch; the batch's tensors are named and shaped as in `batches.Batch`.

    Returns:
        States before the output layer (dialogues, length, 256), and picture features
        (pictures × cells, 256).
    """
    tokens = batch["tokens"]
    embedded = model.model.language_model.embed_tokens(tokens)
    seen = picture_features(model, batch["pixels"])
    places = (tokens == model.config.image_token_id).unsqueeze(-1).expand_as(embedded)
    embedded = embedded.masked_scatter(places, seen[batch["features"]].to(embedded.dtype))
    # Padding stands on the right, so causal attention needs no mask.
    states = model.model.language_model(
        inputs_embeds=embedded, position_ids=batch["positions"], use_cache=False
    ).last_hidden_state
    return states, seen


def new_marker(model: Any) -> nn.Linear:
    """Make the layer that names the animal in each cell; it is thrown away after training.

    Counting alone teaches the vision tower slowly. Naming what stands where teaches it directly.
    The layer begins with zeros, so that it has learned something itself before it moves a tower
    that is already trained.
    """
    marker = nn.Linear(model.config.text_config.hidden_size, len(SPECIES) + 1)
    nn.init.zeros_(marker.weight)
    nn.init.zeros_(marker.bias)
    return marker


def losses(model: Any, marker: nn.Linear, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy of the answers' tokens, and that of the marked cells.

    Cells with and without an animal weigh the same, although most are empty.
    """
    states, seen = hidden_states(model, batch)
    learned = batch["labels"] != IGNORED
    answers = functional.cross_entropy(
        model.lm_head(states[learned]).float(), batch["labels"][learned]
    )
    named, truth = marker(seen).float(), batch["marks"].flatten()
    by_cell = functional.cross_entropy(named, truth, reduction="none")
    occupied = truth > 0
    return answers, (by_cell[occupied].mean() + by_cell[~occupied].mean()) / 2
