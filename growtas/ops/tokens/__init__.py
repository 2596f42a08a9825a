"""The residual stream's first tokens: cls in front of the patches, and the absolute position added.

It moves the stream once and computes next to nothing, as a LayerNorm does, so it is not raced: it runs where
``layer_norm`` of the stream runs, in Triton, and in torch elsewhere.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import checks
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.registry import classic, eager, refuse_second_derivative
from growtas.ops.tokens import reference


class Backend(Protocol):
    """The steps of one language. Shapes: patches (B, P, d), cls_token (1, 1, D), pos_embed (1, P + 1, D)."""

    def tokens_forward(self, patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
        """(B, P + 1, d) in the wider dtype of patches and pos_embed."""

    def tokens_backward(
        self,
        dy: Tensor,
        dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
        widths: tuple[int, int],
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of patches, cls_token and pos_embed in their dtypes, the parameters' of their full
        widths; None where not needed."""


BACKENDS: dict[str, Backend | Lazy] = {"torch": reference, "triton": Lazy("growtas.kernels.tokens")}

TOKENS: Operation[Backend] = Operation("tokens", BACKENDS, follows="layer_norm")


def tokens(patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    """``cat(cls, patches) + position``, of the first d channels of both shared parameters.

    Args:
        patches: (B, P, d), in any dtype; cls is rounded to it.
        cls_token: (1, 1, D), d <= D.
        pos_embed: (1, P + 1, D).

    Returns:
        (B, P + 1, d), in the wider dtype of patches and pos_embed. Gradients of the parameters have the
        shared size, zero outside the slice.

    Raises:
        UsageError: the patches are wider than a parameter, the position has another number of tokens, or an
            argument has another shape, dtype or device.
    """
    patches = checks.activation("tokens", patches, 3, "(B, P, d)", "patches")
    for name, parameter, count in (
        ("cls_token", cls_token, 1),
        ("pos_embed", pos_embed, patches.shape[1] + 1),
    ):
        one, held, full = checks.shared("tokens", name, parameter, 3, patches)
        if one != 1 or held != count or full < patches.shape[2]:
            raise UsageError(
                f"tokens got {name} of shape {tuple(parameter.shape)} and patches of shape "
                f"{tuple(patches.shape)}, and takes (1, {count}, {patches.shape[2]} or more)."
            )
    if eager():
        return Tokens.apply(patches, cls_token, pos_embed)
    width = patches.shape[-1]
    cls = cls_token[:, :, :width].expand(len(patches), -1, -1).to(patches.dtype)
    return torch.cat((cls, patches), 1) + pos_embed[:, :, :width]


def _forward(patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
    stream = torch.promote_types(patches.dtype, pos_embed.dtype)
    run = TOKENS(patches, pos_embed.shape[-1], stream).tokens_forward
    return run(patches, cls_token, pos_embed)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Saved: no tensor, only the dtypes and widths that the backward pass needs."""
    patches, cls_token, pos_embed = inputs
    ctx.dtypes = patches.dtype, cls_token.dtype, pos_embed.dtype
    ctx.widths = cls_token.shape[-1], pos_embed.shape[-1]
    ctx.backend = TOKENS(patches, ctx.widths[1], output.dtype)
    ctx.set_materialize_grads(False)


class Tokens(torch.autograd.Function):
    """See the head of the file."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing downstream used the result
            return None, None, None
        if ctx.backend is not reference:
            refuse_second_derivative("tokens")
        return ctx.backend.tokens_backward(checks.values(dy), ctx.dtypes, ctx.widths, ctx.needs_input_grad)
