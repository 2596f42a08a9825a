"""Several processes on one run: how they meet, agree, average gradients, and end when one of them fails."""

from growtas.training.ranks.group import Ranks, choose_device

__all__ = ["Ranks", "choose_device"]
