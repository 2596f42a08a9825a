"""The residual stream's first tokens: cls in front of the patches, and the absolute position added.

Written as ``cat`` and ``+`` they pass over the stream twice, and autograd makes nine nodes of them; here each
pass writes its result once.

Saved: nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import checks
from growtas.ops.registry import classic, eager


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
    batch, count, width = patches.shape
    position = pos_embed[:, :, :width]
    first = cls_token[:, :, :width].to(patches.dtype) + position[:, :1]
    x = patches.new_empty((batch, count + 1, width), dtype=first.dtype)
    x[:, :1] = first
    torch.add(patches, position[:, 1:], out=x[:, 1:])
    return x


def _keep(ctx, inputs, output) -> None:
    """Save the dtypes and widths that the backward pass needs."""
    patches, cls_token, pos_embed = inputs
    ctx.dtypes = tuple(t.dtype for t in inputs)
    ctx.full = cls_token.shape[-1], pos_embed.shape[-1]
    ctx.set_materialize_grads(False)


def _summed(dy: Tensor, full: int, dtype: torch.dtype) -> Tensor:
    """The sum over the images, at the full size of the shared parameter."""
    _, count, width = dy.shape
    if width == full:
        return dy.sum(0, keepdim=True, dtype=dtype)
    gradient = dy.new_empty((1, count, full), dtype=dtype)
    gradient[:, :, width:].zero_()
    torch.sum(dy, 0, keepdim=True, dtype=dtype, out=gradient[:, :, :width])
    return gradient


class Tokens(torch.autograd.Function):
    """See the head of the file."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:  # nothing downstream used the result
            return None, None, None
        patches, cls_token, pos_embed = ctx.dtypes
        dpatches, dcls, dposition = None, None, None
        if ctx.needs_input_grad[0]:
            dpatches = dy[:, 1:].to(patches)
        if ctx.needs_input_grad[1]:
            dcls = _summed(dy[:, :1].to(patches), ctx.full[0], cls_token)
        if ctx.needs_input_grad[2]:
            dposition = _summed(dy, ctx.full[1], pos_embed)
        return dpatches, dcls, dposition
