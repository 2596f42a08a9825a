"""LayerNorm of tokens and their mean over each image: forward.

Shapes (B images of N tokens, M = B * N rows; tokens first .. last - 1 are pooled):
    x (B, N, d)   weight (D,), bias (D,), of which [:d] is active   pooled (B, d)   mean, rstd (M,) fp32

    xhat = (x - mean) * rstd              pooled = average over tokens of xhat * weight + bias

Everything is computed in fp32; the normalised rows are not written. Rows lie in warps as in
``layer_norm.forward``. The tokens of an image are split among programs, so that few images fill a GPU too;
each leaves the sum of its rows, and the last program of an image adds the sums in order (``split_k``). Saved
for backward: mean and rstd of the pooled tokens; those of others are not written.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.checks import check_norm_parameters
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.common.split_k import arrive
from growtas.kernels.common.variance import rstd_of
from growtas.kernels.layer_norm.layout import along_rows, column_sums, columns, row_sums


@launch.kernel
def _forward(
    x_ptr,  # (B, N, d) contiguous
    weight_ptr,  # (D,)
    bias_ptr,  # (D,)
    pooled_ptr,  # (B, d) contiguous
    mean_ptr,  # (M,) fp32
    rstd_ptr,  # (M,) fp32
    partial_ptr,  # (B, splits, BLOCK_COLS) fp32: sums of xhat over some tokens; not used where splits is 1
    counter_ptr,  # (B,) int32 zeros; likewise
    N,
    width,  # d
    first,
    last,
    splits,
    rows_per_split,  # a multiple of BLOCK_ROWS
    eps,
    ALIGN: tl.constexpr,  # divides d; up to 4
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Grid: (B * splits,)."""
    width = known_multiple(width, ALIGN)
    image = tl.program_id(0) // splits
    split = tl.program_id(0) % splits
    begin = first + split * rows_per_split
    end = tl.minimum(begin + rows_per_split, last)
    cols = columns(BLOCK_COLS)
    col_ok = cols < width
    total = along_rows(tl.zeros((BLOCK_ROWS,), tl.float32)) + tl.zeros_like(cols).to(tl.float32)
    for token in range(begin, end, BLOCK_ROWS):
        tokens = token + tl.arange(0, BLOCK_ROWS)
        row_ok = along_rows(tokens < end)
        at = along_rows((image * N + tokens).to(tl.int64))
        x = tl.load(x_ptr + at * width + cols, mask=row_ok & col_ok, other=0.0).to(tl.float32)
        mean = row_sums(x) / width
        centred = tl.where(col_ok, x - mean, 0.0)
        rstd = rstd_of(row_sums(centred * centred) / width, eps)
        total += tl.where(row_ok, centred * rstd, 0.0)
        tl.store(mean_ptr + at, mean, mask=row_ok)
        tl.store(rstd_ptr + at, rstd, mask=row_ok)
    sums = column_sums(total, BLOCK_COLS)
    entries = tl.arange(0, BLOCK_COLS)
    is_last = splits == 1
    if splits > 1:
        partial_ptr += (image * splits).to(tl.int64) * BLOCK_COLS
        tl.store(partial_ptr + split * BLOCK_COLS + entries, sums)
        is_last = arrive(counter_ptr + image, splits)
        if is_last:
            sums = tl.zeros((BLOCK_COLS,), tl.float32)
            for _ in range(0, splits):
                sums += tl.load(partial_ptr + entries, cache_modifier=".cg")
                partial_ptr += BLOCK_COLS
    if is_last:
        ok = entries < width
        weight = tl.load(weight_ptr + entries, mask=ok, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + entries, mask=ok, other=0.0).to(tl.float32)
        pooled = sums / (last - first) * weight + bias
        at = image.to(tl.int64) * width + entries
        tl.store(pooled_ptr + at, pooled.to(pooled_ptr.dtype.element_ty), mask=ok)


def check_pooled(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int, last: int) -> None:
    """Refuse x that is not (B, N, d), parameters that do not fit, and tokens that x does not have.

    Raises:
        UsageError: with the shapes, or the range of tokens.
    """
    if x.ndim != 3:
        raise UsageError(f"x has shape {tuple(x.shape)}, but (B, N, d) is needed.")
    check_norm_parameters(x.shape[2], weight, bias)
    if not 0 <= first < last <= x.shape[1]:
        raise UsageError(
            f"Tokens {first} to {last - 1} were to be pooled, but an image has {x.shape[1]}. Pool "
            "one or more of them."
        )


@planned
def _plan_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: int,
    last: int,
    eps: float,
    out_dtype: torch.dtype,
) -> Plan:
    """Check and plan; writes pooled, mean and rstd."""
    check_pooled(x, weight, bias, first, last)
    device = launch.check(x=x, weight=weight, bias=bias)
    launch.check_dtype("pooled", out_dtype)
    batch, count, width = x.shape
    tile = tiles.pick_norm(width)
    wanted = ceil(4 * launch.multiprocessors(device), max(batch, 1))  # of an image, to fill the GPU
    rows = ceil(ceil(last - first, wanted), tile.rows) * tile.rows
    splits = ceil(last - first, rows)
    return Plan(
        _forward,
        (batch * splits,),
        device,
        (count, width, first, last, splits, rows, eps),
        {
            "ALIGN": min(4, tiles.alignment(width)),
            "BLOCK_ROWS": tile.rows,
            "BLOCK_COLS": tile.cols,
            "num_warps": tile.warps,
        },
        outputs=(
            ((batch, width), out_dtype),
            ((batch * count,), torch.float32),
            ((batch * count,), torch.float32),
        ),
        counters=batch,
        partials=batch * splits * tile.cols,
    )


def pooled_norm_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: int,
    last: int,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise tokens first .. last - 1 of each image, and average them, in one launch.

    Args:
        x: (B, N, d); copied where it is not contiguous.
        weight, bias: (D,), D >= d; any of the three dtypes, independent of x.
        first, last: which tokens are pooled.
        eps: added to the variance.
        out_dtype: of pooled; None means x's.

    Returns:
        pooled (B, d), and mean and rstd, (B * N,) fp32 each, of the pooled tokens, for the backward pass.

    Raises:
        UsageError: d is over D or over ``tiles.MAX_NORM_WIDTH``, x does not have the tokens, or a tensor
        cannot be read (see ``launch.check``).
    """
    x = x.contiguous()
    plan = _plan_forward(x, weight, bias, first, last, eps, out_dtype or x.dtype)
    pooled, mean, rstd = plan.outputs()
    plan.start(x, weight, bias, pooled, mean, rstd)
    return pooled, mean, rstd
