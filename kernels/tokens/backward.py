"""The first tokens: gradients of the patches, of cls and of the absolute position.

Shapes as in ``tokens.forward``; dy (B, N, d), and:
    dpatches[b, n - 1] = dy[b, n]        dposition[n, :d] = sum over images of dy[b, n]
    dcls[:d] = sum over images of dy[b, 0] in the patches' dtype; both are zero from d on

A program has one token and a tile of channels, and walks over all images in fp32. So dy is read once, a sum
has one owner, which adds in the same order every time, and nothing is left for a second launch. Narrow tiles
make enough programs: 788 for AutoFormer-T's 197 tokens. Tiles past d have no images; they write the zeros.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned

BLOCK_IMAGES = 32
BLOCK_COLS = 64


@launch.kernel
def _backward(
    dy_ptr,  # (B, N, d) contiguous
    dpatches_ptr,  # (B, N - 1, d) contiguous
    dcls_ptr,  # (1, 1, D) contiguous
    dpos_ptr,  # (1, N, D') contiguous
    B,
    N,
    width,  # d
    cls_width,  # D
    pos_width,  # D'
    ALIGN: tl.constexpr,  # divides d, D and D'; up to 4
    BLOCK_IMAGES: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (tiles over max(D, D'), N)."""
    width = known_multiple(width, ALIGN)
    cls_width = known_multiple(cls_width, ALIGN)
    pos_width = known_multiple(pos_width, ALIGN)
    token = tl.program_id(1)
    cols = tl.program_id(0) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_ok = cols < width
    total = tl.zeros((BLOCK_IMAGES, BLOCK_COLS), tl.float32)
    rounded_total = tl.zeros((BLOCK_IMAGES, BLOCK_COLS), tl.float32)
    some = tl.where(tl.program_id(0) * BLOCK_COLS < width, B, 0)
    for first in range(0, some, BLOCK_IMAGES):
        images = first + tl.arange(0, BLOCK_IMAGES)
        ok = (images < B)[:, None] & col_ok[None, :]
        at = (images * N + token).to(tl.int64)[:, None]
        dy = tl.load(dy_ptr + at * width + cols[None, :], mask=ok, other=0.0).to(tl.float32)
        total += dy
        rounded = dy.to(dpatches_ptr.dtype.element_ty)
        if token == 0:
            rounded_total += rounded.to(tl.float32)
        else:
            patch_at = (images * (N - 1) + token - 1).to(tl.int64)[:, None]
            tl.store(dpatches_ptr + patch_at * width + cols[None, :], rounded, mask=ok)
    sums = tl.sum(total, axis=0).to(dpos_ptr.dtype.element_ty)
    tl.store(dpos_ptr + token.to(tl.int64) * pos_width + cols, sums, mask=cols < pos_width)
    if token == 0:
        sums = tl.sum(rounded_total, axis=0)
        tl.store(dcls_ptr + cols, sums.to(dcls_ptr.dtype.element_ty), mask=cols < cls_width)


@planned
def _plan_backward(
    dy: torch.Tensor, dtypes: tuple[torch.dtype, torch.dtype, torch.dtype], widths: tuple[int, int]
) -> Plan:
    """Check and plan; writes dpatches, dcls and dposition."""
    device = launch.check(dy=dy)
    for name, dtype in zip(("dpatches", "dcls", "dposition"), dtypes, strict=True):
        launch.check_dtype(name, dtype)
    batch, count, width = dy.shape
    if min(widths) < width:
        raise UsageError(f"dy has {width} channels, but the shared parameters have {widths}. Pass their own.")
    return Plan(
        _backward,
        (ceil(max(widths), BLOCK_COLS), count),
        device,
        (batch, count, width, *widths),
        {
            "ALIGN": min(4, tiles.alignment(width, *widths)),
            "BLOCK_IMAGES": BLOCK_IMAGES,
            "BLOCK_COLS": BLOCK_COLS,
            "num_warps": 4,
        },
        outputs=(
            ((batch, count - 1, width), dtypes[0]),
            ((1, 1, widths[0]), dtypes[1]),
            ((1, count, widths[1]), dtypes[2]),
        ),
    )


def tokens_backward(
    dy: torch.Tensor,
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    widths: tuple[int, int],
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of patches and of both parameters at full size, zero past d, in one launch.

    Args:
        dy: (B, N, d); copied where it is not contiguous.
        dtypes: of patches, cls and position, and so of their gradients.
        widths: D and D' of the shared parameters.
        needs: which of the three are returned. One launch makes all of them.

    Returns:
        dpatches (B, N - 1, d), dcls (1, 1, D) and dposition (1, N, D'); None where not needed.

    Raises:
        UsageError: dy is wider than a parameter, or cannot be read (see ``launch.check``).
    """
    dy = dy.contiguous()
    plan = _plan_backward(dy, dtypes, widths)
    found = plan.outputs()
    plan.start(dy, *found)
    dpatches, dcls, dposition = [
        gradient if needed else None for gradient, needed in zip(found, needs, strict=True)
    ]
    return dpatches, dcls, dposition
