"""Read published checkpoints by their published parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.supernet import weights as foreign
from growtas.supernet.mobilenet import MobileNetV3
from growtas.supernet.vit import VisionTransformer

CHECKPOINT = "the checkpoint"

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
        state_dict: published name to tensor, alone or as ``{"model": …}`` and the like, with or without
            ``module.`` before the names; see :func:`growtas.supernet.weights.unwrapped`.

    Raises:
        UsageError: names, shapes or kinds of numbers do not fit, or a number is not finite; the net is
            unchanged.

    Source: microsoft/Cream, AutoFormer, ``Vision_TransformerSuper``.
    """
    if not isinstance(net, VisionTransformer):
        raise UsageError("AutoFormer's weights are for the supernet of a vision transformer's space.")
    weights = foreign.unwrapped(state_dict, CHECKPOINT)
    _load(net, foreign.renamed(weights, autoformer_name, CHECKPOINT), "AutoFormer")


_OFA = (
    (r"\.(conv|linear|bn)\.\1\.", r".\1."),  # a static layer within an elastic one
    (r"^first_conv\.conv\.", "stem."),
    (r"^first_conv\.bn\.", "stem_norm."),
    (r"^final_expand_layer\.conv\.", "final."),
    (r"^final_expand_layer\.bn\.", "final_norm."),
    (r"^feature_mix_layer\.conv\.", "mix."),
    (r"^classifier\.linear\.", "classifier."),
    (r"\.se\.fc\.", ".se."),
)
_OFA_LAYERS = {"inverted_bottleneck": "expand", "depth_conv": "depthwise", "point_linear": "project"}


def ofa_name(published: str, slots: int = 4) -> str:
    """growtas' name of a parameter or buffer of the published OFA-MobileNetV3.

    Args:
        published: such as ``blocks.3.conv.depth_conv.bn.bn.weight``; older checkpoints say
            ``mobile_inverted_conv`` for the block's ``conv``.
        slots: blocks of each stage.
    """
    name = published
    for pattern, ours in _OFA:
        name = re.sub(pattern, ours, name)
    found = re.match(r"blocks\.([0-9]{1,4})\.(?:conv|mobile_inverted_conv)\.(\w+)\.(.*)", name)
    if found is None or found[2] not in _OFA_LAYERS:
        return name
    number, layer, rest = int(found[1]), _OFA_LAYERS[found[2]], found[3]
    stage, index = divmod(number - 1, slots)
    block = f"stages.{stage}.{index}" if number else "first"
    if rest.startswith("se."):
        return f"{block}.{rest}"
    kind, _, last = rest.rpartition(".")
    return f"{block}.{layer}_norm.{last}" if kind == "bn" else f"{block}.{layer}.{last}"


def load_ofa(net: MobileNetV3, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of a published OFA-MobileNetV3 supernet.

    Weights of the largest network alone, which have no kernel transforms, are accepted too: the transforms
    are then the identity, as where progressive shrinking begins.

    Args:
        net: a supernet of the same space.
        state_dict: published name to tensor; wrapped or not, as of :func:`load_autoformer`.

    Raises:
        UsageError: as :func:`load_autoformer`.

    Example:
        >>> net = growtas.Supernet("ofa-mobilenetv3")
        >>> load_ofa(net, torch.load("ofa_mbv3_d234_e346_k357_w1.0", weights_only=True))

    Source: mit-han-lab/once-for-all, ``OFAMobileNetV3``.
    """
    if not isinstance(net, MobileNetV3) or net.space is None:
        raise UsageError(
            "OFA's weights are for the supernet of a MobileNetV3 space, such as ofa-mobilenetv3."
        )
    weights = foreign.unwrapped(state_dict, CHECKPOINT)
    weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    renamed = foreign.renamed(weights, partial(ofa_name, slots=net.space.slots), CHECKPOINT)
    own = net.state_dict()
    transforms = {name for name in own if name.endswith("_matrix")}
    if not transforms & set(renamed):
        renamed |= {name: torch.eye(len(own[name])) for name in transforms}
    _load(net, renamed, "OFA-MobileNetV3")


def _load(net: VisionTransformer | MobileNetV3, renamed: Mapping[str, Tensor], published: str) -> None:
    """Load weights under the net's own names. Raises: UsageError: they do not fit; the net is unchanged."""
    own = net.state_dict()
    missing, unknown = sorted(set(own) - set(renamed)), sorted(set(renamed) - set(own))
    if missing or unknown:
        raise UsageError(
            f"These are not the weights of this {published} supernet: "
            f"{len(missing)} parameters are missing{_first(missing)} and {len(unknown)} are unknown"
            f"{_first(unknown)}. Build the net from the space that the checkpoint was trained on."
        )
    foreign.check_shapes(renamed, own, CHECKPOINT)
    net.load_state_dict(renamed)


def _first(names: list[str]) -> str:
    return f" (such as {foreign.some(names[:1])})" if names else ""
