"""Supernets: one set of shared weights that runs every subnet of a space."""

from growtas.supernet.build import AnySupernet, Supernet
from growtas.supernet.mobilenet import MobileNetDims, MobileNetV3
from growtas.supernet.model import SingleModel
from growtas.supernet.vit import VisionTransformer, ViTDims

__all__ = [
    "AnySupernet",
    "MobileNetDims",
    "MobileNetV3",
    "SingleModel",
    "Supernet",
    "ViTDims",
    "VisionTransformer",
]
