"""PreNAS: a zero-cost score chooses a handful of subnets before training, and only these are trained."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from growtas.bounds import Bound
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.methods.base import Method, MethodSettings, TrainingContext, register
from growtas.methods.prenas_bins import parse_bins, parse_depths
from growtas.methods.prenas_score import gradients, score_parts
from growtas.methods.prenas_selection import (
    Preferred,
    candidate_params,
    choice_counts,
    enumerate_candidates,
    grouped,
    probabilities,
    select,
)
from growtas.space import SearchSpace, Subnet, seeded_rng

DATA = ("noise", "train")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PreNASOptions:
    """Options of the method, set by ``method_options``.

    Args:
        bins: ``5e6-12e6/1e6`` (low, high and step in parameters), or a number of equal bins; the published
            ones of AutoFormer-T, -S and -B, else six, where empty.
        depths: such as ``13,14``; as published (13 and 14 of AutoFormer-S, else all) where empty.
        data: ``noise`` (data-free: the sum of the logits of random images) or ``train`` (the cross-entropy
            of training images).
        images: how many.
        mean, std: of the noise, one number or one per channel; ImageNet's in pixels of 0 to 1 where empty.

    Raises:
        UsageError: a value is unknown or not possible.
    """

    bins: str = ""
    depths: str = ""
    data: str = "noise"
    images: int = 64
    mean: str = ""
    std: str = ""

    def __post_init__(self) -> None:
        if self.data not in DATA:
            raise UsageError(f"data={self.data!r} is unknown.{nearest(self.data, DATA)}")
        Bound(1, 100_000)("images", self.images, "prenas")


@register("prenas")
class PreNAS(Method):
    """Trains the best subnet of each bin of parameters, as a zero-cost score of the first weights ranks them.

    A step draws a group (the chosen subnets of one embed_dim and depth) uniformly, then one of its members.
    The noise is fed as it is, not normalised, as the published code does; the published embed_dims and depths
    come out with it, and not with noise of mean 0 and standard deviation 1.

    Source: PreNAS (Wang et al., ICML 2023).

    Raises:
        UsageError: the space is no vision transformer's, an option does not fit, or no candidate falls into
            any bin.
    """

    Options = PreNASOptions
    options: PreNASOptions

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        space, options = self.space, self.options
        if not isinstance(space, SearchSpace):
            raise UsageError(
                "Method 'prenas' scores the heads and MLP widths of a vision transformer, which space "
                f"{space.name!r} does not have; train it with 'uniform' or 'growtas'."
            )
        self.depths = parse_depths(options.depths, space)
        self.bins = parse_bins(options.bins, space, settings.num_classes, self.depths)
        for name, choices in (("num_heads", space.num_heads), ("mlp_ratio", space.mlp_ratio)):
            for depth in self.depths:
                if next(choice_counts(depth, len(choices)), None) is None:
                    raise UsageError(
                        f"Method 'prenas' uses every {name} but the smallest and the largest at least once, "
                        f"but space {space.name!r} has {len(choices)} of them for {depth} layers; give fewer."
                    )
        self.noise = (
            _channels("mean", options.mean, IMAGENET_MEAN, space.in_channels),
            _channels("std", options.std, IMAGENET_STD, space.in_channels),
        )
        self._check_bins()
        self.preferred: list[Preferred] = []
        self.groups: list[list[int]] = []

    def _check_bins(self) -> None:
        """Parameters do not depend on the scores: that every bin stays empty is known before training."""
        space = self.space
        found = candidate_params(space, self.settings.num_classes, self.depths)
        if not any(self.bins.index(params) is not None for params in found):
            raise UsageError(
                f"No subnet of space {space.name!r} falls into the bins {self.bins}: those that PreNAS tries "
                f"have {min(found):,} to {max(found):,} parameters. Give others, such as bins=6."
            )

    # -- choosing ----------------------------------------------------------------------------------------

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Score the supernet and choose; weights, gradients and generators stay as they are."""
        images, labels = self._images(training)
        scores = score_parts(training.net, gradients(training.net, images, labels))
        classes = self.settings.num_classes
        chosen = select(enumerate_candidates(self.space, scores, classes, self.depths), self.bins)
        self._take(_of_first_rank(chosen))
        shares = probabilities(self.groups)
        return {
            "bins": str(self.bins),
            "preferred": [
                {"subnet": str(p.subnet), "params": p.params, "score": p.score, "probability": share}
                for p, share in zip(self.preferred, shares, strict=True)
            ],
        }

    def _images(self, training: TrainingContext) -> tuple[Tensor, Tensor | None]:
        """The images to score, and their labels where there are any; the same on every rank."""
        count = self.options.images
        if self.options.data == "train":
            return training.draw_images("train", count, "prenas")
        space = self.space
        seed = seeded_rng("prenas noise", self.settings.seed).getrandbits(63)
        shape = (count, space.in_channels, space.image_size, space.image_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self.noise)
        return (noise * std + mean).to(training.device), None

    def _take(self, chosen: list[Preferred]) -> None:
        self.preferred = chosen
        self.groups = grouped([each.subnet for each in chosen])

    # -- drawing -----------------------------------------------------------------------------------------

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """A group uniformly, then one of its subnets uniformly."""
        self._check_chosen()
        return self.preferred[rng.choice(rng.choice(self.groups))].subnet

    def extremes(self, step: int) -> tuple[Subnet, Subnet]:
        """The chosen subnets with the fewest and the most parameters."""
        self._check_chosen()
        return self.preferred[0].subnet, self.preferred[-1].subnet

    def _check_chosen(self) -> None:
        if not self.preferred:
            raise GrowtasError(
                "PreNAS has not chosen its subnets yet: call begin_stage(0, training) "
                "or load_state_dict first."
            )

    # -- state -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The chosen subnets as text, ascending in parameters, with parameters, scores and groups."""
        return {
            "subnets": [str(each.subnet) for each in self.preferred],
            "params": [each.params for each in self.preferred],
            "scores": [each.score for each in self.preferred],
            "groups": [list(group) for group in self.groups],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            GrowtasError: it does not belong to this method or space.
        """
        try:
            columns = zip(state["subnets"], state["params"], state["scores"], strict=True)
            chosen = [Preferred(Subnet.parse(text), params, score) for text, params, score in columns]
            for each in chosen:
                self.space.validate(each.subnet)
            groups = [list(group) for group in state["groups"]]
            if sorted(number for group in groups for number in group) != list(range(len(chosen))):
                raise ValueError(f"the groups {groups} do not hold each of {len(chosen)} subnets once")
        except (KeyError, TypeError, ValueError) as error:  # a UsageError of a subnet is a ValueError too
            raise GrowtasError(f"The checkpoint's state does not fit method 'prenas': {error}.") from error
        self.preferred, self.groups = chosen, groups


def _channels(name: str, text: str, published: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number per channel; where there are not three, ImageNet's average over its three."""
    if not text:
        return published if channels == len(published) else (sum(published) / len(published),) * channels
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{name}={text!r} is no number, nor one per channel such as 0.5,0.5,0.5.") from error
    if len(values) not in (1, channels):
        raise UsageError(
            f"{name}={text!r} has {len(values)} numbers, but the images have {channels} channels."
        )
    return values if len(values) == channels else values * channels


def _of_first_rank(chosen: list[Preferred]) -> list[Preferred]:
    """Rank 0's choice on every rank: gradients of equal images may differ in the last bit between devices."""
    if not (dist.is_available() and dist.is_initialized()):
        return chosen
    rows: list[Any] = [[(str(p.subnet), p.params, p.score) for p in chosen]]
    dist.broadcast_object_list(rows, src=0)
    return [Preferred(Subnet.parse(text), params, score) for text, params, score in rows[0]]
