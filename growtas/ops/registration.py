"""How an operation reaches torch: directly in eager mode, as a registered operator where torch looks on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from growtas import shadow


def classic(run: Callable, keep: Callable) -> staticmethod:
    """The ``forward`` of an autograd.Function: run, then keep what the backward pass needs.

    torch binds the arguments of a Function with ``setup_context`` to its signature in every call, 20
    microseconds, a third of a small operation; it does not where forward takes ctx itself.

    Args:
        run: the operation.
        keep: its ``setup_context(ctx, inputs, output)``.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = run(*inputs)
        keep(ctx, inputs, output)
        return output

    return staticmethod(forward)


def eager() -> bool:
    """Whether nothing of torch looks on: no compiler, no exporter, no dispatch mode."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0


def call(direct: Callable, operator: Callable, *args: Any) -> Any:
    """Run an operation by the shortest way that the present mode allows.

    torch.library's Python operators cost tens of microseconds a call. In plain eager mode the direct way is
    taken; under torch.compile, torch.export, FlopCounterMode and other dispatch modes the registered operator
    is used, so that they see one operator with a shape rule and a FLOP formula.

    Args:
        direct: the operation itself: ``apply`` of its autograd.Function, or its backward pass.
        operator: the same operation registered with torch.library.
        args: their common arguments.
    """
    return direct(*args) if eager() else operator(*args)


def custom_op(name: str, function: Callable) -> Any:
    """Register an operation with torch.library; it reads weights as they are, never their shadows.

    A compiled graph holds the strides that the shape rule told, and shadows change those of q, k and v.

    Args:
        name: namespace and name, ``growtas::linear``.
        function: the operation; its annotations are the operator's schema.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        with shadow.ignored():
            return function(*args)

    schema = torch.library.infer_schema(function, mutates_args=())
    return torch.library.custom_op(name, run, mutates_args=(), schema=schema)


def product_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a matrix product, a multiply-add counted as two."""
    return 2 * rows * inner * columns
