"""Images for a step besides its batch: other sizes of them, and draws from a split that methods ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.errors import UsageError
from growtas.space import SearchSpace, seeded_rng
from growtas.training.data import Splits
from growtas.training.run import Run


def draw_images(
    splits: Splits, seed: int, device: torch.device, split: str, count: int, *key: object
) -> tuple[Tensor, Tensor]:
    """Images of a split, drawn without repeats and not augmented.

    Args:
        splits: of the run.
        seed: of the run.
        device: to put them on.
        split: ``train`` or ``search``.
        count: of images; all of the split where it has fewer.
        key: with the seed and the split it determines the draw.

    Returns:
        (n, C, S, S) float32 and (n,) int64.
    """
    images = getattr(splits, split)
    indices = seeded_rng("draw images", seed, split, *key).sample(range(len(images)), min(count, len(images)))
    drawn = [images[index] for index in indices]
    labels = torch.tensor([label for _, label in drawn])
    return torch.stack([image for image, _ in drawn]).to(device), labels.to(device)


def checked_resolutions(run: Run) -> tuple[int, ...]:
    """The sizes of a run's images, none for the space's own alone. Raises: UsageError: it cannot vary."""
    sizes = run.config.resolution_sizes()
    if sizes and isinstance(run.space, SearchSpace):
        raise UsageError(
            f"resolutions={run.config.resolutions!r} is for convolutional spaces; a vision transformer "
            f"such as {run.space.name!r} has positions for one size. Leave it out."
        )
    return sizes


def at_resolution(images: Tensor, sizes: Sequence[int], seed: int, step: int) -> Tensor:
    """(B, C, S, S) images scaled to one of some sizes, drawn for the step.

    Once-for-all draws a size per batch in its data loader; scaling the loaded batch is our own choice, so
    that every rank and every resume sees the same.
    """
    size = seeded_rng("resolution", seed, step).choice(sizes)
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
