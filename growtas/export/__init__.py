"""A subnet as a model of its own; importing this registers it with timm: growtas_vit, growtas_mobilenet."""

from growtas.export.extraction import extract, verify
from growtas.export.files import load, save
from growtas.export.timm_mobilenet import GrowtasMobileNet, growtas_mobilenet
from growtas.export.timm_model import GrowtasViT, growtas_vit

__all__ = [
    "GrowtasMobileNet",
    "GrowtasViT",
    "extract",
    "growtas_mobilenet",
    "growtas_vit",
    "load",
    "save",
    "verify",
]
