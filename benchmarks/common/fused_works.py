"""Fused kernels beside the unfused dense sequence.

The unfused sequence is what torch runs for the dense layer under autocast: LayerNorm on the fp32 stream, its
result cast, products in 16 bits with dense weights that are 16 bits already, GELU and the residual addition
each on their own. Its backward pass is autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from common.product_works import _merge, _qkv_slice, _then
from common.works import Call, Inputs, Layer, Work, differentiate, launcher, normal, shadows_of
from growtas.ops.mlp.weights import MLPWeights

EPS = 1e-5
BACKENDS = ("triton", "cublas", "cuda", "cpu", "torch")


def fused_works(found: Iterable[Layer]) -> Iterator[Work]:
    """linear + gelu, linear + residual, norm + qkv and the MLP, forward and backward, of all layers."""
    seen = set()
    for layer in found:
        for op, size in (
            ("linear_gelu", (layer.d, layer.hidden)),
            ("linear_gelu backward", (layer.d, layer.hidden)),
            ("linear_residual", (layer.width, layer.d)),
            ("linear_residual backward", (layer.width, layer.d)),
            ("norm_qkv", (layer.d, layer.heads)),
            ("norm_qkv backward", (layer.d, layer.heads)),
            ("mlp", (layer.d, layer.hidden)),
            ("mlp backward", (layer.d, layer.hidden)),
        ):
            if (layer.space, op, size) not in seen:
                seen.add((layer.space, op, size))
                yield fused_work(layer, op)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def fused_work(layer: Layer, op: str) -> Work:
    """One fused kernel of one layer."""
    d, m, width, tokens = layer.d, layer.hidden, layer.width, layer.tokens
    qkv = 3 * width
    # Of one row: FLOPs, activations, elements of the fp32 stream; parameters read, and gradients written.
    flops, activations, stream, parameters = {
        "linear_gelu": (2 * d * m, d + 2 * m, 0, m * d),
        "linear_gelu backward": (2 * d * m, 3 * m, d, m * d),
        "linear_residual": (2 * width * d, width, 2 * d, width * d),
        "linear_residual backward": (4 * width * d, 2 * width, d, width * d + layer.D * layer.H * layer.e),
        "norm_qkv": (2 * d * qkv, qkv, d, d * qkv),
        "norm_qkv backward": (4 * d * qkv, qkv, 3 * d, d * qkv + layer.D * 3 * layer.H * layer.e),
        "mlp": (4 * d * m, 0, 2 * d, 2 * d * m),
        "mlp backward": (8 * d * m, 0, 3 * d, 2 * d * m + 2 * layer.D * layer.M),
    }[op]
    make, plain_dense = _BUILDERS[op]
    ways = {"unfused": partial(plain_dense, layer)}
    ways |= {f"growtas {name}": partial(make, layer, name) for name in BACKENDS}
    ways |= {
        f"growtas {name} same": partial(_same, partial(make, layer, name)) for name in ("triton", "cuda")
    }
    if op != "mlp":
        del ways["growtas cuda same"]
    if op.startswith(("mlp", "norm_qkv")):
        del ways["growtas cuda"]  # no kernels of that kind in CUDA C++ that read fp32 weights
    return Work(
        "fused",
        op,
        layer,
        lambda batch: batch * tokens * flops,
        lambda batch, element: batch * tokens * (element * activations + 4 * stream) + 4 * parameters,
        partial(_inputs, layer),
        ways,
        "unfused",
        partial(plain_dense, layer),
    )


def _same(make: Callable, i: Inputs) -> Call:
    """A way on shared matrices that are 16 bits in memory, as a shadow of them is; biases stay."""
    wide = {name: value for name, value in i.items() if name in ("w1", "w2", "wq", "wp")}
    return make(Inputs({**i, **{name: value.to(i.dtype) for name, value in wide.items()}}))


def build(layer: Layer, op: str, backend: str, i: Inputs) -> Call:
    """The call of one backend, as ``fused_work(layer, op).ways`` has them."""
    return _BUILDERS[op][0](layer, backend, i)


def _inputs(layer: Layer, batch: int, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    draw = normal(device, seed)
    rows, d, m, qkv = batch * layer.tokens, layer.d, layer.hidden, 3 * layer.width
    stream = torch.float64 if dtype == torch.float64 else torch.float32
    shared = {
        "w1": (layer.M, layer.D), "b1": (layer.M,), "w2": (layer.D, layer.M), "b2": (layer.D,),
        "wq": (3 * layer.H * layer.e, layer.D), "bq": (3 * layer.H * layer.e,),
        "wp": (layer.D, layer.H * layer.e), "bp": (layer.D,), "beta": (layer.D,),
    }  # fmt: skip
    found = Inputs({name: draw(*shape, scale=0.05) for name, shape in shared.items()})
    found |= {"gamma": 1 + draw(layer.D, scale=0.1), "dtype": dtype, "batch": batch, "tokens": layer.tokens}
    found |= {"x": draw(rows, d).to(stream), "dy": draw(rows, d).to(stream)}
    found |= {"h": draw(rows, m).to(dtype), "xd": draw(rows, d).to(dtype)}
    found |= {"attended": draw(rows, layer.width).to(dtype), "dq": draw(rows, qkv).to(dtype)}
    matrices = [found[name] for name in ("wq", "bq", "w1", "b1", "w2", "b2", "wp", "bp")]
    found["shadows"] = shadows_of(matrices, dtype, {0: layer.e, 1: layer.e})
    keep = torch.arange(batch, device=device) % 4 != 3  # drop-path leaves out every fourth image
    found["scale"] = keep.to(stream) / 0.75
    dense_q = found["wq"][:qkv, :d].view(-1, 3, d).transpose(0, 1).reshape(qkv, d)
    dense = {
        "w1d": found["w1"][:m, :d], "b1d": found["b1"][:m],
        "w2d": found["w2"][:d, :m], "b2d": found["b2"][:d],
        "wqd": dense_q, "bqd": found["bq"][:qkv].view(-1, 3).t().flatten(),
        "wpd": found["wp"][:d, : layer.width], "bpd": found["bp"][:d],
    }  # fmt: skip
    found |= {name: value.to(dtype).contiguous() for name, value in dense.items()}
    found |= {"gd": found["gamma"][:d].contiguous(), "btd": found["beta"][:d].contiguous()}
    heads = (batch, layer.tokens, 3, layer.heads, layer.e)
    found["dqkv"] = found["dq"].view(heads).permute(2, 0, 3, 1, 4).contiguous()
    if device.type == "cpu":  # as attention leaves it there: q, k and v of a channel side by side
        found["dqkv"] = found["dqkv"].permute(1, 3, 2, 4, 0).contiguous().permute(4, 0, 2, 1, 3)
    return Inputs(found)


def _rows_scale(i: Inputs) -> Tensor:
    return i.scale.repeat_interleave(i.tokens)[:, None]


# -- linear + gelu, linear + residual ----------------------------------------------------------------------


def _linear_gelu(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "linear_gelu_forward")
    return lambda: launch(i.xd, i.w1, i.b1, layer.hidden)


def _linear_gelu_dense(layer: Layer, i: Inputs) -> Call:
    def run():
        h = F.linear(i.xd, i.w1d, i.b1d)
        return F.gelu(h), h

    return run


def _linear_gelu_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "linear_gelu_backward_input")
    return lambda: launch(i.dy, i.w2, i.h, i.scale, i.tokens)


def _linear_gelu_backward_dense(layer: Layer, i: Inputs) -> Call:
    scale = _rows_scale(i)

    def run():
        da = (i.dy * scale).to(i.h.dtype) @ i.w2d
        return torch.ops.aten.gelu_backward(da, i.h), F.gelu(i.h)

    return run


def _linear_residual(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "linear_residual_forward")
    return lambda: (launch(i.attended, i.wp, i.bp, i.x, i.scale, i.tokens),)


def _linear_residual_dense(layer: Layer, i: Inputs) -> Call:
    scale = _rows_scale(i)
    return lambda: (i.x + scale * F.linear(i.attended, i.wpd, i.bpd),)


def _linear_residual_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "linear_backward")

    def plain(found):
        dx, dweight, dbias = found
        return dx, dweight[: layer.d, : layer.width], dbias[: layer.d]

    return _then(lambda: launch(i.dy, i.attended, i.wp, i.bp, i.scale, i.tokens), plain)


def _linear_residual_backward_dense(layer: Layer, i: Inputs) -> Call:
    leaves = [_leaf(tensor) for tensor in (i.attended, i.wpd, i.bpd)]
    return differentiate(_rows_scale(i) * F.linear(*leaves), leaves, i.dy)


# -- norm + qkv ----------------------------------------------------------------------------------------------


def _norm_qkv(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "norm_qkv_forward")
    x = i.x.view(i.batch, i.tokens, -1)
    return _then(
        lambda: launch(x, i.gamma, i.beta, EPS, i.wq, i.bq, layer.heads, layer.e, "interleaved", i.dtype),
        lambda found: _merge(found[0]),
    )


def _normed(x: Tensor, gamma: Tensor, beta: Tensor, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gamma, beta, EPS).to(dtype)


def _norm_qkv_dense(layer: Layer, i: Inputs) -> Call:
    return lambda: (F.linear(_normed(i.x, i.gd, i.btd, i.wqd.dtype), i.wqd, i.bqd),)


def _norm_qkv_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    forward, launch = launcher(backend, "norm_qkv_forward"), launcher(backend, "norm_qkv_backward")
    x, dresidual = i.x.view(i.batch, i.tokens, -1), i.dy.view(i.batch, i.tokens, -1)
    _, mean, rstd = forward(x, i.gamma, i.beta, EPS, i.wq, i.bq, layer.heads, layer.e, "interleaved", i.dtype)

    def plain(found):
        dx, dgamma, dbeta, *product = found
        return (
            dx.flatten(0, 1),
            dgamma[: layer.d],
            dbeta[: layer.d],
            *_qkv_slice(product, 3 * layer.width, layer.d),
        )

    return _then(
        lambda: launch(i.dqkv, x, mean, rstd, i.gamma, i.beta, i.wq, i.bq, "interleaved", dresidual), plain
    )


def _norm_qkv_backward_dense(layer: Layer, i: Inputs) -> Call:
    leaves = [_leaf(tensor) for tensor in (i.x, i.gd, i.btd, i.wqd, i.bqd)]
    x, gamma, beta, weight, bias = leaves
    out = F.linear(_normed(x, gamma, beta, weight.dtype), weight, bias)
    backward = differentiate(out, leaves, i.dq)

    def run():
        dx, *others = backward()
        return dx + i.dy, *others

    return run


# -- MLP -----------------------------------------------------------------------------------------------------


def _images(i: Inputs, rows: Tensor) -> Tensor:
    """Rows (B * N, d) as (B, N, d)."""
    return rows.view(-1, i.tokens, rows.shape[1])


def _mlp_forward_call(layer: Layer, launch: Callable, i: Inputs) -> Callable:
    weights = MLPWeights(i.gamma, i.beta, i.w1, i.b1, i.w2, i.b2, i.scale)
    return lambda: launch(_images(i, i.x), weights, layer.hidden, EPS, i.dtype)


def _mlp(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "mlp_forward")
    return _then(_mlp_forward_call(layer, launch, i), lambda found: (found[0].flatten(0, 1),))


def _mlp_of(i: Inputs, leaves: list[Tensor]) -> Tensor:
    x, gamma, beta, w1, b1, w2, b2 = leaves
    hidden = F.gelu(F.linear(_normed(x, gamma, beta, w1.dtype), w1, b1))
    return x + _rows_scale(i) * F.linear(hidden, w2, b2)


def _dense_mlp_leaves(i: Inputs) -> list[Tensor]:
    return [i.x, i.gd, i.btd, i.w1d, i.b1d, i.w2d, i.b2d]


def _mlp_dense(layer: Layer, i: Inputs) -> Call:
    return lambda: (_mlp_of(i, _dense_mlp_leaves(i)),)


def _mlp_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    forward, launch = launcher(backend, "mlp_forward"), launcher(backend, "mlp_backward")
    _, mean, rstd, hidden = _mlp_forward_call(layer, forward, i)()
    d, m = layer.d, layer.hidden

    def plain(found):
        dx, dgamma, dbeta, dw1, db1, dw2, db2 = found
        return dx.flatten(0, 1), dgamma[:d], dbeta[:d], dw1[:m, :d], db1[:m], dw2[:d, :m], db2[:d]

    weights = MLPWeights(i.gamma, i.beta, i.w1, i.b1, i.w2, i.b2, i.scale)
    dy, x = _images(i, i.dy), _images(i, i.x)
    return _then(lambda: launch(dy, x, weights, mean, rstd, hidden, layer.hidden, i.dtype), plain)


def _mlp_backward_dense(layer: Layer, i: Inputs) -> Call:
    leaves = [_leaf(tensor) for tensor in _dense_mlp_leaves(i)]
    return differentiate(_mlp_of(i, leaves), leaves, i.dy)


_BUILDERS = {
    "linear_gelu": (_linear_gelu, _linear_gelu_dense),
    "linear_gelu backward": (_linear_gelu_backward, _linear_gelu_backward_dense),
    "linear_residual": (_linear_residual, _linear_residual_dense),
    "linear_residual backward": (_linear_residual_backward, _linear_residual_backward_dense),
    "norm_qkv": (_norm_qkv, _norm_qkv_dense),
    "norm_qkv backward": (_norm_qkv_backward, _norm_qkv_backward_dense),
    "mlp": (_mlp, _mlp_dense),
    "mlp backward": (_mlp_backward, _mlp_backward_dense),
}
