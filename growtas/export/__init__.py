"""A subnet as a model of its own; importing this registers it with timm: growtas_vit, growtas_mobilenet."""

from growtas.architectures.growtas_mobilenet import GrowtasMobileNet
from growtas.architectures.growtas_vit import GrowtasViT
from growtas.export.conversion import convert
from growtas.export.extraction import extract, verify
from growtas.export.files import load, save
from growtas.export.formats import write
from growtas.export.sizes import subnet_of

__all__ = [
    "GrowtasMobileNet",
    "GrowtasViT",
    "convert",
    "extract",
    "load",
    "save",
    "subnet_of",
    "verify",
    "write",
]
