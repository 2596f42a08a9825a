"""A timm model in a supernet's interface, so that training and evaluation take it as they take a supernet."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn

import growtas.architectures  # noqa: F401 - registers growtas' own with timm
from growtas.errors import UsageError
from growtas.spaces.model import ModelSpace
from growtas.supernet.vit import parameter_shapes


class SingleModel(nn.Module):
    """One model as the net of a run or of an evaluation: ``net(images, subnet)`` looks at no subnet.

    Args:
        model: of timm's.
        space: what it takes, and how the data's images become that.
    """

    needs_calibration = False
    unused_blocks = "skip"

    def __init__(self, model: nn.Module, space: ModelSpace) -> None:
        super().__init__()
        self.model, self.space, self.num_classes = model, space, model.num_classes
        moved = any(value != 1 for value in space.scale) or any(space.shift)
        for name in ("scale", "shift"):
            values = torch.tensor(getattr(space, name)).view(-1, 1, 1) if moved else None
            self.register_buffer(name, values, persistent=False)

    @classmethod
    def new(cls, space: ModelSpace, num_classes: int, drop_path_rate: float = 0.0) -> SingleModel:
        """The freshly initialised model. Raises: UsageError: it takes no stochastic depth."""
        rate = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        try:
            model = timm.create_model(space.architecture, num_classes=num_classes, **space.args, **rate)
        except TypeError as error:
            if "drop_path_rate" not in str(error):
                raise
            raise UsageError(f"{space.architecture} has no stochastic depth; set drop_path=0.") from error
        return cls(model, space)

    def forward(self, images: Tensor, subnet: object = None) -> Tensor:
        """(B, C, S, S) images as the data normalises them to (B, num_classes) logits."""
        return self.model(images if self.scale is None else images * self.scale + self.shift)

    def subnet_shapes(self, subnet: object = None) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter: the one subnet is all of the model."""
        return parameter_shapes(self)
