"""Every operation as a composition of torch calls: the ``torch`` back end; in fp64, the truth for the others.

Weights arrive at full size and are read through strided views of the slice: BLAS takes a leading dimension,
so nothing is copied. The one exception is mixed precision, where a slice of another dtype than the
activations is cast first. Weight gradients are full-size, each element written once (:func:`full_size`).

Shapes: M rows of activations, k and n widths of a slice, N_max and K_max of the shared weight; B batch,
h heads, N tokens, e channels per head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def full_size(like: Tensor, rows: int, columns: int | None = None) -> tuple[Tensor, Tensor]:
    """A gradient of the shared weight's size: zero outside the slice, the slice yet to be written.

    Args:
        like: the shared weight, (N_max, K_max) or (N_max,).
        rows: rows of the slice.
        columns: columns of the slice, of a matrix.

    Returns:
        The gradient and the view of its slice.
    """
    gradient = torch.empty_like(like, memory_format=torch.contiguous_format)
    gradient[rows:].zero_()
    if columns is None:
        return gradient, gradient[:rows]
    gradient[:rows, columns:].zero_()
    return gradient, gradient[:rows, :columns]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` straight into a strided view; through a temporary where the dtypes differ."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


# -- partial LayerNorm -----------------------------------------------------------------------------------


def layer_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise rows (M, d) with the first d entries of weight and bias; also mean and rstd, (M,)."""
    d = x.shape[-1]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    y, mean, rstd = torch.native_layer_norm(x, (d,), weight[:d].to(x.dtype), bias[:d].to(x.dtype), eps)
    return y.to(out_dtype), mean.view(-1), rstd.view(-1)


def layer_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (M, d), and of weight and bias at full size."""
    d, dtype = x.shape[-1], x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    mean, rstd = mean.to(wide).view(-1, 1), rstd.to(wide).view(-1, 1)
    dx, dw, db = torch.ops.aten.native_layer_norm_backward(
        dy.to(wide), x.to(wide), (d,), mean, rstd, weight[:d].to(wide), bias[:d].to(wide), [True, True, True]
    )
    dweight, weight_slice = full_size(weight, d)
    dbias, bias_slice = full_size(bias, d)
    weight_slice.copy_(dw)
    bias_slice.copy_(db)
    return dx.to(dtype), dweight, dbias


# -- sliced linear ---------------------------------------------------------------------------------------


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    matrix = weight[:out_features, : x.shape[1]].to(x.dtype).t()
    if bias is None:
        return torch.mm(x, matrix)
    return torch.addmm(bias[:out_features].to(x.dtype), x, matrix)


def linear_backward_input(dy: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """``dy (M, n) @ weight[:n, :k]``."""
    return torch.mm(dy, weight[: dy.shape[1], :in_features].to(dy.dtype))


def linear_backward_weight(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight, ``dy.T @ x`` in its slice, and of bias, the sum of dy."""
    dweight, weight_slice = full_size(weight, dy.shape[1], x.shape[1])
    _product(dy.t(), x, weight_slice)
    return dweight, None if bias is None else _bias_gradient(dy, bias)


def _bias_gradient(dy: Tensor, bias: Tensor) -> Tensor:
    dbias, bias_slice = full_size(bias, dy.shape[1])
    torch.sum(dy, 0, dtype=bias.dtype, out=bias_slice)
    return dbias


# -- sliced QKV ------------------------------------------------------------------------------------------


def qkv_rows(weight: Tensor, num_heads: int, head_dim: int, part: int) -> Tensor:
    """The rows of q (part 0), k (1) or v (2) in an interleaved weight or bias, as a strided view.

    Row ``3 * u + part`` belongs to channel u of that part, so the heads of a small subnet come first.
    """
    return weight.view(-1, 3, *weight.shape[1:])[: num_heads * head_dim, part]


def qkv_bias_rows(bias: Tensor, num_heads: int, head_dim: int, part: int, layout: str) -> Tensor:
    """The bias of q, k or v: interleaved like the weight, or as the published code slices it."""
    if layout == "interleaved":
        return qkv_rows(bias, num_heads, head_dim, part)
    width = num_heads * head_dim
    return bias[part * width : (part + 1) * width]


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d)."""
    batch, tokens, d = x.shape
    rows = x.reshape(-1, d)
    out = x.new_empty(3, batch * tokens, num_heads * head_dim)
    for part in range(3):
        matrix = qkv_rows(weight, num_heads, head_dim, part)[:, :d].to(x.dtype).t()
        if bias is None:
            torch.mm(rows, matrix, out=out[part])
        else:
            shift = qkv_bias_rows(bias, num_heads, head_dim, part, bias_layout).to(x.dtype)
            torch.addmm(shift, rows, matrix, out=out[part])
    return out.view(3, batch, tokens, num_heads, head_dim).transpose(2, 3).contiguous()


def token_major(qkv: Tensor) -> Tensor:
    """The same (3, B, h, N, e) values, token by token in memory: both gradients below read it as it is."""
    return qkv.transpose(2, 3).contiguous().transpose(2, 3)


def _merge_heads(qkv: Tensor) -> Tensor:
    """(3, B, h, N, e) to (3, B * N, h * e): a view of a token-major tensor, a copy of any other."""
    parts, batch, num_heads, tokens, head_dim = qkv.shape
    return qkv.transpose(2, 3).reshape(parts, batch * tokens, num_heads * head_dim)


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    _, batch, num_heads, tokens, head_dim = dqkv.shape
    merged = _merge_heads(dqkv)
    dx = dqkv.new_empty(batch * tokens, in_features)
    for part in range(3):
        matrix = qkv_rows(weight, num_heads, head_dim, part)[:, :in_features].to(dqkv.dtype)
        torch.addmm(dx, merged[part], matrix, beta=1 if part else 0, out=dx)
    return dx.view(batch, tokens, in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    num_heads, head_dim = dqkv.shape[2], dqkv.shape[4]
    d = x.shape[-1]
    merged, rows = _merge_heads(dqkv), x.reshape(-1, d)
    active = 3 * num_heads * head_dim
    dweight, _ = full_size(weight, active, d)
    dbias = None if bias is None else full_size(bias, active)[0]
    for part in range(3):
        _product(merged[part].t(), rows, qkv_rows(dweight, num_heads, head_dim, part)[:, :d])
        if dbias is not None:
            target = qkv_bias_rows(dbias, num_heads, head_dim, part, bias_layout)
            target.copy_(merged[part].sum(0, dtype=dbias.dtype))
    return dweight, dbias


# -- attention with 2-D relative position ----------------------------------------------------------------
#
# For query i at grid place (r_i, c_i) and key j at (r_j, c_j), T the tables, m the clamp:
#   S_ij = scale * (q_i.k_j + u_i[r_j] + w_i[c_j]),  u_i[r] = q_i.Tkv[clamp(r - r_i) + m + 1], w likewise
#   O_i  = sum_j P_ij v_j + sum_r A_i[r] Tvv[...] + sum_c B_i[c] Tvh[...]
# with A, B the sums of P over the keys of a row, of a column. Pairs with the cls token, which comes first,
# use row 0 of both tables. So nothing of size (N, N, e) exists. Saved: qkv, out and the log-sum-exp of the
# logits; P is recomputed.


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

    As a product with a 0/1 matrix: on a GPU index_add_ would add in a random order.
    """
    index = _relative_index(table, gathered.shape[0]).flatten()
    select = torch.arange(table.shape[0], device=table.device)[:, None] == index
    return select.to(gathered.dtype) @ gathered.flatten(0, 1)


def _to_places(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, N, e) with the cls token to (B, h, R, C, e) without it."""
    return x[:, :, 1:].unflatten(2, grid)


def _scores(q: Tensor, k: Tensor, key_v: Tensor, key_h: Tensor, grid: tuple[int, int]) -> Tensor:
    """Scaled logits S (B, h, N, N), at least fp32."""
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    places = _to_places(q, grid)
    u = torch.einsum("bhrce,rse->bhrcs", places, _relative_rows(key_v, grid[0]).to(q.dtype))
    w = torch.einsum("bhrce,cte->bhrct", places, _relative_rows(key_h, grid[1]).to(q.dtype))
    bias = (u.unsqueeze(-1) + w.unsqueeze(-2)).flatten(4).flatten(2, 3)
    scores[:, :, 1:, 1:] += bias
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
    places = probabilities[:, :, 1:, 1:].unflatten(3, grid).unflatten(2, grid)  # (B, h, R, C, R', C')
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    term = torch.einsum("bhrcs,rse->bhrce", by_row, _relative_rows(value_v, grid[0]).to(dtype))
    term += torch.einsum("bhrct,cte->bhrce", by_column, _relative_rows(value_h, grid[1]).to(dtype))
    cls_row = (value_v[0] + value_h[0]).to(dtype)
    out[:, :, 1:] += term.flatten(2, 3) + probabilities[:, :, 1:, :1].to(dtype) * cls_row
    out[:, :, 0] += cls_row
    return out.transpose(1, 2).flatten(2), lse


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
    cls_row = (value_v[0] + value_h[0]).to(dtype)
    places = probabilities[:, :, 1:, 1:].unflatten(3, grid).unflatten(2, grid)
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    dvalue_v = _scatter_rows(torch.einsum("bhrcs,bhrce->rse", by_row, dout_places), value_v)
    dvalue_h = _scatter_rows(torch.einsum("bhrct,bhrce->cte", by_column, dout_places), value_h)
    dcls = torch.einsum("bhn,bhne->e", probabilities[:, :, 1:, 0].to(dtype), dout[:, :, 1:])
    dcls = dcls + dout[:, :, 0].sum((0, 1))
    dvalue_v[0] += dcls
    dvalue_h[0] += dcls

    dprobabilities = torch.matmul(dout, v.transpose(-1, -2)).to(wide)
    for_rows = torch.einsum("bhrce,rse->bhrcs", dout_places, rows_v)
    for_columns = torch.einsum("bhrce,cte->bhrct", dout_places, rows_h)
    dprobabilities[:, :, 1:, 1:] += (
        (for_rows.unsqueeze(-1) + for_columns.unsqueeze(-2)).flatten(4).flatten(2, 3)
    )
    with_cls = torch.matmul(dout, cls_row)
    dprobabilities[:, :, :, 0] += with_cls
    dprobabilities[:, :, 0, 1:] += with_cls[:, :, :1]
    dqkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    torch.matmul(probabilities.to(dtype).transpose(-1, -2), dout, out=dqkv[2])
    dscores = dprobabilities.sub_(delta).mul_(probabilities).mul_(scale)

    # The key term: row and column sums of dS, and its cls entries.
    places = dscores[:, :, 1:, 1:].unflatten(3, grid).unflatten(2, grid)
    by_row, by_column = places.sum(5).to(dtype), places.sum(4).to(dtype)
    rows_v = _relative_rows(key_v, grid[0]).to(dtype)
    rows_h = _relative_rows(key_h, grid[1]).to(dtype)
    q_places = _to_places(q, grid)
    dq = torch.matmul(dscores.to(dtype), k)
    term = torch.einsum("bhrcs,rse->bhrce", by_row, rows_v)
    term += torch.einsum("bhrct,cte->bhrce", by_column, rows_h)
    dq[:, :, 1:] += term.flatten(2, 3)
    cls_sums = dscores[:, :, :, 0].clone()
    cls_sums[:, :, 0] += dscores[:, :, 0, 1:].sum(-1)
    cls_sums = cls_sums.to(dtype)
    dq += cls_sums.unsqueeze(-1) * (key_v[0] + key_h[0]).to(dtype)
    dqkv[0] = dq
    torch.matmul(dscores.to(dtype).transpose(-1, -2), q, out=dqkv[1])
    dkey_v = _scatter_rows(torch.einsum("bhrcs,bhrce->rse", by_row, q_places), key_v)
    dkey_h = _scatter_rows(torch.einsum("bhrct,bhrce->cte", by_column, q_places), key_h)
    dcls = torch.einsum("bhn,bhne->e", cls_sums, q)
    dkey_v[0] += dcls
    dkey_h[0] += dcls
    tables = ((dkey_v, key_v), (dkey_h, key_h), (dvalue_v, value_v), (dvalue_h, value_h))
    return dqkv, *(gradient.to(table.dtype) for gradient, table in tables)
