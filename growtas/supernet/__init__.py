"""Supernets: one set of shared weights that runs every subnet of a space."""

from growtas.supernet.vit import Supernet, VisionTransformer, ViTDims

__all__ = ["Supernet", "ViTDims", "VisionTransformer"]
