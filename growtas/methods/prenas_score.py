"""PreNAS's zero-cost score: |weight * gradient| of a supernet that was not trained, summed box by box.

Every subnet uses the leading entries of each tensor. So one cumulative sum along both axes of |w * g| holds
the sum of every subnet's slice, and the few that the choices of a space can ask for are read off it.

Source: PreNAS (Wang et al., ICML 2023); which tensors count, and that ranking divides by the sums of |w| and
|g|, is as in the published code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from growtas.errors import GrowtasError
from growtas.methods.prenas_selection import Scores
from growtas.progress import track
from growtas.supernet.vit import VisionTransformer

CHUNK = 8  # images that go through the largest subnet at once: about 1 GB for AutoFormer-B


@contextmanager
def _without_drop_path(net: VisionTransformer) -> Iterator[None]:
    """Training mode with every drop-path rate at 0, so that nothing is drawn; everything is put back."""
    training, rates = net.training, net.drop_path_rates
    net.drop_path_rates = [0.0] * len(rates)
    net.train()
    try:
        yield
    finally:
        net.drop_path_rates = rates
        net.train(training)


def gradients(
    net: VisionTransformer, images: Tensor, labels: Tensor | None = None, chunk: int = CHUNK
) -> dict[str, Tensor]:
    """Gradients at the largest choice of everything, without touching the net or its ``.grad``.

    Args:
        net: the supernet.
        images: (n, C, S, S), on its device.
        labels: (n,) for the mean cross-entropy; None for the sum of all logits, which needs no data.
        chunk: images at a time; the sum does not depend on it.

    Returns:
        Parameter name to gradient; zeros where the largest subnet does not use a parameter.
    """
    parameters = dict(net.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    largest = net.space.largest()
    starts = range(0, len(images), chunk)
    with _without_drop_path(net), torch.enable_grad():
        for start in track(starts, "score for prenas", "chunk"):
            logits = net(images[start : start + chunk], largest)
            if labels is None:
                loss = logits.sum()
            else:
                own = labels[start : start + chunk]
                loss = F.cross_entropy(logits, own, reduction="sum") / len(images)
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    total[name] += gradient
    return total


def box_sums(values: Tensor, rows: Sequence[int], columns: Sequence[int]) -> Tensor:
    """Sums over leading boxes, in float64 on the CPU, so that the order of adding is one.

    Args:
        values: (R, C).
        rows, columns: sizes of the boxes, at least 1.

    Returns:
        (len(rows), len(columns)) float64: entry i, j is ``values[:rows[i], :columns[j]].sum()``.
    """
    last_rows, last_columns = (torch.tensor(sizes) - 1 for sizes in (rows, columns))
    return values.cpu().double().cumsum(1)[:, last_columns].cumsum(0)[last_rows]


@torch.no_grad()
def score_parts(net: VisionTransformer, found: Mapping[str, Tensor]) -> Scores:
    """Score every part that a subnet can have, and rank the layers.

    Relative-position tables, position table and cls token do not count, as published.

    Args:
        net: the supernet.
        found: its :func:`gradients`.

    Raises:
        GrowtasError: a score is not finite.
    """
    space, saliency = net.space, _Saliency(net, found)
    scores = Scores(
        saliency.base(),
        {(d, heads): [] for d in space.embed_dim for heads in space.num_heads},
        {(d, ratio): [] for d in space.embed_dim for ratio in space.mlp_ratio},
        {heads: [] for heads in space.num_heads[1:]},
        {ratio: [] for ratio in space.mlp_ratio[1:]},
    )
    for layer in range(max(space.depth)):
        terms = (
            saliency.attention(layer),
            saliency.mlp(layer),
            saliency.heads_rank(layer),
            saliency.ratio_rank(layer),
        )
        tables = (scores.attention, scores.mlp, scores.heads_rank, scores.ratio_rank)
        for table, values in zip(tables, terms, strict=True):
            for key, value in values.items():
                table[key].append(value)
    _check_finite(scores)
    return scores


class _Saliency:
    """Sums of |w * g| over what the choices of a space cut out of each tensor.

    Args:
        net: the supernet.
        found: gradient of each parameter.
    """

    def __init__(self, net: VisionTransformer, found: Mapping[str, Tensor]) -> None:
        self.space, self.classes = net.space, net.num_classes
        self.weights, self.found = dict(net.named_parameters()), found
        self.dims = self.space.embed_dim
        self.qkv_rows = [3 * self.space.head_dim * heads for heads in self.space.num_heads]

    def boxes(
        self, name: str, rows: Sequence[int], columns: Sequence[int] | None = None
    ) -> list[list[float]]:
        """Sums of a tensor's boxes, [row][column]; whole rows, of all further axes, without ``columns``."""
        values = (self.weights[name] * self.found[name]).abs()
        values = values.reshape(len(values), -1)
        return box_sums(values, rows, columns or values.shape[1:]).tolist()

    def vectors(self, *names: str) -> dict[int, float]:
        """The sum of some tensors of which a subnet uses embed_dim rows, for each embed_dim."""
        sums = [self.boxes(name, self.dims) for name in names]
        return {d: sum(rows[i][0] for rows in sums) for i, d in enumerate(self.dims)}

    def base(self) -> dict[int, float]:
        """Patch embedding, final norm and head."""
        rest = self.vectors("patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias")
        head = self.boxes("head.weight", (self.classes,), self.dims)[0]
        bias = self.boxes("head.bias", (self.classes,))[0][0]
        return {d: rest[d] + own + bias for d, own in zip(self.dims, head, strict=True)}

    def attention(self, layer: int) -> dict[tuple[int, int], float]:
        """qkv, proj and the norm before them."""
        block = f"blocks.{layer}."
        heads = self.space.num_heads
        qkv = self.boxes(f"{block}attn.qkv.weight", self.qkv_rows, self.dims)
        qkv_bias = self.boxes(f"{block}attn.qkv.bias", self.qkv_rows)
        proj = self.boxes(f"{block}attn.proj.weight", self.dims, [self.space.head_dim * h for h in heads])
        rest = self.vectors(f"{block}attn.proj.bias", f"{block}norm1.weight", f"{block}norm1.bias")
        return {
            (d, h): qkv[j][i] + qkv_bias[j][0] + proj[i][j] + rest[d]
            for i, d in enumerate(self.dims)
            for j, h in enumerate(heads)
        }

    def mlp(self, layer: int) -> dict[tuple[int, float], float]:
        """fc1, fc2 and the norm before them."""
        block = f"blocks.{layer}."
        ratios = self.space.mlp_ratio
        widths = sorted({int(d * ratio) for d in self.dims for ratio in ratios})
        fc1 = self.boxes(f"{block}mlp.fc1.weight", widths, self.dims)
        fc1_bias = self.boxes(f"{block}mlp.fc1.bias", widths)
        fc2 = self.boxes(f"{block}mlp.fc2.weight", self.dims, widths)
        rest = self.vectors(f"{block}mlp.fc2.bias", f"{block}norm2.weight", f"{block}norm2.bias")
        found = {}
        for i, d in enumerate(self.dims):
            for ratio in ratios:
                j = widths.index(int(d * ratio))
                found[d, ratio] = fc1[j][i] + fc1_bias[j][0] + fc2[i][j] + rest[d]
        return found

    def heads_rank(self, layer: int) -> dict[int, float]:
        """The score each choice of heads adds to the one below: its rows of qkv, at the largest width."""
        name = f"blocks.{layer}.attn.qkv.weight"
        steps = zip(self.space.num_heads[1:], self.qkv_rows, self.qkv_rows[1:], strict=False)
        return {heads: self._share(name, 0, slice(low, high)) for heads, low, high in steps}

    def ratio_rank(self, layer: int) -> dict[float, float]:
        """The score each ratio adds to the one below: rows of fc1, columns of fc2, at the largest width."""
        block, widest, ratios = f"blocks.{layer}.", self.dims[-1], self.space.mlp_ratio
        found = {}
        for below, ratio in zip(ratios, ratios[1:], strict=False):
            added = slice(int(widest * below), int(widest * ratio))
            found[ratio] = self._share(f"{block}mlp.fc1.weight", 0, added)
            found[ratio] += self._share(f"{block}mlp.fc2.weight", 1, added)
        return found

    def _share(self, name: str, axis: int, added: slice) -> float:
        """The sum of |w * g| of some rows (axis 0) or columns, over the sums of |w| and of |g|.

        All three of the matrix whose other axis is cut to the largest embed_dim.
        """
        cut, own = [slice(None), slice(None)], [slice(None), slice(None)]
        cut[1 - axis], own[axis] = slice(self.dims[-1]), added
        weight, gradient = (values[name][tuple(cut)].cpu().double() for values in (self.weights, self.found))
        scale = (weight.abs().sum() * gradient.abs().sum()).item()
        return (weight * gradient)[tuple(own)].abs().sum().item() / scale if scale else 0.0


def _check_finite(scores: Scores) -> None:
    numbers = [*scores.base.values()]
    for table in (scores.attention, scores.mlp, scores.heads_rank, scores.ratio_rank):
        numbers += [number for column in table.values() for number in column]
    if not torch.tensor(numbers, dtype=torch.float64).isfinite().all():
        raise GrowtasError(
            "The zero-cost score of the supernet is not finite; its weights or the images hold infinite or "
            "undefined numbers, or the gradients overflow."
        )
