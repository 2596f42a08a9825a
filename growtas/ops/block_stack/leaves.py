"""Gradients that a stack adds to its parameters itself, where its caller wants nothing but ``.grad``.

Autograd visits a node for every parameter, four microseconds each with all that belongs to it: in a net of
thirteen blocks a millisecond per backward pass. Inside :func:`direct_gradients` a stack is a function of the
residual stream alone, and does what those nodes would do.

That is no use to ``torch.autograd.grad`` and to hooks of parameters: the first finds no path to them, and
where a parameter has hooks the stack leaves its gradients to autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from growtas.errors import GrowtasError
from growtas.ops.block_stack.layer import Layer, layers_of

_direct = False


@contextmanager
def direct_gradients() -> Iterator[None]:
    """For forward passes whose gradients ``loss.backward()`` is to add to ``.grad``, and nothing else.

    Example:
        >>> with direct_gradients():
        ...     logits = net(images, subnet)
        >>> loss(logits).backward()
    """
    global _direct
    former, _direct = _direct, True
    try:
        yield
    finally:
        _direct = former


def takes(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Return whether a stack adds the gradients of its parameters itself."""
    if not (_direct and x.requires_grad and torch.is_grad_enabled()):
        return False
    for layer in layers:
        for weight in (*layer.attention, *layer.mlp):
            if weight is not None and not (
                weight.is_leaf
                and weight._backward_hooks is None
                and weight._post_accumulate_grad_hooks is None
            ):
                return False
    return True


class Kept:
    """The blocks of a stack between its passes.

    Args:
        layers: the blocks.
        saved: their tensors, if autograd saves them and takes their gradients.
    """

    def __init__(self, layers: Sequence[Layer], saved: Sequence[Tensor | None]) -> None:
        self._layers = [] if saved else list(layers)
        self._rests = [layer[2:] for layer in layers] if saved else []
        self._versions = _versions(self._layers)

    def layers(self, saved: Sequence[Tensor | None]) -> list[Layer]:
        """The blocks in the backward pass.

        Args:
            saved: what autograd saved of them.

        Raises:
            GrowtasError: a tensor was changed in place since the forward pass.
        """
        if saved:
            return layers_of(saved, self._rests)
        if _versions(self._layers) != self._versions:
            raise GrowtasError(
                "A shared weight was changed in place since the forward pass; change weights before the "
                "forward pass or after the backward pass."
            )
        return self._layers

    def returned(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Of the gradients of all tensors those that autograd takes; otherwise they are added here."""
        if not self._layers:
            return gradients
        weights = [weight for layer in self._layers for weight in (*layer.attention, *layer.mlp)]
        sums, terms, added = [], [], set()
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None and weight is not None and weight.requires_grad:
                if weight.grad is None:
                    weight.grad = gradient
                elif id(weight) in added:  # two blocks share it: a launch must not add to it twice
                    weight.grad += gradient
                else:
                    added.add(id(weight))
                    sums.append(weight.grad)
                    terms.append(gradient)
        if sums:  # of an earlier subnet of this step; all in a few launches
            torch._foreach_add_(sums, terms)
        return ()


def _versions(layers: Sequence[Layer]) -> list[int]:
    return [w._version for layer in layers for w in (*layer.attention, *layer.mlp) if w is not None]
