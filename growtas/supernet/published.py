"""Read published checkpoints by their published parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from growtas.errors import UsageError
from growtas.supernet.vit import VisionTransformer

_AUTOFORMER = (
    (r"patch_embed_super\.proj\.", "patch_embed.proj."),
    (r"\.attn_layer_norm\.", ".norm1."),
    (r"\.ffn_layer_norm\.", ".norm2."),
    (r"(blocks\.\d+)\.(fc[12])\.", r"\1.mlp.\2."),
    (r"\.rel_pos_embed_k\.embeddings_table_", ".key_table_"),
    (r"\.rel_pos_embed_v\.embeddings_table_", ".value_table_"),
)


def autoformer_name(published: str) -> str:
    """growtas' name of a parameter of the published AutoFormer."""
    for pattern, ours in _AUTOFORMER:
        published = re.sub(pattern, ours, published)
    return published


def load_autoformer(net: VisionTransformer, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of a published AutoFormer supernet.

    Build the net with ``qkv_bias="published"`` to reproduce its outputs: the released weights were trained
    with a qkv bias that is sliced contiguously.

    Args:
        net: a supernet of the same space.
        state_dict: published name to tensor; a checkpoint's ``{"model": …}`` wrapper is accepted.

    Raises:
        UsageError: names or shapes do not fit; the net is unchanged.

    Source: microsoft/Cream, AutoFormer, ``Vision_TransformerSuper``.
    """
    weights = state_dict.get("model", state_dict)
    renamed = {autoformer_name(name): value for name, value in weights.items()}
    own = net.state_dict()
    missing, unknown = sorted(set(own) - set(renamed)), sorted(set(renamed) - set(own))
    if missing or unknown:
        raise UsageError(
            "These are not the weights of this AutoFormer supernet: "
            f"{len(missing)} parameters are missing{_first(missing)} and {len(unknown)} are unknown"
            f"{_first(unknown)}. Build the net from the space that the checkpoint was trained on."
        )
    for name, value in renamed.items():
        if value.shape != own[name].shape:
            raise UsageError(
                f"{name} is {tuple(value.shape)} in the checkpoint, but {tuple(own[name].shape)} in this "
                "net; build the net from the space and the number of classes that the checkpoint has."
            )
    net.load_state_dict(renamed)


def _first(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""
