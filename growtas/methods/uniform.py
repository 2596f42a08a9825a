"""AutoFormer's training: every subnet of the space from the first step, one drawn uniformly per step."""

from __future__ import annotations

from growtas.methods.base import Method, register
from growtas.space import Subnet


@register("uniform")
class Uniform(Method):
    """Every choice uniform, always. Source: AutoFormer (Chen et al., ICCV 2021)."""

    def subnets(self, step: int) -> tuple[Subnet, ...]:
        """One subnet of the whole space."""
        return (self.space.sample(self.rng(step)),)
