"""Architectures of extracted models, registered with timm by an import: growtas_vit and growtas_mobilenet."""

from growtas.architectures.growtas_mobilenet import GrowtasMobileNet
from growtas.architectures.growtas_vit import GrowtasViT

__all__ = ["GrowtasMobileNet", "GrowtasViT"]
