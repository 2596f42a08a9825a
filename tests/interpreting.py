"""A quicker Triton interpreter: the same values, bit for bit, in a fifth of the time.

Triton's interpreter spends next to nothing on numbers and nearly all of its time on types: each operation
works out again which type its result has, makes new objects that describe it, and fills whole tiles with
scalars before NumPy sees them. Here the answers are kept by the types of the operands, and NumPy broadcasts.
Triton's own code computes an operation on types that were never seen before, and every conversion but those
that NumPy makes in the same way. A mask of one value for a tile is refused, as by Triton 3.9.

The interpreter's internals differ between versions of Triton. One that is not known here stays slow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

KNOWN_VERSIONS = ("3.8.", "3.9.")
"""Of Triton, whose interpreter has the internals that are replaced here."""


def quicken() -> None:
    """Replace the slow parts of Triton's interpreter for this process, where Triton is there."""
    try:
        import triton
    except ImportError:
        return
    if not triton.__version__.startswith(KNOWN_VERSIONS):
        return
    from triton.runtime import interpreter

    # Triton repeats integer arithmetic in 64 bits to see whether 32 were enough. In tests they always are.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    _types()
    _handles(interpreter)
    _language(interpreter)
    _operations(interpreter)
    _masks()


def _masks() -> None:
    """Refuse a mask of one value for a tile: Triton 3.9's own interpreter cannot load with it."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic

    def checked(method: Callable, place: int) -> Callable:
        def access(self, ptr, *given):
            mask = given[place]
            if isinstance(mask, tl.tensor) and ptr.type.is_block():
                assert mask.type.is_block(), "A mask of one value is given for a tile."
            return method(self, ptr, *given)

        return access

    TritonSemantic.load = checked(TritonSemantic.load, 0)
    TritonSemantic.store = checked(TritonSemantic.store, 1)


def _types() -> None:
    """Equal types of tiles are one object, which knows the shape that tensors of it have."""
    from triton.language import core

    def element(size: Any) -> Any:
        return size.value if type(size) is core.constexpr else size

    blocks: dict[tuple, core.block_type] = {}
    initialise = core.block_type.__init__

    def new(cls, element_ty, shape):
        if type(shape) is core.constexpr:
            shape = shape.value
        key = cls, element_ty.name, tuple([element(size) for size in shape])
        block = blocks.get(key)
        if block is None:
            block = object.__new__(cls)
            initialise(block, element_ty, shape)
            blocks[key] = block
            block.of_tensor = core.tuple([core.constexpr(size) for size in block.shape])
            block.numel_of_tensor = core.constexpr(block.numel)
        return block

    core.block_type.__new__ = new
    core.block_type.__init__ = lambda self, element_ty, shape: None
    no_shape, one = core.tuple([]), core.constexpr(1)

    def initialise_tensor(self, handle, type):
        self.handle = handle
        self.type = type
        self.dtype = type.scalar
        if type.is_block():
            self.shape, self.numel = type.of_tensor, type.numel_of_tensor
        else:
            self.shape, self.numel = no_shape, one

    core.tensor.__init__ = initialise_tensor

    unwrap = core._unwrap_if_constexpr
    plain = frozenset((int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type))

    def unwrap_quickly(value):
        kind = type(value)
        return value if kind in plain else value.value if kind is core.constexpr else unwrap(value)

    core._unwrap_if_constexpr = unwrap_quickly
    equal = core.dtype.__eq__
    core.dtype.__eq__ = lambda self, other: self is other or equal(self, other)


def _handles(interpreter: Any) -> None:
    """Handles without a check of their own, and NumPy's types by a table that is made once."""
    import triton.language as tl

    def initialise(self, data, dtype, attr=None):
        self.data, self.dtype, self.attr = data, dtype, {} if attr is None else attr

    interpreter.TensorHandle.__init__ = initialise
    found: dict[str, np.dtype] = {}
    look_up = interpreter._get_np_dtype

    def np_dtype(kind):
        if kind.name not in found:
            found[kind.name] = look_up(kind)
        return found[kind.name]

    interpreter._get_np_dtype = np_dtype

    def binary(self, lhs, rhs, op):
        output, kind = op(lhs.data, rhs.data), lhs.dtype.scalar
        if kind.__class__ is not tl.pointer_type and output.itemsize * 8 > max(kind.primitive_bitwidth, 8):
            output = output.astype(np_dtype(kind))
        return interpreter.TensorHandle(output, kind)

    interpreter.InterpreterBuilder.binary_op = binary


def _language(interpreter: Any) -> None:
    """``triton.language`` is prepared once, not in every launch and every device function."""
    import triton.language as tl

    semantic = interpreter.interpreter_semantic

    def patch(owner, name, member, builder, scope):
        member = getattr(member, "__wrapped__", member)  # without the check that it got a ``_semantic``

        def call(*args, **kwargs):
            kwargs["_semantic"] = semantic
            return member(*args, **kwargs)

        setattr(owner, name, call)

    interpreter._patch_attr = patch

    def uses_language():
        pass

    prepare, nothing = interpreter._patch_lang, interpreter._LangPatchScope()
    prepare(type(uses_language)(uses_language.__code__, {"tl": tl, "core": tl.core}))
    interpreter._patch_lang = lambda fn: nothing


def _operations(interpreter: Any) -> None:
    """Operations that know the type of their result by those of the operands, and methods that are these."""
    import triton.language as tl
    from triton.language.semantic import TritonSemantic

    tensor, constexpr, semantic = tl.tensor, tl.constexpr, interpreter.interpreter_semantic
    Handle = interpreter.TensorHandle
    constants: dict[tuple, Any] = {}
    to_tensor, check = TritonSemantic.to_tensor, TritonSemantic.binary_op_type_checking_impl
    cast, broadcast = TritonSemantic.cast, TritonSemantic.broadcast_impl_value

    def constant(self, value, check_type=True):
        kind = type(value)
        if kind is tensor:
            return value
        if kind is constexpr:
            value, kind = value.value, type(value.value)
        if kind is not int and kind is not float:
            return to_tensor(self, value, check_type)
        made = constants.get((kind, value))
        if made is None:
            made = constants[kind, value] = to_tensor(self, value)
        return made

    TritonSemantic.to_tensor = constant

    def key_of(operand):
        return operand.type.name if type(operand) is tensor else (type(operand), operand)

    def conversion(before, after):
        """NumPy's type for a cast that ``astype`` makes as Triton does; None if there is none."""
        exact = (tl.float16, tl.float32, tl.float64)
        whole = before.is_int() and (after in exact or (after.is_int() and not after.is_bool()))
        return interpreter._get_np_dtype(after) if whole or (before in exact and after in exact) else None

    casts: dict[tuple, Any] = {}

    def cast_quickly(self, value, kind, rounding=None):
        key = value.type.name, kind.name, rounding
        entry = casts.get(key)
        if entry is None:
            result = cast(self, value, kind, rounding)
            before, after = value.type.scalar, result.type.scalar
            np_dtype = conversion(before, after) if rounding is None else None
            casts[key] = (
                () if before == after else np_dtype and (np_dtype, result.handle.dtype, result.type) or False
            )
            return result
        if entry == ():
            return value
        if entry is False:
            return cast(self, value, kind, rounding)
        np_dtype, dtype, kind = entry
        return tensor(Handle(value.handle.data.astype(np_dtype), dtype), kind)

    TritonSemantic.cast = cast_quickly
    shapes: dict[tuple, tuple] = {}

    def broadcast_quickly(self, lhs, rhs):
        """Views of both, instead of tiles that are filled."""
        key = lhs.type.name, rhs.type.name
        entry = shapes.get(key)
        if entry is None:
            left, right = broadcast(self, lhs, rhs)
            shapes[key] = tuple(
                None if one.type is operand.type else (one.type, tuple(one.type.get_block_shapes().values))
                for one, operand in ((left, lhs), (right, rhs))
            )
            return left, right
        left, right = entry
        if left is not None:
            lhs = tensor(Handle(np.broadcast_to(lhs.handle.data, left[1]), lhs.handle.dtype), left[0])
        if right is not None:
            rhs = tensor(Handle(np.broadcast_to(rhs.handle.data, right[1]), rhs.handle.dtype), right[0])
        return lhs, rhs

    TritonSemantic.broadcast_impl_value = broadcast_quickly
    checked: dict[tuple, tuple] = {}

    def check_quickly(self, lhs, rhs, *flags, **options):
        """Both operands in the type that they share, their values left for NumPy to broadcast."""
        key = key_of(lhs), key_of(rhs), flags, *options.items()
        types = checked.get(key)
        if types is None:
            types = checked[key] = tuple(one.type for one in check(self, lhs, rhs, *flags, **options))
        left, right = types
        one = cast_quickly if type(lhs) is tensor else TritonSemantic.scalar_constant
        other = cast_quickly if type(rhs) is tensor else TritonSemantic.scalar_constant
        return (
            tensor(one(self, lhs, left.scalar).handle, left),
            tensor(other(self, rhs, right.scalar).handle, right),
        )

    TritonSemantic.binary_op_type_checking_impl = check_quickly

    def direct(name: str, choose: Callable, *flags: bool) -> Callable:
        """An operation that is one function of NumPy, which ``choose`` finds by the types of the operands."""
        whole = getattr(TritonSemantic, name)
        known: dict[tuple, tuple | None] = {}

        def learn(self, key, lhs, rhs, rest):
            result = whole(self, lhs, rhs, *rest)
            shared = [one.type.scalar for one in check(self, lhs, rhs, *flags)]
            function, fixed, converted = choose(*shared, *rest), [], []
            for operand, kind in zip((lhs, rhs), shared, strict=True):
                is_tensor = type(operand) is tensor
                fixed.append(None if is_tensor else self.scalar_constant(operand, kind).handle.data)
                converts = is_tensor and operand.type.scalar != kind
                converted.append(conversion(operand.type.scalar, kind) if converts else None)
                if converts and converted[-1] is None:
                    function = None
            known[key] = function and (function, result.type, result.handle.dtype, *fixed, *converted)
            return result

        def operate(self, lhs, rhs, *rest):
            key = key_of(lhs), key_of(rhs), rest
            entry = known.get(key, False)
            if entry is False:
                return learn(self, key, lhs, rhs, rest)
            if entry is None:
                return whole(self, lhs, rhs, *rest)
            function, kind, dtype, left, right, convert_left, convert_right = entry
            if left is None:
                left = lhs.handle.data
                if convert_left is not None:
                    left = left.astype(convert_left)
            if right is None:
                right = rhs.handle.data
                if convert_right is not None:
                    right = right.astype(convert_right)
            return tensor(Handle(function(left, right), dtype), kind)

        setattr(TritonSemantic, name, operate)
        return operate

    def method(name: str, operation: Callable, *options: Any, weak: bool, swapped: bool = False) -> None:
        """A special method of tensors; a number is weak where it takes the type of the other operand."""

        def call(self, other):
            if type(other) is not tensor:
                if type(other) is constexpr:
                    other = other.value
                other = other if weak else constant(semantic, other)
            return operation(semantic, *((other, self) if swapped else (self, other)), *options)

        setattr(tensor, name, call)

    def pointer_sum(width: int) -> Callable:
        return lambda pointer, offset: pointer + width * offset.astype(np.uint64)

    def sum_of(left, right, _):
        if left.is_ptr():
            widens = right.is_ptr() or (right.is_int_unsigned() and right.int_bitwidth < 64)
            return None if widens else pointer_sum(max(1, left.element_ty.primitive_bitwidth // 8))
        return None if right.is_ptr() else np.add

    def extreme(of_integers: Callable, of_floats: Callable) -> Callable:
        def choose(left, right, propagate_nan):
            if left.is_floating():
                return of_floats if propagate_nan == tl.PropagateNan.NONE else None
            return of_integers

        return choose

    for name, choose, flags in (
        ("add", sum_of, (True, True)),
        ("sub", lambda left, right, _: None if left.is_ptr() else np.subtract, (True,)),
        ("mul", lambda left, right, _: np.multiply, ()),
    ):
        operation = direct(name, choose, *flags)
        method(f"__{name}__", operation, True, weak=True)
        method(f"__r{name}__", operation, True, weak=True, swapped=True)
    for name, choose in (
        ("truediv", lambda left, right: np.divide if left.is_floating() and right == left else None),
        ("floordiv", lambda left, right: lambda one, other: (one - np.fmod(one, other)) // other),
        ("mod", lambda left, right: np.fmod),
    ):
        operation = direct(name, choose, False, False, True, True)
        method(f"__{name}__", operation, weak=True)
        method(f"__r{name}__", operation, weak=True, swapped=True)
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or)):
        operation = direct(f"{name}_", lambda left, right, function=function: function)
        method(f"__{name}__", operation, weak=True)
        method(f"__r{name}__", operation, weak=True, swapped=True)
    for name, special, function in (
        ("less_than", "__lt__", np.less),
        ("less_equal", "__le__", np.less_equal),
        ("greater_than", "__gt__", np.greater),
        ("greater_equal", "__ge__", np.greater_equal),
        ("equal", "__eq__", np.equal),
        ("not_equal", "__ne__", np.not_equal),
    ):
        method(special, direct(name, lambda left, right, function=function: function), weak=False)
    direct("minimum", extreme(np.minimum, np.fmin))
    direct("maximum", extreme(np.maximum, np.fmax))

    to, index, indexed = tensor.to, tensor.__getitem__, {}

    def to_quickly(self, dtype, *rest, **options):
        if rest or options:
            return to(self, dtype, *rest, **options)
        return cast_quickly(semantic, self, dtype.value if type(dtype) is constexpr else dtype)

    tensor.to = to_quickly

    def index_quickly(self, places):
        """New axes: ``x[:, None]``."""
        if type(places) is not tuple or not self.type.is_block():
            return index(self, places)
        key = self.type.name, *(place is None for place in places)
        kind = indexed.get(key)
        if kind is None or any(place is not None and place != slice(None) for place in places):
            result = index(self, places)
            indexed[key] = result.type
            return result
        return tensor(Handle(self.handle.data[places], self.handle.dtype), kind)

    tensor.__getitem__ = index_quickly
