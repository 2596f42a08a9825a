"""A subnet as a model of its own. Importing this registers ``growtas_vit`` with timm."""

from growtas.export.extraction import extract, verify
from growtas.export.files import load, save
from growtas.export.timm_model import GrowtasViT, growtas_vit

__all__ = ["GrowtasViT", "extract", "growtas_vit", "load", "save", "verify"]
