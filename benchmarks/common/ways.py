"""The rival ways to compute one sliced product, each ready to run and to differentiate.

    published     slice and concatenate under autograd (common/published.py)
    views         torch's product on strided views of the shared weight; gradients of the slice's size only
    dense         torch's product with a contiguous weight of the sliced size: the limit
    growtas NAME  growtas.ops with the backend NAME, full-size gradients

``views`` and ``dense`` get their weights in the compute dtype and leave q, k and v as the product writes
them: they are limits, not ways to train a supernet. growtas splits the heads into contiguous memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common import published
from common.products import Inputs, Product
from growtas import ops
from growtas.ops import dispatch


@dataclass
class Way:
    """One way to compute one product on one set of inputs.

    Args:
        run: computes the outputs, under autograd.
        leaves: x, weight and bias, the tensors to differentiate with respect to, or several of the latter.
        dys: the outputs' gradients.
        plain_output: the outputs as (B, N, n) or (3, B, h, N, e).
        plain_gradients: the leaves' gradients as dx (B, N, k), dW (n, k) and db (n,) of the slice, rows of
            qkv in the order q, k, v; and the rest of the full-size gradients, which has to be zero.
    """

    run: Callable[[], Tensor | Sequence[Tensor]]
    leaves: Sequence[Tensor]
    dys: Sequence[Tensor]
    plain_output: Callable[[Tensor | Sequence[Tensor]], Tensor]
    plain_gradients: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor, Tensor, Sequence[Tensor]]]

    def forward_call(self) -> Callable[[], Tensor | Sequence[Tensor]]:
        """A call that runs the forward pass."""
        return self.run

    def backward_call(self) -> Callable[[], Sequence[Tensor]]:
        """A call that runs only the backward pass; the forward pass is run here, once."""
        out = self.run()
        outputs = [out] if isinstance(out, Tensor) else list(out)
        return lambda: torch.autograd.grad(outputs, self.leaves, self.dys, retain_graph=True)


def leaf(x: Tensor) -> Tensor:
    """The same memory, as a tensor to differentiate with respect to."""
    return x.detach().requires_grad_()


def _slice(matrix: Tensor, product: Product) -> list[Tensor]:
    """The rows in use of a shared weight or bias, cut to the columns in use: for qkv three strided views."""
    used = matrix[: product.columns]
    used = used[:, : product.inner] if matrix.dim() == 2 else used
    return [used[part::3] for part in range(3)] if product.op == "qkv" else [used]


def _bias(bias: Tensor, product: Product) -> list[Tensor]:
    """As the published code cuts it: contiguous, q then k then v."""
    return list(bias[: product.columns].chunk(3 if product.op == "qkv" else 1))


def _merged(heads: Tensor) -> Tensor:
    """(3, B, h, N, e) to three (B, N, h * e), stacked."""
    return heads.transpose(2, 3).flatten(3).contiguous()


def _split(merged: Tensor, product: Product) -> Tensor:
    """(3, B, N, h * e) to (3, B, h, N, e)."""
    return merged.unflatten(3, (product.num_heads, product.head_dim)).transpose(2, 3)


def _shared_gradients(product: Product):
    def plain(gradients):
        dx, dweight, dbias = gradients
        rest = [
            dweight[product.columns :],
            dweight[: product.columns, product.inner :],
            dbias[product.columns :],
        ]
        return dx, torch.cat(_slice(dweight, product)), torch.cat(_bias(dbias, product)), rest

    return plain


def _published(product: Product, inputs: Inputs) -> Way:
    x, weight, bias = map(leaf, inputs[:3])

    def run():
        # Weights stay in fp32 and are cast at every use, as under torch.autocast in training.
        mixed = torch.autocast(x.device.type, x.dtype, enabled=x.dtype != weight.dtype, cache_enabled=False)
        with mixed:
            if product.op == "qkv":
                return published.qkv(x, weight, bias, product.num_heads, product.head_dim)
            return published.linear(x, weight, bias, product.columns)

    return Way(run, (x, weight, bias), (inputs.dy,), lambda out: out, _shared_gradients(product))


def _growtas(product: Product, inputs: Inputs) -> Way:
    x, weight, bias = map(leaf, inputs[:3])

    def run():
        if product.op == "qkv":
            return ops.qkv(x, weight, bias, product.num_heads, product.head_dim, "published")
        return ops.linear(x, weight, bias, product.columns)

    return Way(run, (x, weight, bias), (inputs.dy,), lambda out: out, _shared_gradients(product))


def _views(product: Product, inputs: Inputs) -> Way:
    x = leaf(inputs.x)
    weights = [leaf(view) for view in _slice(inputs.weight.to(x.dtype), product)]
    biases = [leaf(view) for view in _bias(inputs.bias.to(x.dtype), product)]
    dys = _merged(inputs.dy).unbind() if product.op == "qkv" else (inputs.dy,)
    parts = len(weights)

    def run():
        return [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]

    def plain_output(out):
        return _split(torch.stack(out), product) if product.op == "qkv" else out[0]

    def plain_gradients(gradients):
        dx, rest = gradients[0], gradients[1:]
        return dx, torch.cat(rest[:parts]), torch.cat(rest[parts:]), ()

    return Way(run, (x, *weights, *biases), dys, plain_output, plain_gradients)


def _dense(product: Product, inputs: Inputs) -> Way:
    x = leaf(inputs.x)
    weight = leaf(torch.cat(_slice(inputs.weight, product)).to(x.dtype))
    bias = leaf(torch.cat(_bias(inputs.bias, product)).to(x.dtype))
    dy = inputs.dy
    if product.op == "qkv":
        dy = torch.cat(_merged(dy).unbind(), -1)

    def plain_output(out):
        return _split(torch.stack(out.chunk(3, -1)), product) if product.op == "qkv" else out

    def plain_gradients(gradients):
        return *gradients, ()

    return Way(lambda: F.linear(x, weight, bias), (x, weight, bias), (dy,), plain_output, plain_gradients)


LIMITS = {"published": _published, "views": _views, "dense": _dense}


def names(device: torch.device) -> list[str]:
    """The ways that run on a device: the three to compare with, and growtas with each backend there.

    Args:
        device: the device. Triton's interpreter does not count: it checks kernels, it does not run them.
    """
    kinds = {"cpu": ("torch", "cpu"), "cuda": ("torch", "triton", "cuda")}[device.type]
    usable = [
        name
        for name in kinds
        if name in dispatch.OPERATIONS["linear"].backends and dispatch.available(name).ok
    ]
    return [*LIMITS, *(f"growtas {name}" for name in usable)]


def short(name: str) -> str:
    """The backend of one of growtas' ways: ``growtas torch`` is ``torch``."""
    return name.removeprefix("growtas ")


def build(name: str, product: Product, inputs: Inputs) -> Way:
    """One way by name, on these inputs.

    Args:
        name: as :func:`names` gives it.
        product: its shapes.
        inputs: of :func:`common.products.make_inputs`.
    """
    return LIMITS.get(name, _growtas)(product, inputs)


@contextlib.contextmanager
def active(name: str, op: str, width: int, device: torch.device, dtype: torch.dtype):
    """Within it, growtas uses the backend of a way; the choice is made already when work begins.

    Args:
        name: of the way.
        op: the operation of growtas.ops.
        width, device, dtype: of the activations.
    """
    if not name.startswith("growtas "):
        yield
        return
    with dispatch.use(short(name)):
        dispatch.choose(op, device, dtype, width)
        yield


def truth(product: Product, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The result and the gradients in fp64, from the same inputs; as the plain forms of :class:`Way`."""
    double = Inputs(*(tensor.double() for tensor in inputs))
    way = _dense(product, double)
    out = way.run()
    gradients = torch.autograd.grad(out, way.leaves, way.dys)
    return way.plain_output(out.detach()), tuple(gradients)
