"""A block as a stack runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from growtas.ops.attention_branch.one_call import AttentionWeights
from growtas.ops.mlp.weights import MLPWeights


class Layer(NamedTuple):
    """A block as the stack runs it: its shared parameters, and how much of them."""

    attention: AttentionWeights
    mlp: MLPWeights
    num_heads: int
    hidden_dim: int
    head_dim: int
    bias_layout: str
    attention_eps: float
    mlp_eps: float


SPLIT = len(AttentionWeights._fields)
WEIGHTS = SPLIT + len(MLPWeights._fields)
"""Tensors of a block; the first ``SPLIT`` are of attention."""


def layers_of(weights: Sequence[Tensor | None], rests: Sequence[tuple]) -> list[Layer]:
    """Blocks from their tensors, one after the other, and the fields of each that follow these."""
    found = []
    for at, rest in zip(range(0, len(weights), WEIGHTS), rests, strict=True):
        own = weights[at : at + WEIGHTS]
        found.append(Layer(AttentionWeights(*own[:SPLIT]), MLPWeights(*own[SPLIT:]), *rest))
    return found
