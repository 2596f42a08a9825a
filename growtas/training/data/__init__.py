"""The images of a run: found and divided, read, augmented, and put into batches in the order of the seed."""

from growtas.training.data.splits import (
    Split,
    Splits,
    evaluation_loader,
    hold_out,
    load_splits,
    preprocessing,
    splits_of,
)

__all__ = ["Split", "Splits", "evaluation_loader", "hold_out", "load_splits", "preprocessing", "splits_of"]
