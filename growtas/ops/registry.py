"""Registers an operation once, by the names of its parameters: autograd, torch.library, shapes and FLOPs.

In plain eager mode an operation is an autograd.Function. Where torch looks on (torch.compile, torch.export,
FlopCounterMode and other dispatch modes) it is one registered operator with a shape rule and a FLOP formula,
``torch.ops.growtas.<name>``, and its backward pass another, ``<name>_backward``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas import shadow
from growtas.errors import GrowtasError
from growtas.ops import checks

Step = Callable[..., Any]


def eager() -> bool:
    """Return whether nothing of torch looks on: no compiler, no exporter, no dispatch mode."""
    return not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack() == 0


def refuse_second_derivative(name: str) -> None:
    """Refuse a backward pass that is to be differentiated: kernels leave no graph, statistics are constants.

    Args:
        name: of the operation, for the sentence.

    Raises:
        GrowtasError: ``create_graph=True`` was given.
    """
    if torch.is_grad_enabled():
        raise GrowtasError(
            f"{name} has no second derivative: leave out create_graph=True, or compute with plain torch "
            "layers."
        )


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """FLOPs of a matmul, a multiply-add counted as two."""
    return 2 * rows * inner * columns


def classic(run: Step, keep: Step) -> staticmethod:
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


def flat(function: Step) -> Step:
    """A function whose NamedTuple parameter, if it has one, is spread over its fields, as a schema needs it.

    Its signature has the annotations as types.
    """
    hints = get_type_hints(function)
    parameters = [
        parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
    ]
    signature = inspect.Signature(parameters, return_annotation=hints.get("return", Any))
    groups = [i for i, parameter in enumerate(parameters) if hasattr(parameter.annotation, "_fields")]
    if not groups:
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function
    (at,) = groups
    group = parameters[at].annotation
    end = at + len(group._fields)
    make = group._make

    def run(*arguments: Any) -> Any:
        return function(*arguments[:at], make(arguments[at:end]), *arguments[end:])

    fields = [parameters[0].replace(name=n, annotation=kind) for n, kind in get_type_hints(group).items()]
    flattened = [*parameters[:at], *fields, *parameters[at + 1 :]]
    run.__signature__ = signature.replace(parameters=flattened)  # type: ignore[attr-defined]
    run.__doc__ = function.__doc__
    return run


def register(
    name: str,
    forward: Step,
    backward: Step,
    *,
    outputs: Sequence[str],
    gradients: Sequence[str],
    shapes: Step,
    flops: Step,
    backward_flops: Step,
    gradient_shapes: Mapping[str, Step] | None = None,
) -> Step:
    """Register an operation with autograd and with torch.library.

    Everything is matched by name: a parameter of ``backward`` after the first (the gradient of the result) is
    a parameter or an output of ``forward``, or ``needs_x`` for whether x needs a gradient; tensors come first
    and are what is saved. A parameter of a FLOP formula is a tensor's shape or a number. A parameter that is
    a NamedTuple stands for its fields.

    Args:
        name: of the operator, in torch.ops.growtas.
        forward: annotated; its result is a tensor, or several, of which the first has a gradient.
        backward: annotated; returns the gradients of ``gradients``, None for an absent parameter.
        outputs: names of forward's results.
        gradients: names of the parameters that have one.
        shapes: forward's results for fake tensors, of its arguments.
        flops, backward_flops: FLOPs of both passes; 0 keeps torch's counter from looking inside.
        gradient_shapes: gradients for fake tensors where they are not contiguous and of the
            parameter's shape.

    Returns:
        The operation: takes forward's arguments, returns its first result.
    """
    forward, backward, shapes = flat(forward), flat(backward), flat(shapes)
    signature = inspect.signature(forward)
    names = list(signature.parameters)
    wanted = list(inspect.signature(backward).parameters)[1:]
    kinds = {n: parameter.annotation for n, parameter in signature.parameters.items()}
    tensors = {n for n in names if kinds[n] in (Tensor, Tensor | None)} | set(outputs)
    places = {n: i for i, n in enumerate([*names, *outputs])}
    saved = [n for n in wanted if n in tensors]
    needed = [names.index(n.removeprefix("needs_")) for n in wanted if n.startswith("needs_")]
    constants = [places[n] for n in wanted[len(saved) : len(wanted) - len(needed)]]
    saved_places = [places[n] for n in saved]
    found_places = [(names.index(n), saved.index(n)) for n in gradients]

    def keep(ctx: Any, inputs: tuple, output: Any) -> None:
        results = output if len(outputs) > 1 else (output,)
        values = (*inputs, *results)
        ctx.save_for_backward(*[values[i] for i in saved_places])
        ctx.constants = [values[i] for i in constants]
        if len(outputs) > 1:
            ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        result: list[Tensor | None] = [None] * len(names)
        if dy is None:  # nothing downstream used the result
            return tuple(result)
        if eager():
            refuse_second_derivative(name)
        dy = checks.values(dy)
        needs = ctx.needs_input_grad
        kept = ctx.saved_tensors
        step = backward if eager() else backward_operator
        found = step(dy, *kept, *ctx.constants, *[needs[i] for i in needed])
        for (place, at), gradient in zip(found_places, found, strict=True):
            if needs[place] and kept[at] is not None:
                result[place] = gradient
        return tuple(result)

    def all_tensors(*arguments: Any) -> tuple[Tensor, ...]:
        """The backward pass as an operator has to return it: an empty tensor for what is absent."""
        found = backward(*arguments)
        return tuple([arguments[0].new_empty(0) if g is None else g for g in found])

    def gradients_like(*arguments: Any) -> tuple[Tensor, ...]:
        given = dict(zip(wanted, arguments[1:], strict=True))
        found = []
        for parameter in gradients:
            own, like = (gradient_shapes or {}).get(parameter), given[parameter]
            if like is None or not given.get(f"needs_{parameter}", True):
                found.append(arguments[0].new_empty(0))
            else:
                found.append(_call(own, given) if own else like.new_empty(like.shape))
        return tuple(found)

    all_tensors.__signature__ = inspect.signature(backward)  # type: ignore[attr-defined]
    results = tuple[tuple(Tensor for _ in gradients)]  # type: ignore[misc]
    operator_definition = _custom_op(f"growtas::{name}", forward, signature.return_annotation)
    operator_definition.register_fake(shapes)
    backward_definition = _custom_op(f"growtas::{name}_backward", all_tensors, results)
    backward_definition.register_fake(gradients_like)
    operator_definition.register_autograd(differentiate, setup_context=keep)
    operator = getattr(torch.ops.growtas, name)
    backward_operator = getattr(torch.ops.growtas, f"{name}_backward")
    _register_flops(operator, flops, names)
    _register_flops(backward_operator, backward_flops, ["gradient", *wanted])

    body = {"forward": classic(forward, keep), "backward": staticmethod(differentiate)}
    function = type(name, (torch.autograd.Function,), {**body, "__doc__": forward.__doc__})
    FUNCTIONS[name] = function
    several = len(outputs) > 1

    def run(*arguments: Any) -> Tensor:
        output = function.apply(*arguments) if eager() else operator(*arguments)
        return output[0] if several else output

    return run


FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}
"""Every registered operation as an autograd.Function."""


def _call(function: Step, given: Mapping[str, Any]) -> Any:
    """Call a function with those of the given values that it names."""
    return function(*[given[name] for name in inspect.signature(function).parameters])


def _custom_op(name: str, function: Step, result: Any) -> Any:
    """An operator that reads weights as they are, never their shadows.

    A compiled graph holds the strides that the shape rule told, and shadows change those of q, k and v.
    """

    def run(*args: Any) -> Any:
        with shadow.ignored():
            return function(*args)

    signature = inspect.signature(function)
    run.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    schema = torch.library.infer_schema(run, mutates_args=())
    return torch.library.custom_op(name, run, mutates_args=(), schema=schema)


def _register_flops(operator: Any, formula: Step, names: Sequence[str]) -> None:
    def count(*arguments: Any, out_shape: Any = None, **keywords: Any) -> int:
        return _call(formula, {**dict(zip(names, arguments, strict=False)), **keywords})

    register_flop_formula(operator)(count)
