"""AutoFormer's training: every subnet of the space from the first step, one drawn uniformly per step."""

from __future__ import annotations

import random

from growtas.methods.base import Method, register
from growtas.space import Subnet


@register("uniform")
class Uniform(Method):
    """Every choice uniform, always. Source: AutoFormer (Chen et al., ICCV 2021)."""

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """Any subnet of the space."""
        return self.space.sample(rng)
