"""The geometry of an inverted-residual block, and how MobileNets round their widths. No torch."""

from __future__ import annotations

from dataclasses import dataclass


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of ``divisor`` next to a width, never more than a tenth below it.

    Source: MobileNet's published code; OFA rounds its middle widths and squeeze widths by it.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class Block:
    """The geometry of one inverted-residual block of a subnet.

    Args:
        stage: of the space, from 0.
        index: within the stage, from 0.
        in_width, mid_width, out_width: channels before, inside and after.
        kernel: side of the depthwise kernel.
        stride: of the depthwise convolution.
        activation: ``"relu"`` or ``"h-swish"``.
        squeeze_width: inner channels of squeeze-and-excite; 0 where the block has none.
    """

    stage: int
    index: int
    in_width: int
    mid_width: int
    out_width: int
    kernel: int
    stride: int
    activation: str
    squeeze_width: int

    @property
    def residual(self) -> bool:
        """Return whether the block adds its input to its output."""
        return self.stride == 1 and self.in_width == self.out_width
