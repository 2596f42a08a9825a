"""Attention with 2-D relative position, as a composition of torch calls.

For query i at grid place (r_i, c_i) and key j at (r_j, c_j), T the tables, m the clamp:
  S_ij = scale * (q_i.k_j + u_i[r_j] + w_i[c_j]),  u_i[r] = q_i.Tkv[clamp(r - r_i) + m + 1], w likewise
  O_i  = sum_j P_ij v_j + sum_r A_i[r] Tvv[...] + sum_c B_i[c] Tvh[...]
with A, B the sums of P over the keys of a row, of a column. Pairs with the cls token, which comes first,
use row 0 of both tables. So nothing of size (N, N, e) exists. Saved: qkv, out and the log-sum-exp of the
logits; P is recomputed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unsupported(head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
    """Why these calls cannot take such tensors: they take all."""
    return ""


def _relative_index(table: Tensor, size: int) -> Tensor:
    """(size, size): for each query place the table's row of each key place along one axis."""
    clamp = table.shape[0] // 2 - 1
    place = torch.arange(size, device=table.device)
    return (place[None, :] - place[:, None]).clamp(-clamp, clamp) + clamp + 1


def _relative_rows(table: Tensor, size: int) -> Tensor:
    """(size, size, e): for each query place the table rows of all key places along one axis."""
    return table[_relative_index(table, size)]


def _scatter_rows(gathered: Tensor, table: Tensor) -> Tensor:
    """The transpose of :func:`_relative_rows`: (size, size, e) summed back into the shape of the table.

    As a matmul with a 0/1 matrix: on a GPU index_add_ would add in a random order.
    """
    index = _relative_index(table, gathered.shape[0]).flatten()
    select = torch.arange(table.shape[0], device=table.device)[:, None] == index
    return select.to(gathered.dtype) @ gathered.flatten(0, 1)


def _cls_tokens(tokens: int, grid: tuple[int, int]) -> int:
    """1 where a cls token comes first, else 0."""
    return tokens - grid[0] * grid[1]


def _to_places(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, N, e) to (B, h, R, C, e), without the cls token."""
    return x[:, :, _cls_tokens(x.shape[2], grid) :].unflatten(2, grid)


def _scores(q: Tensor, k: Tensor, key_v: Tensor, key_h: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scaled logits S (B, h, N, N), at least fp32."""
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    places = _to_places(q, grid)
    u = torch.einsum("bhrce,rse->bhrcs", places, _relative_rows(key_v, grid[0]).to(q.dtype))
    w = torch.einsum("bhrce,cte->bhrct", places, _relative_rows(key_h, grid[1]).to(q.dtype))
    bias = (u.unsqueeze(-1) + w.unsqueeze(-2)).flatten(4).flatten(2, 3)
    cls = _cls_tokens(q.shape[2], grid)
    scores[:, :, cls:, cls:] += bias
    if cls:
        with_cls = torch.matmul(q, (key_v[0] + key_h[0]).to(q.dtype))
        scores[:, :, :, 0] += with_cls
        scores[:, :, 0, 1:] += with_cls[:, :, :1]
    return scores.mul_(q.shape[-1] ** -0.5)


def relative_attention_forward(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Output (B, N, h * e) and log-sum-exp of the logits (B, h, N)."""
    q, k, v = qkv
    scores = _scores(q, k, key_v, key_h, grid)
    lse = scores.logsumexp(-1)
    probabilities = scores.sub_(lse.unsqueeze(-1)).exp_()
    dtype = q.dtype
    out = torch.matmul(probabilities.to(dtype), v)
    cls = _cls_tokens(q.shape[2], grid)
    places = probabilities[:, :, cls:, cls:].unflatten(3, grid).unflatten(2, grid)  # (B, h, R, C, R', C')
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    term = torch.einsum("bhrcs,rse->bhrce", by_row, _relative_rows(value_v, grid[0]).to(dtype))
    term += torch.einsum("bhrct,cte->bhrce", by_column, _relative_rows(value_h, grid[1]).to(dtype))
    out[:, :, cls:] += term.flatten(2, 3)
    if cls:
        cls_row = (value_v[0] + value_h[0]).to(dtype)
        out[:, :, 1:] += probabilities[:, :, 1:, :1].to(dtype) * cls_row
        out[:, :, 0] += cls_row
    return out.transpose(1, 2).flatten(2).contiguous(), lse  # one channel a head: flatten alone is a view


def relative_attention_backward(
    dout: Tensor,
    qkv: Tensor,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    out: Tensor,
    lse: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv (3, B, h, N, e) and of the four tables."""
    q, k, v = qkv
    heads, dtype = q.shape[1], q.dtype
    scale = q.shape[-1] ** -0.5
    wide = lse.dtype
    dout = dout.unflatten(2, (heads, -1)).transpose(1, 2)  # (B, h, N, e)
    out = out.unflatten(2, (heads, -1)).transpose(1, 2)
    delta = (dout.to(wide) * out.to(wide)).sum(-1, keepdim=True)
    probabilities = _scores(q, k, key_v, key_h, grid).sub_(lse.unsqueeze(-1)).exp_()

    # The value term: what each query gives to rows, columns and the cls pair, before it is spread over keys.
    rows_v = _relative_rows(value_v, grid[0]).to(dtype)
    rows_h = _relative_rows(value_h, grid[1]).to(dtype)
    dout_places = _to_places(dout, grid)
    cls = _cls_tokens(q.shape[2], grid)
    places = probabilities[:, :, cls:, cls:].unflatten(3, grid).unflatten(2, grid)
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    dvalue_v = _scatter_rows(torch.einsum("bhrcs,bhrce->rse", by_row, dout_places), value_v)
    dvalue_h = _scatter_rows(torch.einsum("bhrct,bhrce->cte", by_column, dout_places), value_h)
    if cls:
        dcls = torch.einsum("bhn,bhne->e", probabilities[:, :, 1:, 0].to(dtype), dout[:, :, 1:])
        dcls = dcls + dout[:, :, 0].sum((0, 1))
        dvalue_v[0] += dcls
        dvalue_h[0] += dcls

    dprobabilities = torch.matmul(dout, v.transpose(-1, -2)).to(wide)
    for_rows = torch.einsum("bhrce,rse->bhrcs", dout_places, rows_v)
    for_columns = torch.einsum("bhrce,cte->bhrct", dout_places, rows_h)
    dprobabilities[:, :, cls:, cls:] += (
        (for_rows.unsqueeze(-1) + for_columns.unsqueeze(-2)).flatten(4).flatten(2, 3)
    )
    if cls:
        with_cls = torch.matmul(dout, (value_v[0] + value_h[0]).to(dtype))
        dprobabilities[:, :, :, 0] += with_cls
        dprobabilities[:, :, 0, 1:] += with_cls[:, :, :1]
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    torch.matmul(probabilities.to(dtype).transpose(-1, -2), dout, out=dqkv[2])
    dscores = dprobabilities.sub_(delta).mul_(probabilities).mul_(scale)

    # The key term: row and column sums of dS, and its cls entries.
    places = dscores[:, :, cls:, cls:].unflatten(3, grid).unflatten(2, grid)
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    rows_v = _relative_rows(key_v, grid[0]).to(dtype)
    rows_h = _relative_rows(key_h, grid[1]).to(dtype)
    q_places = _to_places(q, grid)
    dq = torch.matmul(dscores.to(dtype), k)
    term = torch.einsum("bhrcs,rse->bhrce", by_row, rows_v)
    term += torch.einsum("bhrct,cte->bhrce", by_column, rows_h)
    dq[:, :, cls:] += term.flatten(2, 3)
    dkey_v = _scatter_rows(torch.einsum("bhrcs,bhrce->rse", by_row, q_places), key_v)
    dkey_h = _scatter_rows(torch.einsum("bhrct,bhrce->cte", by_column, q_places), key_h)
    if cls:
        cls_sums = dscores[:, :, :, 0].clone()
        cls_sums[:, :, 0] += dscores[:, :, 0, 1:].sum(-1)
        cls_sums = cls_sums.to(dtype)
        dq += cls_sums.unsqueeze(-1) * (key_v[0] + key_h[0]).to(dtype)
        dcls = torch.einsum("bhn,bhne->e", cls_sums, q)
        dkey_v[0] += dcls
        dkey_h[0] += dcls
    dqkv[0] = dq
    torch.matmul(dscores.to(dtype).transpose(-1, -2), q, out=dqkv[1])
    tables = ((dkey_v, key_v), (dkey_h, key_h), (dvalue_v, value_v), (dvalue_h, value_h))
    return dqkv, *(gradient.to(table.dtype) for gradient, table in tables)
