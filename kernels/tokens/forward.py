"""The first tokens: cls in front of an image's patches, and the absolute position added; forward.

Shapes (B images, N = P + 1 tokens):
    patches (B, P, d)   cls (1, 1, D), position (1, N, D'), of which [..., :d] is active   x (B, N, d)

    x[b, 0] = cls in the patches' dtype + position[0]      x[b, n] = patches[b, n - 1] + position[n]

A program has a tile of tokens and channels of a few consecutive images, so that it reads the position once
for all of them; the patches are read and x is written once. Added in fp32, which rounds as torch does. A
thread has four channels of each tensor, whatever its dtype, so no layout is converted. Saved for backward:
nothing.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned

BLOCK_TOKENS = 16
BLOCK_COLS = 256
MOST_IMAGES = 8  # of one program


@launch.kernel
def _forward(
    patches_ptr,  # (B, N - 1, d) contiguous
    cls_ptr,  # (1, 1, D)
    pos_ptr,  # (1, N, D'), row stride stride_pos
    x_ptr,  # (B, N, d) contiguous
    B,
    N,
    width,  # d
    images,  # of one program
    stride_pos,
    ALIGN: tl.constexpr,  # divides d and stride_pos; up to 4
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (tiles over N * tiles over d, groups of images)."""
    width = known_multiple(width, ALIGN)
    stride_pos = known_multiple(stride_pos, ALIGN)
    col_tiles = tl.cdiv(width, BLOCK_COLS)
    tokens = tl.program_id(0) // col_tiles * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    cols = tl.program_id(0) % col_tiles * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    ok = (tokens < N)[:, None] & (cols < width)[None, :]
    is_patch = (tokens > 0)[:, None] & ok
    position = tl.load(pos_ptr + tokens[:, None] * stride_pos + cols[None, :], mask=ok, other=0.0)
    first = tl.load(cls_ptr + cols, mask=cols < width, other=0.0)
    first = first.to(patches_ptr.dtype.element_ty).to(tl.float32)
    begin = tl.program_id(1) * images
    for image in range(begin, tl.minimum(begin + images, B)):
        at = (image * N + tokens).to(tl.int64)[:, None]
        patch_at = (image * (N - 1) + tokens - 1).to(tl.int64)[:, None]
        patches = tl.load(patches_ptr + patch_at * width + cols[None, :], mask=is_patch, other=0.0)
        x = tl.where((tokens > 0)[:, None], patches.to(tl.float32), first[None, :]) + position.to(tl.float32)
        tl.store(x_ptr + at * width + cols[None, :], x.to(x_ptr.dtype.element_ty), mask=ok)


@planned
def _plan_forward(patches: torch.Tensor, cls_token: torch.Tensor, pos_embed: torch.Tensor) -> Plan:
    """Check and plan; writes x."""
    device = launch.check(patches=patches, cls_token=cls_token, pos_embed=pos_embed)
    batch, count, width = patches.shape
    for name, parameter, held in (("cls_token", cls_token, 1), ("pos_embed", pos_embed, count + 1)):
        if parameter.ndim != 3 or parameter.shape[:2] != (1, held) or parameter.shape[2] < width:
            raise UsageError(
                f"{name} has shape {tuple(parameter.shape)}, but (1, {held}, {width} or more) is needed. "
                "Pass the shared parameter whole."
            )
    tiles_of_an_image = ceil(count + 1, BLOCK_TOKENS) * ceil(width, BLOCK_COLS)
    busy = 8 * launch.multiprocessors(device)  # programs that fill the GPU
    images = max(1, min(MOST_IMAGES, batch * tiles_of_an_image // busy))
    stride = pos_embed.stride(1)
    return Plan(
        _forward,
        (tiles_of_an_image if batch else 0, ceil(batch, images)),
        device,
        (batch, count + 1, width, images, stride),
        {
            "ALIGN": min(4, tiles.alignment(width, stride)),
            "BLOCK_TOKENS": BLOCK_TOKENS,
            "BLOCK_COLS": BLOCK_COLS,
            "num_warps": 4,
        },
        outputs=(((batch, count + 1, width), torch.promote_types(patches.dtype, pos_embed.dtype)),),
    )


def tokens_forward(patches: torch.Tensor, cls_token: torch.Tensor, pos_embed: torch.Tensor) -> torch.Tensor:
    """cls in front of the patches, and the position added, in one launch.

    Args:
        patches: (B, P, d); copied where it is not contiguous.
        cls_token: (1, 1, D), D >= d; rounded to the patches' dtype.
        pos_embed: (1, P + 1, D'), D' >= d.

    Returns:
        x (B, P + 1, d) contiguous, in the wider dtype of patches and pos_embed.

    Raises:
        UsageError: a parameter does not fit the patches, or a tensor cannot be read (see ``launch.check``).
    """
    patches = patches.contiguous()
    cls_token, pos_embed = launch.activation(cls_token), launch.activation(pos_embed)
    plan = _plan_forward(patches, cls_token, pos_embed)
    (x,) = plan.outputs()
    plan.start(patches, cls_token, pos_embed, x)
    return x
