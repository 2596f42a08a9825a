"""The two ends of a net beside torch's compositions: the first tokens, and the final norm with the mean.

As under autocast with fp32 parameters: the residual stream is fp32, patches and pooled tokens in the dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from common.product_works import _then
from common.works import Call, Inputs, Layer, Work, differentiate, launcher, normal

EPS = 1e-5
BACKENDS = ("triton", "torch")
FULL = 4  # bytes of an element of the stream


def end_works(found: Iterable[Layer]) -> Iterator[Work]:
    """Both operations forward and backward at every width."""
    seen = set()
    for layer in found:
        if (layer.D, layer.d, layer.grid) not in seen:
            seen.add((layer.D, layer.d, layer.grid))
            yield from (end_work(layer, op) for op in _MAKERS)


def end_work(layer: Layer, op: str) -> Work:
    """One of both operations, in one direction."""
    build, dense, inputs, moved = _MAKERS[op]
    ways = {"torch": partial(dense, layer)}
    ways |= {f"growtas {name}": partial(build, layer, name) for name in BACKENDS}
    return Work(
        "ends", op, layer, lambda batch: 0, partial(moved, layer), partial(inputs, layer), ways, "torch",
        partial(dense, layer),
    )  # fmt: skip


# -- first tokens --------------------------------------------------------------------------------------------


def _token_bytes(layer: Layer, batch: int, element: int) -> int:
    """Patches and stream once, either way."""
    return batch * layer.d * (element * (layer.tokens - 1) + FULL * layer.tokens)


def _token_inputs(layer: Layer, batch: int, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    draw = normal(device, seed)
    n, d = layer.tokens, layer.d
    cls, position = draw(1, 1, layer.D), draw(1, n, layer.D)
    return Inputs(patches=draw(batch, n - 1, d).to(dtype), cls=cls, position=position, dy=draw(batch, n, d))


def _tokens(layer: Layer, backend: str, i: Inputs) -> Call:
    launch = launcher(backend, "tokens_forward")
    return lambda: (launch(i.patches, i.cls, i.position),)


def _composed(patches: torch.Tensor, cls: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    return torch.cat((cls.expand(len(patches), -1, -1).to(patches.dtype), patches), 1) + position


def _tokens_dense(layer: Layer, i: Inputs) -> Call:
    return lambda: (_composed(i.patches, i.cls[..., : layer.d], i.position[..., : layer.d]),)


def _tokens_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    launch, d = launcher(backend, "tokens_backward"), layer.d
    dtypes, widths = (i.patches.dtype, i.cls.dtype, i.position.dtype), (layer.D, layer.D)
    return _then(
        lambda: launch(i.dy, dtypes, widths, (True, True, True)),
        lambda g: (g[0], g[1][..., :d], g[2][..., :d]),
    )


def _tokens_backward_dense(layer: Layer, i: Inputs) -> Call:
    given = i.patches, i.cls[..., : layer.d].clone(), i.position[..., : layer.d].clone()
    leaves = [t.detach().requires_grad_() for t in given]
    return differentiate(_composed(*leaves), leaves, i.dy)


# -- final norm and mean -------------------------------------------------------------------------------------


def _read_bytes(layer: Layer, batch: int, element: int) -> int:
    """The stream once."""
    return FULL * batch * layer.tokens * layer.d


def _both_bytes(layer: Layer, batch: int, element: int) -> int:
    """The stream and its gradient."""
    return 2 * _read_bytes(layer, batch, element)


def _norm_inputs(layer: Layer, batch: int, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
    draw = normal(device, seed)
    gamma, beta = 1 + draw(layer.D, scale=0.1), draw(layer.D, scale=0.1)
    x = 3 * draw(batch, layer.tokens, layer.d) + 0.5
    return Inputs(x=x, gamma=gamma, beta=beta, dy=draw(batch, layer.d).to(dtype))


def _norm(layer: Layer, backend: str, i: Inputs) -> Call:
    launch, last = launcher(backend, "pooled_norm_forward"), layer.tokens
    return _then(lambda: launch(i.x, i.gamma, i.beta, 1, last, EPS, i.dy.dtype), lambda found: found[:1])


def _pooled(i: Inputs, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], gamma, beta, EPS).to(i.dy.dtype)[:, 1:].mean(1)


def _norm_dense(layer: Layer, i: Inputs) -> Call:
    return lambda: (_pooled(i, i.x, i.gamma[: layer.d], i.beta[: layer.d]),)


def _norm_backward(layer: Layer, backend: str, i: Inputs) -> Call:
    forward, launch = launcher(backend, "pooled_norm_forward"), launcher(backend, "pooled_norm_backward")
    d, last = layer.d, layer.tokens
    _, mean, rstd = forward(i.x, i.gamma, i.beta, 1, last, EPS, i.dy.dtype)
    return _then(
        lambda: launch(i.dy, i.x, i.gamma, i.beta, mean, rstd, 1, last), lambda g: (g[0], g[1][:d], g[2][:d])
    )


def _norm_backward_dense(layer: Layer, i: Inputs) -> Call:
    given = i.x, i.gamma[: layer.d].clone(), i.beta[: layer.d].clone()
    leaves = [t.detach().requires_grad_() for t in given]
    return differentiate(_pooled(i, *leaves), leaves, i.dy)


_MAKERS = {
    "tokens": (_tokens, _tokens_dense, _token_inputs, _token_bytes),
    "tokens backward": (_tokens_backward, _tokens_backward_dense, _token_inputs, _token_bytes),
    "pooled_norm": (_norm, _norm_dense, _norm_inputs, _read_bytes),
    "pooled_norm backward": (_norm_backward, _norm_backward_dense, _norm_inputs, _both_bytes),
}
