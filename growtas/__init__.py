"""growtas: supernets of vision transformers, trained small to large, searched and exported."""

from growtas.version import __version__

__all__ = ["__version__"]
