"""Read published checkpoints by their published parameter names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.supernet.mobilenet import MobileNetV3
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
    _load(net, renamed, "AutoFormer")


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
    name = published.removeprefix("module.")
    for pattern, ours in _OFA:
        name = re.sub(pattern, ours, name)
    found = re.match(r"blocks\.(\d+)\.(?:conv|mobile_inverted_conv)\.(\w+)\.(.*)", name)
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
        state_dict: published name to tensor; names may begin with ``module.``, and a checkpoint's
            ``{"state_dict": …}`` wrapper is accepted.

    Raises:
        UsageError: names or shapes do not fit; the net is unchanged.

    Example:
        >>> net = growtas.Supernet("ofa-mobilenetv3")
        >>> load_ofa(net, torch.load("ofa_mbv3_d234_e346_k357_w1.0", weights_only=True))

    Source: mit-han-lab/once-for-all, ``OFAMobileNetV3``.
    """
    if not isinstance(net, MobileNetV3) or net.space is None:
        raise UsageError(
            "OFA's weights are for the supernet of a MobileNetV3 space, such as ofa-mobilenetv3."
        )
    weights = state_dict.get("state_dict", state_dict)
    renamed = {
        ofa_name(name, net.space.slots): value
        for name, value in weights.items()
        if not name.endswith("num_batches_tracked")
    }
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
    for name, value in renamed.items():
        if value.shape != own[name].shape:
            raise UsageError(
                f"{name} is {tuple(value.shape)} in the checkpoint, but {tuple(own[name].shape)} in this "
                "net; build the net from the space and the number of classes that the checkpoint has."
            )
    net.load_state_dict(renamed)


def _first(names: list[str]) -> str:
    return f" (such as {names[0]})" if names else ""
