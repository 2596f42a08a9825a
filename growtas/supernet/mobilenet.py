"""Once-for-All's MobileNetV3, as a supernet and as a subnet taken out of one.

As with the transformers both are the same class: an extracted subnet is a network whose layers have nothing
left to choose.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.errors import UsageError, nearest
from growtas.nn.conv import PartialBatchNorm, PointwiseConv, he_fan_out
from growtas.nn.inverted_residual import InvertedResidual
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.spaces.mobilenet_block import Block
from growtas.spaces.mobilenet_subnet import MobileNetSubnet
from growtas.supernet.vit import UNUSED_BLOCKS, parameter_shapes


@dataclass(frozen=True)
class MobileNetDims:
    """Every size of a network.

    Args:
        blocks: geometry of every block of the stages, in order.
        kernels: sides that every depthwise kernel can be cut to, ascending; empty: each has only its own.
        stem_width, stem_stride, first_width, final_width, feature_width: of the layers that are fixed.
        image_size: pixels of the images it is meant for; it takes others.
        in_channels: of the images.
    """

    blocks: tuple[Block, ...]
    kernels: tuple[int, ...] = ()
    stem_width: int = 16
    stem_stride: int = 2
    first_width: int = 16
    final_width: int = 960
    feature_width: int = 1280
    image_size: int = 224
    in_channels: int = 3

    @classmethod
    def of_space(cls, space: MobileNetSpace, subnet: MobileNetSubnet | None = None) -> MobileNetDims:
        """The sizes of a space's supernet, or those of one subnet on its own."""
        fixed = ("stem_width", "stem_stride", "first_width", "final_width", "feature_width")
        return cls(
            space.blocks(subnet or space.largest()),
            () if subnet else space.kernel,
            **{name: getattr(space, name) for name in (*fixed, "image_size", "in_channels")},
        )

    @property
    def first(self) -> Block:
        """The fixed block before the stages."""
        return Block(-1, 0, self.stem_width, self.stem_width, self.first_width, 3, 1, "relu", 0)

    @property
    def last_width(self) -> int:
        """Channels behind the stages."""
        return self.blocks[-1].out_width


class MobileNetV3(nn.Module):
    """A convolutional network that runs any subnet of itself: ``net(images, subnet)``.

    Initialisation is OFA's: convolutions normal with variance 2 / (out_channels * k * k), BatchNorm 1 and 0,
    the classifier uniform within 1 / sqrt(features), biases 0, kernel transforms the identity.

    Args:
        dims: its own, largest sizes.
        num_classes: outputs; 0 for features only.
        space: the choices that subnets are checked against; None for an extracted subnet.
        drop_path_rate: of the last block; rises linearly from 0. OFA has none.
        dropout: before the classifier.
        unused_blocks: what training does with blocks beyond the sampled depths: ``skip`` leaves them without
            gradients, so the optimizer does not move them; ``zero`` gives zero gradients.

    Raises:
        UsageError: an option is unknown.

    Source: Cai et al., "Once-for-All" (ICLR 2020), ``OFAMobileNetV3``.
    """

    needs_calibration = True  # BatchNorm's statistics are those of no single subnet

    def __init__(
        self,
        dims: MobileNetDims,
        num_classes: int = 1000,
        space: MobileNetSpace | None = None,
        drop_path_rate: float = 0.0,
        dropout: float = 0.1,
        unused_blocks: str = "skip",
    ) -> None:
        super().__init__()
        if unused_blocks not in UNUSED_BLOCKS:
            raise UsageError(
                f"unused_blocks={unused_blocks!r} is unknown.{nearest(str(unused_blocks), UNUSED_BLOCKS)}"
            )
        self.dims = dims
        self.space = space
        self.num_classes = num_classes
        self.num_features = dims.final_width
        self.head_hidden_size = dims.feature_width
        self.unused_blocks = unused_blocks
        self._subnet: MobileNetSubnet | None = None
        self.drop_path_rates = torch.linspace(0, drop_path_rate, len(dims.blocks), device="cpu").tolist()
        # On the net's device: made from the list in every step it would wait for the GPU.
        kept = 1 - torch.tensor(self.drop_path_rates).view(-1, 1)
        self.register_buffer("drop_path_kept", kept, persistent=False)

        self.stem = nn.Conv2d(dims.in_channels, dims.stem_width, 3, dims.stem_stride, 1, bias=False)
        self.stem_norm = PartialBatchNorm(dims.stem_width)
        self.first = InvertedResidual(dims.first, (dims.first.kernel,), expands=False)
        self.stages = nn.ModuleList()
        for block in dims.blocks:
            if block.index == 0:
                self.stages.append(nn.ModuleList())
            self.stages[-1].append(InvertedResidual(block, dims.kernels or (block.kernel,)))
        self.final = PointwiseConv(dims.last_width, dims.final_width)
        self.final_norm = PartialBatchNorm(dims.final_width)
        self.mix = PointwiseConv(dims.final_width, dims.feature_width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier(dims.feature_width, num_classes)
        he_fan_out(self.stem.weight)

    # -- choosing a subnet -------------------------------------------------------------------------------

    def set_subnet(self, subnet: MobileNetSubnet | None) -> None:
        """Choose what ``net(images)`` runs: a convenience for code that cannot pass the subnet.

        Raises:
            UsageError: the subnet is outside the space.
        """
        if subnet is not None:
            self._blocks(subnet)
        self._subnet = subnet

    def _blocks(self, subnet: MobileNetSubnet | None) -> tuple[Block, ...]:
        """The geometry of the blocks that run."""
        subnet = subnet or self._subnet
        if self.space is None:
            if subnet is not None:
                raise UsageError("An extracted network has nothing left to choose: call it without a subnet.")
            return self.dims.blocks
        if subnet is None:
            raise UsageError("A supernet needs a subnet: call net(images, subnet), or net.set_subnet first.")
        self.space.validate(subnet)
        return self.space.blocks(subnet)

    # -- forward -----------------------------------------------------------------------------------------

    def forward_stem(self, images: Tensor) -> Tensor:
        """(B, C, S, S) images to what the stages take: the first convolution and the fixed block."""
        if images.ndim != 4 or images.shape[1] != self.dims.in_channels:
            raise UsageError(
                f"The images are {tuple(images.shape[1:])}, but this network takes {self.dims.in_channels} "
                "channels of any height and width; change them or in_channels of the space."
            )
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        x = F.hardswish(self.stem_norm(x.contiguous(memory_format=torch.channels_last)))
        return self.first(x, self.dims.first)

    def forward_features(self, images: Tensor, subnet: MobileNetSubnet | None = None) -> Tensor:
        """(B, C, S, S) images to (B, final_width, s, s), before pooling."""
        blocks = self._blocks(subnet)
        x = self.forward_stem(images)
        for block, scale in zip(blocks, self._drop_path_scales(x, blocks), strict=True):
            x = self.forward_block(x, block, scale)
        return self.forward_final(x)

    def forward_block(self, x: Tensor, block: Block, scale: Tensor | None = None) -> Tensor:
        """One block of the stages, at the geometry given; scale: (B,) factors of its branch, or None."""
        return self.stages[block.stage][block.index](x, block, scale)

    def forward_final(self, x: Tensor) -> Tensor:
        """(B, last_width, s, s) to (B, final_width, s, s): the last convolution, which every subnet has."""
        return F.hardswish(self.final_norm(self.final(x, self.dims.final_width)))

    def _drop_path_scales(self, x: Tensor, blocks: tuple[Block, ...]) -> list[Tensor | None]:
        """For each block the factors (B,) of its branch: 0 where dropped, else 1 / (1 - rate)."""
        if not self.training or not self.drop_path_rates[-1]:
            return [None] * len(blocks)
        place = {(block.stage, block.index): at for at, block in enumerate(self.dims.blocks)}
        places = [place[block.stage, block.index] for block in blocks]
        rates = [self.drop_path_rates[at] for at in places]
        kept = torch.stack([self.drop_path_kept[at] for at in places]).float()  # fp32 in a net of any dtype
        scales = (torch.rand(len(blocks), len(x), device=x.device) < kept) / kept
        return [scale if rate else None for rate, scale in zip(rates, scales, strict=True)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, final_width, s, s) to (B, num_classes) logits; ``pre_logits``: to (B, feature_width)."""
        x = F.hardswish(self.mix(x.mean((2, 3), keepdim=True), self.dims.feature_width)).flatten(1)
        return x if pre_logits else self.classifier(self.dropout(x))

    def forward(self, images: Tensor, subnet: MobileNetSubnet | None = None) -> Tensor:
        """Logits of a subnet.

        Args:
            images: (B, C, S, S), of any size.
            subnet: which part of the supernet runs; an extracted subnet takes none.

        Returns:
            (B, num_classes).

        Raises:
            UsageError: the subnet is outside the space, or the images do not fit.
        """
        return self.forward_head(self.forward_features(images, subnet))

    # -- parameters --------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay besides 1-D parameters, BatchNorm and biases: none."""
        return set()

    def unused_parameters(self, subnet: MobileNetSubnet) -> Iterator[nn.Parameter]:
        """Parameters of the blocks beyond a subnet's depths."""
        for stage, depth in zip(self.stages, subnet.depth, strict=True):
            for block in stage[depth:]:
                yield from block.parameters()

    def norms(self) -> dict[str, PartialBatchNorm]:
        """Every BatchNorm, by name."""
        return {name: each for name, each in self.named_modules() if isinstance(each, PartialBatchNorm)}

    def subnet_shapes(self, subnet: MobileNetSubnet) -> Mapping[str, tuple[int, ...]]:
        """How much of every parameter a subnet uses: the sizes of a leading box.

        A smaller kernel reads the centre of the largest, which is no leading box: its whole filter counts as
        used, besides the matrices that transform it.

        Args:
            subnet: of this network.

        Returns:
            Parameter name to sizes, one per axis; what the subnet does not use at all does not appear.

        Raises:
            UsageError: the subnet is outside the space.
        """
        blocks = self._blocks(subnet)
        shapes = dict(_shapes_around(dataclasses.replace(self.dims, blocks=blocks[-1:]), self.num_classes))
        for block in blocks:
            prefix = f"stages.{block.stage}.{block.index}"
            own = _block_shapes(block, self.dims.kernels or (block.kernel,))
            shapes |= {f"{prefix}.{name}": shape for name, shape in own.items()}
        return MappingProxyType(shapes)

    @torch.no_grad()
    def slice_state_dict(self, subnet: MobileNetSubnet) -> dict[str, Tensor]:
        """The weights of a subnet, as the state dict of the smaller network that it is.

        Kernel transforms are applied; BatchNorm's statistics are taken as they are: calibrate them for the
        subnet before (:func:`growtas.training.calibration.recalibrate`).

        Args:
            subnet: what to cut out.

        Returns:
            Copies, in the shapes of ``MobileNetV3(MobileNetDims.of_space(space, subnet), num_classes)``.
        """
        blocks = self._blocks(subnet)
        dims = dataclasses.replace(self.dims, blocks=blocks, kernels=())
        with torch.device("meta"):
            target = MobileNetV3(dims, self.num_classes).state_dict()
        source = self.state_dict()
        for block in blocks:
            name = f"{_depthwise_name(block)}.weight"
            depthwise = self.stages[block.stage][block.index].depthwise
            source[name] = depthwise.filters(block.mid_width, block.kernel)
        return {
            name: source[name][tuple(slice(size) for size in like.shape)].clone()
            for name, like in target.items()
        }


def classifier(features: int, num_classes: int) -> nn.Module:
    """The last layer with OFA's initialisation, or none for no classes."""
    if not num_classes:
        return nn.Identity()
    layer = nn.Linear(features, num_classes)
    nn.init.uniform_(layer.weight, -(features**-0.5), features**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def _depthwise_name(block: Block) -> str:
    return f"stages.{block.stage}.{block.index}.depthwise"


@functools.lru_cache(maxsize=64)
def _shapes_around(dims: MobileNetDims, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the layers that are fixed, read off a network that holds no numbers.

    Args:
        dims: of a network whose only block is the last one.
        num_classes: outputs.
    """
    only = dataclasses.replace(dims.blocks[0], stage=0, index=0)
    with torch.device("meta"):
        shapes = parameter_shapes(MobileNetV3(dataclasses.replace(dims, blocks=(only,)), num_classes))
    return {name: shape for name, shape in shapes.items() if not name.startswith("stages.")}


@functools.lru_cache(maxsize=2048)
def _block_shapes(block: Block, kernels: tuple[int, ...]) -> Mapping[str, tuple[int, ...]]:
    """The shapes of what a block uses, its filters at the largest of the kernels."""
    with torch.device("meta"):
        layer = InvertedResidual(block, kernels)
    unused = {f"depthwise.{name}" for name in layer.depthwise.matrices(kernels[0])}
    unused -= {f"depthwise.{name}" for name in layer.depthwise.matrices(block.kernel)}
    return {name: shape for name, shape in parameter_shapes(layer).items() if name not in unused}
