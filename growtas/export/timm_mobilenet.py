"""An extracted MobileNetV3 subnet in timm's interface: registered as ``growtas_mobilenet``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from growtas.errors import UsageError
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_block import Block
from growtas.spaces.mobilenet_subnet import MobileNetSubnet
from growtas.supernet.mobilenet import MobileNetDims, MobileNetV3, classifier

_FIXED = (
    "stem_width",
    "first_width",
    "widths",
    "final_width",
    "feature_width",
    "strides",
    "activations",
    "squeeze_excite",
    "stem_stride",
)
"""Fields of a space that every subnet shares."""


class GrowtasMobileNet(MobileNetV3):
    """A MobileNetV3 with kernel and width chosen per block, in timm's interface; OFA's largest by default.

    It takes images of any size.

    Args:
        kernel: side of each block's depthwise kernel, of all places of all stages.
        expand: middle width of each block over its input's, likewise.
        depth: blocks of each stage; the entries of the places behind them do not matter.
        img_size: pixels of the images it is meant for.
        in_chans: channels of the input.
        num_classes: outputs; 0 for features.
        global_pool: ``"avg"``; there is no other.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block.
        **fixed: stem_width, first_width, widths, final_width, feature_width, strides, activations,
            squeeze_excite and stem_stride, as of :class:`growtas.spaces.mobilenet.MobileNetSpace`.

    Raises:
        UsageError: the lists do not fit each other, or the pooling is unknown.
    """

    architecture = "growtas_mobilenet"

    def __init__(
        self,
        kernel: Sequence[int] = (7,) * 20,
        expand: Sequence[int] = (6,) * 20,
        depth: Sequence[int] = (4,) * 5,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
        **fixed: Any,
    ) -> None:
        unknown = set(fixed) - set(_FIXED)
        if unknown:
            raise TypeError(f"{self.architecture} has no argument {', '.join(sorted(unknown))}.")
        subnet = MobileNetSubnet(tuple(kernel), tuple(expand), tuple(depth))
        space = MobileNetSpace(
            self.architecture,
            tuple(sorted(set(kernel))),
            tuple(sorted(set(expand))),
            tuple(sorted({*depth, subnet.slots})),
            image_size=img_size,
            in_channels=in_chans,
            dropout=drop_rate,
            **{name: tuple(value) if isinstance(value, list) else value for name, value in fixed.items()},
        )
        subnet = space.subnet(subnet.kernel, subnet.expand, subnet.depth)
        dims = MobileNetDims.of_space(space, subnet)
        super().__init__(dims, num_classes, drop_path_rate=drop_path_rate, dropout=drop_rate)
        self._own_space = space
        self.subnet = subnet
        self.in_chans = in_chans
        self.grad_checkpointing = False
        self.global_pool = _checked_pool(global_pool)
        self.feature_info = list(_features(dims))

    @staticmethod
    def args_of(net: MobileNetV3, subnet: MobileNetSubnet) -> dict[str, Any]:
        """The arguments that build a subnet of a supernet."""
        return _args(net.space, subnet, net.num_classes)

    def own_space(self) -> MobileNetSpace:
        """The space whose subnet the model is: the form in which growtas.cost takes sizes."""
        return self._own_space

    def model_args(self) -> dict[str, Any]:
        """The arguments that build this network again, as plain values."""
        return {**_args(self._own_space, self.subnet, self.num_classes), "global_pool": self.global_pool}

    # -- forward -----------------------------------------------------------------------------------------

    def forward_block(self, x: Tensor, block: Block, scale: Tensor | None = None) -> Tensor:
        """One block; under gradient checkpointing it is run again in the backward pass."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(super().forward_block, x, block, scale)
        return super().forward_block(x, block, scale)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of chosen stages.

        Args:
            x: (B, C, S, S) images.
            indices: the last n stages if a number, these stages if a list, all if None.
            norm: has no effect: every layer ends with its own normalisation.
            stop_early: do not run stages behind the last chosen one.
            output_fmt: ``"NCHW"``; there is no other.
            intermediates_only: leave the final features out.

        Returns:
            The intermediate outputs, and before them the final features unless ``intermediates_only``.

        Raises:
            UsageError: an unknown output format.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt={output_fmt!r} is unknown; choose NCHW.")
        chosen, last = feature_take_indices(len(self.stages), indices)
        outputs = []
        x = self.forward_stem(x)
        scales = self._drop_path_scales(x, self.dims.blocks)
        for block, scale in zip(self.dims.blocks, scales, strict=True):
            if block.stage > last and stop_early:
                break
            x = self.forward_block(x, block, scale)
            if block.stage in chosen and block.index == len(self.stages[block.stage]) - 1:
                outputs.append(x)
        return outputs if intermediates_only else (self.forward_final(x), outputs)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediate outputs do not need, for timm's ``features_only``.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: drop the last convolution.
            prune_head: drop the head.

        Returns:
            The chosen stages' numbers.
        """
        chosen, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        kept = tuple(block for block in self.dims.blocks if block.stage <= last)
        self.dims = dataclasses.replace(self.dims, blocks=kept)
        if prune_norm:
            self.final = self.final_norm = nn.Identity()
        if prune_head:
            self.mix = nn.Identity()
            self.reset_classifier(0)
        return chosen

    # -- what training scripts ask for -------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a freshly initialised last layer.

        Args:
            num_classes: outputs; 0 for features.
            global_pool: ``"avg"`` or None.

        Raises:
            UsageError: an unknown pooling.
        """
        self.global_pool = _checked_pool(self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        layer = classifier(self.dims.feature_width, num_classes)
        self.classifier = layer.to(self.stem.weight).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates and staged freezing."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^(stem|first)", "blocks": [(blocks, None), (r"^(final|mix)", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass in place of keeping its activations."""
        self.grad_checkpointing = enable


def _args(space: MobileNetSpace, subnet: MobileNetSubnet, num_classes: int) -> dict[str, Any]:
    values = {name: getattr(space, name) for name in _FIXED}
    return {
        **subnet.to_json(),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        "img_size": space.image_size,
        "in_chans": space.in_channels,
        "num_classes": num_classes,
        "drop_rate": space.dropout,
    }


def _features(dims: MobileNetDims) -> Iterator[dict[str, Any]]:
    """Module, channels and downsampling of each stage, as timm describes features."""
    reduction = dims.stem_stride
    for block, following in zip(dims.blocks, (*dims.blocks[1:], None), strict=True):
        reduction *= block.stride
        if following is None or following.stage > block.stage:
            yield {"module": f"stages.{block.stage}", "num_chs": block.out_width, "reduction": reduction}


def _checked_pool(pooling: str) -> str:
    if pooling != "avg":
        raise UsageError(f"global_pool={pooling!r} is unknown; choose 'avg'.")
    return pooling


def pretrained_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a checkpoint's input and head.

    Args:
        values: further or other entries, such as ``mean`` and ``std``.
    """
    return {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "num_classes": 1000,
        "first_conv": "stem",
        "classifier": "classifier",
        **values,
    }


default_cfgs = generate_default_cfgs({GrowtasMobileNet.architecture: pretrained_cfg()})


@register_model
def growtas_mobilenet(pretrained: bool = False, **kwargs: Any) -> GrowtasMobileNet:
    """A MobileNetV3 subnet that growtas found and extracted; without sizes, the largest of OFA's.

    Args:
        pretrained: load the weights that ``pretrained_cfg`` points to.
        kwargs: of :class:`GrowtasMobileNet` and of timm's ``build_model_with_cfg``.
    """
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3, 4))
    return build_model_with_cfg(
        GrowtasMobileNet,
        GrowtasMobileNet.architecture,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
