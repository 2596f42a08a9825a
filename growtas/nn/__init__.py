"""Thin modules that own the shared parameters and call the operations."""

from growtas.nn.block import MLP, Block, RelativeAttention
from growtas.nn.linear import PartialLayerNorm, PatchEmbedding, SlicedLinear

__all__ = ["MLP", "Block", "PartialLayerNorm", "PatchEmbedding", "RelativeAttention", "SlicedLinear"]
