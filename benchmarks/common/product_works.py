"""The sliced products beside cuBLAS with dense contiguous weights: forward, input gradient, weight gradient.

Both operands of cuBLAS are 16 bits, also its weights; growtas reads the shared weights in fp32, as training
under autocast has them, and in 16 bits (``same``). ``strided`` is cuBLAS on slices of 16-bit shared weights
where they lie; its weight gradient is fp32 and of full size, as growtas' is: zeros around the slice.
``growtas cublas`` and ``growtas torch`` find such shadows by themselves, as in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.works import Call, Inputs, Layer, Work, launcher, normal, shadows_of

DIRECTIONS = ("forward", "input gradient", "weight gradient")
BACKENDS = ("triton", "cublas", "cuda", "cpu", "torch")


def sizes(layer: Layer, op: str) -> tuple[int, int, int, int]:
    """k, n and the shared K, N of an operation."""
    return {
        "qkv": (layer.d, 3 * layer.width, layer.D, 3 * layer.H * layer.e),
        "proj": (layer.width, layer.d, layer.H * layer.e, layer.D),
        "fc1": (layer.d, layer.hidden, layer.D, layer.M),
        "fc2": (layer.hidden, layer.d, layer.M, layer.D),
    }[op]


def product_works(found: Iterable[Layer]) -> Iterator[Work]:
    """The products of all layers, each size once."""
    seen = set()
    for layer in found:
        for op in ("qkv", "proj", "fc1", "fc2"):
            key = layer.space, op, *sizes(layer, op)
            if key not in seen:
                seen.add(key)
                yield from (product_work(layer, op, direction) for direction in DIRECTIONS)


def product_work(layer: Layer, op: str, direction: str) -> Work:
    """One product of one layer in one direction."""
    k, n, _, _ = sizes(layer, op)

    def moved(batch: int, element: int) -> int:
        return element * batch * layer.tokens * (k + n) + 4 * n * k

    def ours(backend: str, same: bool):
        return partial(_ours, layer=layer, op=op, direction=direction, backend=backend, same=same)

    ways = {"cublas": partial(_dense, direction=direction, op=op)}
    ways["strided"] = partial(_strided, layer=layer, direction=direction, op=op)
    for backend in BACKENDS:
        ways[f"growtas {backend}"] = ours(backend, False)
        if backend != "cublas":
            ways[f"growtas {backend} same"] = ours(backend, True)
    return Work(
        "products",
        f"{op} {direction}",
        layer,
        lambda batch: 2 * batch * layer.tokens * k * n,
        moved,
        partial(_inputs, layer, op),
        ways,
        "cublas",
        partial(_dense, direction=direction, op=op),
    )


def _inputs(layer: Layer, op: str, batch: int, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    k, n, k_max, n_max = sizes(layer, op)
    draw = normal(device, seed)
    rows = batch * layer.tokens
    x = draw(rows, k).to(dtype)
    weight, bias = draw(n_max, k_max, scale=0.02), draw(n_max, scale=0.02)
    dense, dense_bias = weight[:n, :k], bias[:n]
    dy = draw(rows, n).to(dtype)
    found = Inputs(x=x, weight=weight, weight_same=weight.to(dtype), bias=bias, bias_same=bias.to(dtype))
    if op == "qkv":  # rows q, k, v in turn; the dense weight has them one after another
        dense = dense.view(-1, 3, k).transpose(0, 1).reshape(n, k)
        dense_bias = dense_bias.view(-1, 3).t().flatten()
        found["x3"] = x.view(batch, layer.tokens, k)
        heads = (batch, layer.tokens, 3, layer.heads, layer.e)
        found["dqkv"] = dy.view(heads).permute(2, 0, 3, 1, 4).contiguous()
    if op == "qkv":  # the shadow of a qkv weight on a GPU has its rows sorted by head, part and channel
        order = torch.arange(n_max, device=device).view(layer.H, layer.e, 3).transpose(1, 2).flatten()
        found["shadow"], found["shadow_bias"] = weight[order].to(dtype), bias[order].to(dtype)
        by_head = dy.view(rows, 3, layer.heads, layer.e).transpose(1, 2).reshape(rows, n)
    else:
        found["shadow"], found["shadow_bias"], by_head = weight.to(dtype), bias.to(dtype), dy
    found |= {"by_head": by_head, "shadows": shadows_of((weight, bias), dtype, _head_dims(layer, op))}
    found |= {
        "dy": dy,
        "dense": dense.to(dtype).contiguous(),
        "dense_bias": dense_bias.to(dtype).contiguous(),
    }
    return Inputs(found)


def _dense(i: Inputs, direction: str, op: str) -> Call:
    if direction == "forward":
        return lambda: (F.linear(i.x, i.dense, i.dense_bias),)
    if direction == "input gradient":
        return lambda: (i.dy @ i.dense,)
    return lambda: (i.dy.t() @ i.x, i.dy.sum(0))


def _head_dims(layer: Layer, op: str) -> dict[int, int]:
    return {0: layer.e, 1: layer.e} if op == "qkv" else {}


def _strided(i: Inputs, layer: Layer, op: str, direction: str) -> Call:
    k, n, k_max, n_max = sizes(layer, op)
    weight, bias = i.shadow[:n, :k], i.shadow_bias[:n]
    if direction == "forward":
        return _then(lambda: torch.addmm(bias, i.x, weight.t()), lambda y: (_by_part(y.t(), layer, op).t(),))
    if direction == "input gradient":
        return lambda: (torch.mm(i.by_head, weight),)
    wide = i.dense.dtype if i.dense.dtype == torch.float64 else torch.float32
    options = {"out_dtype": wide} if i.x.is_cuda and i.x.dtype != wide else {}

    def backward_weight():
        gradient = torch.zeros(n_max, k_max, dtype=wide, device=i.x.device)
        if options or i.x.dtype == wide:
            torch.mm(i.by_head.t(), i.x, out=gradient[:n, :k], **options)
        else:  # torch has products with a wider result on CUDA only
            gradient[:n, :k] = i.by_head.t() @ i.x
        return gradient, i.by_head.sum(0)

    return _then(
        backward_weight, lambda found: tuple(_by_part(t, layer, op) for t in (found[0][:n, :k], found[1]))
    )


def _by_part(rows: Tensor, layer: Layer, op: str) -> Tensor:
    """Rows sorted by head, part and channel to all of q, of k and of v."""
    if op != "qkv":
        return rows
    return rows.unflatten(0, (layer.heads, 3, layer.e)).transpose(0, 1).flatten(0, 2)


def _ours(i: Inputs, layer: Layer, op: str, direction: str, backend: str, same: bool) -> Call:
    k, n, _, _ = sizes(layer, op)
    weight, bias = (i.weight_same, i.bias_same) if same else (i.weight, i.bias)
    prefix = "qkv" if op == "qkv" else "linear"
    suffix = {"forward": "forward", "input gradient": "backward_input"}.get(direction, "backward_weight")
    launch = launcher(backend, f"{prefix}_{suffix}")
    if op == "qkv":
        if direction == "forward":
            return _then(lambda: launch(i.x3, weight, bias, layer.heads, layer.e, "interleaved"), _merge)
        if direction == "input gradient":
            return _then(lambda: launch(i.dqkv, weight, k), lambda dx: (dx.view(-1, k),))
        return _then(lambda: launch(i.dqkv, i.x3, weight, bias, "interleaved"), partial(_qkv_slice, n=n, k=k))
    if direction == "forward":
        return lambda: (launch(i.x, weight, bias, n),)
    if direction == "input gradient":
        return lambda: (launch(i.dy, weight, k),)
    return _then(
        lambda: launch(i.dy, i.x, weight, bias), lambda gradients: (gradients[0][:n, :k], gradients[1][:n])
    )


class _then:
    """A call whose result is put into plain form only where somebody looks at it, not while it is timed."""

    def __init__(self, run, plain) -> None:
        self.run, self.plain = run, plain

    def __call__(self) -> Sequence[Tensor]:
        return self.plain(self.run())


def timed(call: Call) -> Call:
    """The timed part of a call: without the work that only makes its result comparable."""
    return call.run if isinstance(call, _then) else call


def _merge(qkv: Tensor) -> tuple[Tensor]:
    """(3, B, h, N, e) to (B * N, 3 * h * e)."""
    return (qkv.permute(1, 3, 0, 2, 4).flatten(2).flatten(0, 1),)


def _qkv_slice(gradients: Sequence[Tensor], n: int, k: int) -> tuple[Tensor, Tensor]:
    """Interleaved rows to q, k and v one after another."""
    dweight, dbias = gradients
    return (
        dweight[:n, :k].reshape(-1, 3, k).transpose(0, 1).reshape(n, k),
        dbias[:n].view(-1, 3).t().flatten(),
    )
