"""Shared by the kernel tests: poisoned tensors, dtypes, and the rule by which a kernel passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from growtas.kernels.common import launch

NAN = float("nan")
GPU = torch.cuda.is_available()
needs_interpreter = pytest.mark.skipif(
    GPU, reason="needs Triton's interpreter, off where there is a CUDA device"
)
needs_gpu = pytest.mark.skipif(not GPU, reason="needs a CUDA device")

#: (dtype of activations, dtype of parameters). Triton's interpreter multiplies the bits of bfloat16 as
#: integers, so matmuls in bfloat16 are tested on a GPU only.
DTYPES = [
    pytest.param(torch.float32, torch.float32, id="fp32"),
    pytest.param(torch.float16, torch.float32, id="fp16-fp32"),
    pytest.param(torch.float16, torch.float16, id="fp16"),
    pytest.param(torch.bfloat16, torch.float32, id="bf16-fp32", marks=(needs_gpu, pytest.mark.cuda)),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bf16", marks=(needs_gpu, pytest.mark.cuda)),
]


def with_dtypes(cases: list, dtypes: list = DTYPES) -> list:
    """Each case with each of some dtypes; where Triton is interpreted, ``make test`` has one of them in turn.

    Args:
        cases: of shapes, as pytest.param with an id.
        dtypes: likewise; the first three are those that are interpreted.
    """
    return [
        pytest.param(
            *case.values,
            *form.values,
            id=f"{case.id}-{form.id}",
            marks=(*case.marks, *form.marks, *([] if GPU or (place - turn) % 3 == 0 else [pytest.mark.slow])),
        )
        for place, case in enumerate(cases)
        for turn, form in enumerate(dtypes)
    ]


#: The interpreter's time goes by operations, whatever their size: fewer, larger ones. A GPU keeps its tiles.
LARGE_TILES = {} if GPU else {"rows": 64, "cols": 128, "depth": 64}


def rows(m: int, width: int, dtype: torch.dtype, device: torch.device, gap: int = 0) -> torch.Tensor:
    """Normal activations (m, width) in a buffer of NaN: a row before and after, ``gap`` columns beside."""
    buffer = torch.full((m + 2, width + gap), NAN, device=device, dtype=dtype)
    view = buffer[1:-1, :width]
    view.copy_(torch.randn(m, width))
    return view


def parameter(
    shape: tuple[int, ...], active: tuple[int, ...], dtype: torch.dtype, device: torch.device, scale: float
) -> torch.Tensor:
    """A shared parameter that is NaN outside its active prefix, as are its neighbours in memory."""
    guard = 8
    buffer = torch.full((shape[0] + 2 * guard, *shape[1:]), NAN, device=device, dtype=dtype)
    whole = buffer[guard:-guard]
    whole[tuple(slice(size) for size in active)] = (torch.randn(active) * scale).to(device, dtype)
    return whole


@contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Everything allocated inside starts as NaN, so that an element a kernel forgets to write is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    launch.forget()  # plans keep the way they allocate
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        launch.forget()
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@contextmanager
def recorded_stores() -> Iterator[list[np.ndarray]]:
    """The addresses that interpreted kernels write to, one array per store."""
    from triton.runtime.interpreter import InterpreterBuilder

    stores: list[np.ndarray] = []
    original = InterpreterBuilder.create_masked_store

    def record(self, ptrs, value, mask, *rest):
        stores.append(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return original(self, ptrs, value, mask, *rest)

    InterpreterBuilder.create_masked_store = record
    try:
        yield stores
    finally:
        InterpreterBuilder.create_masked_store = original


def assert_written_once(stores: list[np.ndarray], tensor: torch.Tensor, what: str) -> None:
    """Every element of a contiguous tensor was stored to, and none twice: on a GPU, a race."""
    addresses = np.sort(np.concatenate([np.asarray(store).reshape(-1) for store in stores]))
    inside = addresses[(addresses >= tensor.data_ptr()) & (addresses < tensor.data_ptr() + tensor.nbytes)]
    expected = tensor.data_ptr() + tensor.element_size() * np.arange(tensor.numel(), dtype=np.uint64)
    assert len(inside) == len(expected), f"{what}: {len(inside)} stores to {len(expected)} elements"
    assert (inside == expected).all(), f"{what}: an element was written twice"


def assert_as_good_as_torch(
    result: torch.Tensor, torch_result: torch.Tensor, truth: torch.Tensor, reduction: int, what: str
) -> None:
    """The rule: at most twice the error of plain torch in the same dtype, by maximum and by root mean square.

    Args:
        result: of the kernel.
        torch_result: the same computation in plain torch, in the kernel's dtypes.
        truth: the same in fp64.
        reduction: terms per sum; the floor, for sums on which torch happens to be exact, grows with its root.
        what: for the message.
    """
    assert result.shape == truth.shape, what
    assert result.dtype == torch_result.dtype, what
    assert not result.isnan().any(), f"{what}: {int(result.isnan().sum())} elements are NaN"
    error, torch_error = (result.double() - truth).abs(), (torch_result.double() - truth).abs()
    floor = torch.finfo(torch.float32).eps * reduction**0.5 * truth.abs().max()
    assert error.max() <= 2 * torch_error.max() + floor, (
        f"{what}: maximum error {error.max():.3g}, torch's {torch_error.max():.3g}"
    )
    assert error.square().mean().sqrt() <= 2 * torch_error.square().mean().sqrt() + floor, (
        f"{what}: RMS error {error.square().mean().sqrt():.3g}, "
        f"torch's {torch_error.square().mean().sqrt():.3g}"
    )


def assert_zero_outside(gradient: torch.Tensor, active: tuple[int, ...], what: str) -> None:
    """Exactly zero everywhere but in the active prefix."""
    outside = gradient.clone()
    outside[tuple(slice(size) for size in active)] = 0
    assert (outside == 0).all(), f"{what} is not zero outside its slice {active}"
