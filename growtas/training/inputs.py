"""Images for a step besides its batch: other sizes of them, and draws from a split that methods ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from growtas.errors import UsageError
from growtas.space import SearchSpace, seeded_rng
from growtas.training.data import Splits
from growtas.training.data.images import MemoryImages, from_stored, stored
from growtas.training.data.workers import begin_loading
from growtas.training.ranks import Ranks
from growtas.training.run import Run

DECODED_AT_ONCE = 16  # images: fewer are not worth a loading process


def draw_images(
    splits: Splits,
    seed: int,
    device: torch.device,
    ranks: Ranks,
    workers: int,
    split: str,
    count: int,
    *key: object,
) -> tuple[Tensor, Tensor]:
    """Images of a split, drawn without repeats and not augmented; every rank must take part.

    Args:
        splits: of the run.
        seed: of the run.
        device: to put them on.
        ranks: each decodes its share of images of files.
        workers: loading processes of a rank, which do so.
        split: ``train`` or ``search``.
        count: of images; all of the split where it has fewer.
        key: with the seed and the split it determines the draw.

    Returns:
        (n, C, S, S) float32 and (n,) int64.
    """
    images = getattr(splits, split)
    indices = seeded_rng("draw images", seed, split, *key).sample(range(len(images)), min(count, len(images)))
    if isinstance(images, MemoryImages):
        drawn = [images[index] for index in indices]
        labels = torch.tensor([label for _, label in drawn])
        return torch.stack([image for image, _ in drawn]).to(device), labels.to(device)
    own = indices[ranks.rank :: ranks.world] or indices[:1]  # where there are more ranks than images
    batches = [own[first : first + DECODED_AT_ONCE] for first in range(0, len(own), DECODED_AT_ONCE)]
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)) if len(batches) > 1 else 0,
        collate_fn=stored,
        worker_init_fn=begin_loading,
        generator=torch.Generator(),  # of its own, or reading images would move on the global one
    )
    parts = [torch.cat(part).to(device) for part in zip(*loader, strict=True)]
    pixels, labels = (ranks.interleave(part, len(indices)) for part in parts)
    return from_stored(pixels, getattr(images, "channels", 3)), labels


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
