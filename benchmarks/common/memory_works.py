"""LayerNorm beside a copy of as many bytes, and relative attention beside torch's flash attention.

Flash attention has no relative position: what it computes is less, and not compared. The yardstick of
growtas' error is the reference composition in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.product_works import _then
from common.works import Call, Inputs, Layer, Work, differentiate, launcher, normal

EPS = 1e-5
BACKENDS = ("triton", "cuda", "cpu", "torch")


def norm_works(found: Iterable[Layer]) -> Iterator[Work]:
    """LayerNorm forward and backward at every width."""
    seen = set()
    for layer in found:
        if (layer.D, layer.d) not in seen:
            seen.add((layer.D, layer.d))
            for direction in ("forward", "backward"):
                yield norm_work(layer, direction)


def norm_work(layer: Layer, direction: str) -> Work:
    """LayerNorm of one width: 16 bits in and out, as many bytes as a copy of two or of one and a half."""
    build, dense = (_norm, _norm_dense) if direction == "forward" else (_norm_backward, _norm_backward_dense)
    tensors = 2 if direction == "forward" else 3  # read x, write y; read dy and x, write dx
    ways = {"torch": partial(dense, layer), "copy": partial(_copy, tensors)}
    ways |= {f"growtas {name}": partial(build, layer, name) for name in BACKENDS}
    return Work(
        "layer_norm",
        f"layer_norm {direction}",
        layer,
        lambda batch: 0,
        lambda batch, element: tensors * element * batch * layer.tokens * layer.d,
        partial(_norm_inputs, layer),
        ways,
        "copy",
        partial(dense, layer),
        yardstick="torch",
        unchecked=("copy",),
    )


def _norm_inputs(layer: Layer, batch: int, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    draw = normal(device, seed)
    rows, d = batch * layer.tokens, layer.d
    x, dy = (3 * draw(rows, d) + 0.5).to(dtype), draw(rows, d).to(dtype)
    gamma, beta = 1 + draw(layer.D, scale=0.1), draw(layer.D, scale=0.1)
    # The buffer that is copied has half as many bytes as LayerNorm moves.
    return Inputs(x=x, dy=dy, gamma=gamma, beta=beta, copied=torch.cat((x.flatten(), dy.flatten())))


def _copy(tensors: int, i: Inputs) -> Call:
    source = i.copied[: tensors * i.x.numel() // 2]
    target = torch.empty_like(source)
    return lambda: (target.copy_(source),)


def _norm(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "layer_norm_forward")
    return _then(lambda: launch(i.x, i.gamma, i.beta, EPS, i.x.dtype), lambda found: found[:1])


def _norm_dense(layer: Layer, i: Inputs) -> Call:
    gamma, beta = (p[: layer.d].to(i.x.dtype) for p in (i.gamma, i.beta))
    return lambda: (F.layer_norm(i.x, (layer.d,), gamma, beta, EPS),)


def _norm_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    forward, launch = launcher(backend, "layer_norm_forward"), launcher(backend, "layer_norm_backward")
    _, mean, rstd = forward(i.x, i.gamma, i.beta, EPS, i.x.dtype)
    d = layer.d
    return _then(lambda: launch(i.dy, i.x, i.gamma, i.beta, mean, rstd), lambda g: (g[0], g[1][:d], g[2][:d]))


def _norm_backward_dense(layer: Layer, i: Inputs) -> Call:
    leaves = [
        t.detach().requires_grad_() for t in (i.x, i.gamma[: layer.d].clone(), i.beta[: layer.d].clone())
    ]
    x, gamma, beta = leaves
    y = F.layer_norm(x, (layer.d,), gamma.to(x.dtype), beta.to(x.dtype), EPS)
    return differentiate(y, leaves, i.dy)


# -- attention -----------------------------------------------------------------------------------------------


def attention_works(found: Iterable[Layer]) -> Iterator[Work]:
    """Relative attention forward and backward at every number of heads."""
    seen = set()
    for layer in found:
        if (layer.grid, layer.heads, layer.e) not in seen:
            seen.add((layer.grid, layer.heads, layer.e))
            for direction in ("forward", "backward"):
                yield attention_work(layer, direction)


def attention_work(layer: Layer, direction: str) -> Work:
    """Relative attention at one number of heads; flash attention's FLOPs and bytes, and the thin products."""
    n, e, width = layer.tokens, layer.e, layer.width
    places = n + layer.grid[0] + layer.grid[1] + 1
    passes = 2 if direction == "forward" else 5  # products over the logits
    tensors = 4 if direction == "forward" else 8  # q, k, v, out; and dout, dq, dk, dv
    forward = direction == "forward"
    build = _attention if forward else _attention_backward
    ways = {
        "flash": _flash if forward else _flash_backward,
        "reference": partial(build, layer, "torch"),
        "growtas triton": partial(build, layer, "triton"),
        "growtas cpu": partial(build, layer, "cpu"),
    }
    return Work(
        "attention",
        f"attention {direction}",
        layer,
        lambda batch: passes * 2 * batch * layer.heads * n * places * e,
        lambda batch, element: tensors * element * batch * n * width,
        partial(_attention_inputs, layer),
        ways,
        "flash",
        partial(build, layer, "torch"),
        yardstick="reference",
        unchecked=("flash",),
        untimed=("reference",),
    )


def _attention_inputs(
    layer: Layer, batch: int, device: torch.device, dtype: torch.dtype, seed: int
) -> Inputs:
    draw = normal(device, seed)
    if device.type == "cpu":  # as the product leaves it there: q, k and v of a channel side by side
        qkv = draw(batch, layer.tokens, layer.heads, layer.e, 3).permute(4, 0, 2, 1, 3).to(dtype)
    else:
        qkv = draw(3, batch, layer.heads, layer.tokens, layer.e).to(dtype)
    rows = 2 * layer.clamp + 2
    tables = {f"table{index}": draw(rows, layer.e, scale=0.3) for index in range(4)}
    return Inputs(qkv=qkv, dout=draw(batch, layer.tokens, layer.width).to(dtype), **tables)


def _tables(i: Inputs) -> list:
    return [i[f"table{index}"] for index in range(4)]


def _attention(layer: Layer, backend: str, i: Inputs) -> Call:
    launch, tables = launcher(backend, "relative_attention_forward"), _tables(i)
    return _then(lambda: launch(i.qkv, *tables, layer.grid), lambda found: found[:1])


def _attention_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    forward = launcher(backend, "relative_attention_forward")
    launch, tables = launcher(backend, "relative_attention_backward"), _tables(i)
    out, lse = forward(i.qkv, *tables, layer.grid)
    return _then(lambda: launch(i.dout, i.qkv, *tables, out, lse, layer.grid), tuple)


def _sdpa(q, k, v):
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def _flash(i: Inputs) -> Call:
    q, k, v = i.qkv
    return lambda: (_sdpa(q, k, v),)


def _flash_backward(i: Inputs) -> Call:
    leaves = [part.detach().requires_grad_() for part in i.qkv]
    out = _sdpa(*leaves)
    dout = i.dout.unflatten(2, (out.shape[1], -1)).transpose(1, 2)
    return differentiate(out, leaves, dout)


def build(direction: str) -> Callable:
    """Return the maker of the call of one backend in one pass: ``make(layer, backend, inputs)``."""
    return _attention if direction == "forward" else _attention_backward
