"""``growtas warmup``: compile a space's Triton kernels before training, so that no step waits for a compiler.

A kernel is compiled once per variant (pointer dtypes, constexpr arguments, launch options), never per subnet,
so a space has a bounded number of them. They are not listed by hand: the operations of one block run, forward
and backward, on tensors without values, for every layer signature of the space, with ``launch.recording``
noting what the launchers would compile. The same goes for the patch embedding, the first tokens, the final
norm and the head.

Each variant is then compiled into Triton's own disk cache, under the key that a launch looks for: the cache
is what makes an interrupted warm-up go on where it stopped.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from growtas import ops
from growtas.bounds import BATCH, CLASSES, SOME_PROCESSES, Bound, bounded
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.ops import dispatch
from growtas.shadow import Shadows
from growtas.space import SearchSpace, load_space

if TYPE_CHECKING:
    from growtas.kernels.common.launch import Variant

DTYPES = {
    "bf16-autocast": (torch.bfloat16, torch.float32, "highest"),
    "fp16-autocast": (torch.float16, torch.float32, "highest"),
    "bf16": (torch.bfloat16, torch.bfloat16, "highest"),
    "fp32": (torch.float32, torch.float32, "highest"),
    "tf32": (torch.float32, torch.float32, "high"),
}
"""name -> dtype of GEMMs, of parameters and residual stream, and torch's float32_matmul_precision."""

BATCHES = (1, 8, 64, 128, 256, 512)
"""Images per device where the caller names none: tiles depend on the number of rows, in a few classes."""


@bounded(batch=BATCH, num_classes=CLASSES, arch=Bound(50, 200), jobs=SOME_PROCESSES)
def warmup(
    space: SearchSpace | str,
    batch: Sequence[int] = BATCHES,
    dtype: Sequence[str] = ("bf16-autocast",),
    num_classes: int = 1000,
    arch: Sequence[int] = (),
    jobs: int | None = None,
) -> int:
    """Compile every Triton kernel variant that training and evaluating a space needs, into Triton's cache.

    Args:
        space: a search space, the name of a preset or the path of a YAML file.
        batch: images per device, of training and of evaluation.
        dtype: of GEMMs: bf16-autocast, fp16-autocast, bf16, fp32 or tf32.
        num_classes: outputs of the head.
        arch: compute capabilities to compile for, such as 80 90; the GPU of this machine where not given.
        jobs: compilers at once; the processors of this machine where not given.

    Returns:
        How many variants there are; all of them are in the cache.

    Raises:
        UsageError: a dtype or a batch makes no sense, or kernels are interpreted in this process.
        GrowtasError: there is neither Triton nor a GPU to compile for, or a kernel does not compile.
    """
    _check(batch, dtype)
    space = load_space(space)
    if not isinstance(space, SearchSpace):
        raise UsageError(f"Space {space.name!r} runs on torch's convolutions: it has no kernels to compile.")
    targets = _targets(arch)
    work = []
    for target in targets:
        found = record(space, batch, dtype, num_classes, target)
        work += [(target, key) for key in sorted(found)]
    arguments = (space, tuple(batch), tuple(dtype), num_classes, tuple(targets))
    jobs = max(1, min(jobs or len(os.sched_getaffinity(0)), len(work)))
    fresh = _compile_all(work, arguments, jobs)
    names = ", ".join(f"sm_{target[0]}" for target in targets)
    rest = f"{fresh} compiled, {len(work) - fresh} there before"
    print(f"{len(work)} variants for {space.name} on {names}: {rest}")
    return len(work)


def _check(batch: Sequence[int], dtype: Sequence[str]) -> None:
    for name in dtype:
        if name not in DTYPES:
            raise UsageError(f"warmup knows no dtype {name!r}.{nearest(name, DTYPES)}")
    if not batch or min(batch) < 1:
        raise UsageError(f"Every batch must be 1 image or more, but {tuple(batch)} was given.")
    if not dtype:
        raise UsageError(f"warmup needs a dtype: one of {', '.join(DTYPES)}.")


Target = tuple[int, int | None, int | None]
"""Compute capability times ten; multiprocessors and bytes of shared memory of the GPU that is there."""


def _targets(arch: Sequence[int]) -> list[Target]:
    """The targets to compile for: the architectures asked for, or the GPU that is there."""
    try:
        from growtas.kernels.common import launch
    except ImportError as error:
        raise GrowtasError(
            f"Triton does not import ({error}). Install it with: pip install triton"
        ) from error
    if launch.INTERPRETED:
        raise UsageError("Kernels are interpreted in this process: unset TRITON_INTERPRET to compile them.")
    if arch:
        return [(capability, None, None) for capability in dict.fromkeys(arch)]
    if not torch.cuda.is_available():
        raise GrowtasError("No CUDA device is visible to compile for. Name architectures: --arch 80 90.")
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    return [(10 * major + minor, launch.multiprocessors(device), launch.shared_memory(device))]


# -- what there is to compile ----------------------------------------------------------------------------


def record(
    space: SearchSpace,
    batch: Sequence[int],
    dtype: Sequence[str],
    num_classes: int,
    target: Target,
    shadows: bool = True,
) -> dict[str, Variant]:
    """The variants that training and evaluating a space would compile, by key.

    Args:
        space: whose layer signatures are run.
        batch: images per device.
        dtype: keys of :data:`DTYPES`.
        num_classes: outputs of the head.
        target: for which GPU.
        shadows: whether 16-bit GEMMs read shadows of fp32 weights, or the weights themselves, as in graphs of
            ``torch.compile``.
    """
    from growtas.kernels.common import launch

    before = torch.get_float32_matmul_precision()
    try:
        with launch.recording(target[0]) as found:
            for name in dtype:
                gemm_dtype, parameters, precision = DTYPES[name]
                torch.set_float32_matmul_precision(precision)
                for preferred in ("triton", "cublas"):
                    with _on_triton(target, preferred):
                        for images in dict.fromkeys(batch):
                            for signature in signatures(space):
                                run_block(space, *signature, images, gemm_dtype, parameters, shadows)
                            for width in space.embed_dim:
                                run_ends(space, width, num_classes, images, gemm_dtype, parameters, shadows)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


@contextmanager
def _on_triton(target: Target, preferred: str = "triton") -> Iterator[None]:
    """Within it, every operation that has Triton kernels takes them, also for tensors on the meta device.

    ``dispatch.use`` asks whether the tensors' device fits; here nothing is launched. Tiles are picked for the
    multiprocessors and the shared memory of the target.

    Args:
        target: what is compiled for.
        preferred: ``triton``, or ``cublas`` for the kernels between cuBLAS's GEMMs.
    """
    from growtas.kernels.common import launch

    def choose(op: str, *_: Any) -> str:
        names = (preferred, "triton", "torch")
        return next(name for name in names if name in dispatch.OPERATIONS[op].backends)

    _, multiprocessors, shared_memory = target
    replaced = [(dispatch, "choose", choose)]
    if multiprocessors is not None:
        replaced.append((launch, "multiprocessors", lambda device: multiprocessors))
    if shared_memory is not None:
        replaced.append((launch, "shared_memory", lambda device: shared_memory))
    former = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    dispatch.changed()  # it keeps what was chosen before
    try:
        yield
    finally:
        for module, name, value in former:
            setattr(module, name, value)
        dispatch.changed()


def signatures(space: SearchSpace) -> Iterator[tuple[int, int, int]]:
    """embed_dim, heads and MLP width of every block that the space can have (12, 27, 18 for T, S, B)."""
    for width in space.embed_dim:
        for heads in space.num_heads:
            for ratio in space.mlp_ratio:
                yield width, heads, int(width * ratio)


def _empty(*shape: int, dtype: torch.dtype, leaf: bool = True) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=leaf)


def _both_passes(outputs: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
    torch.autograd.grad(outputs, leaves, torch.empty_like(outputs))


def run_block(
    space: SearchSpace,
    width: int,
    heads: int,
    hidden: int,
    batch: int,
    gemm_dtype: torch.dtype,
    parameters: torch.dtype,
    shadows: bool = True,
) -> None:
    """Both residual branches, forward and backward, with and without drop-path, on tensors without values.

    Args:
        space: gives the shared sizes.
        width, heads, hidden: of the block.
        batch: images.
        gemm_dtype: dtype of GEMMs.
        parameters: dtype of parameters and of the residual stream.
        shadows: as :func:`record`.
    """
    from growtas.kernels.shadow import cast

    shared, e = space.super_embed_dim, space.head_dim
    shared_heads, shared_hidden = space.super_num_heads * e, space.super_hidden_dim
    side = space.image_size // space.patch_size

    def parameter(*shape: int) -> torch.Tensor:
        return _empty(*shape, dtype=parameters)

    norm = parameter(shared), parameter(shared)
    qkv = parameter(3 * shared_heads, shared), parameter(3 * shared_heads)
    proj = parameter(shared, shared_heads), parameter(shared)
    rows = 2 * space.max_relative_position + 2
    tables = tuple(parameter(rows, e) for _ in range(4))
    fc1 = parameter(shared_hidden, shared), parameter(shared_hidden)
    fc2 = parameter(shared, shared_hidden), parameter(shared)
    copies = Shadows([*qkv, *proj, *fc1, *fc2], {0: e, 1: e})
    if shadows:
        copies.refresh(gemm_dtype, cast)
    for scale in (None, _empty(batch, dtype=torch.float32, leaf=False)):
        x = _empty(batch, space.num_tokens, width, dtype=parameters)
        arguments = {"scale": scale, "dtype": gemm_dtype}
        y = ops.attention_branch(x, norm, qkv, tables, proj, heads, e, (side, side), **arguments)
        _both_passes(y, (x, *norm, *qkv, *tables, *proj))
        y = ops.mlp(x, norm, fc1, fc2, hidden, **arguments)
        _both_passes(y, (x, *norm, *fc1, *fc2))


def run_ends(
    space: SearchSpace,
    width: int,
    num_classes: int,
    batch: int,
    gemm_dtype: torch.dtype,
    parameters: torch.dtype,
    shadows: bool = True,
) -> None:
    """Everything around the blocks at one width, forward and backward, on tensors without values."""
    shared = space.super_embed_dim
    patch = space.in_channels * space.patch_size**2
    from growtas.kernels.shadow import cast

    weight, bias = _empty(shared, patch, dtype=parameters), _empty(shared, dtype=parameters)
    patches = _empty(batch, space.num_tokens - 1, patch, dtype=gemm_dtype, leaf=False)
    copies = Shadows([weight, bias])
    if shadows:
        copies.refresh(gemm_dtype, cast)
    patches = ops.linear(patches, weight, bias, width)
    _both_passes(patches, (weight, bias))
    cls, position = (_empty(1, n, shared, dtype=parameters) for n in (1, space.num_tokens))
    _both_passes(ops.tokens(patches, cls, position), (patches, cls, position))

    scale, shift = _empty(shared, dtype=parameters), _empty(shared, dtype=parameters)
    x = _empty(batch, space.num_tokens, width, dtype=parameters)
    _both_passes(ops.layer_norm(x, scale, shift, out_dtype=gemm_dtype), (x, scale, shift))
    pooled = ops.pooled_norm(x, scale, shift, (1, space.num_tokens), out_dtype=gemm_dtype)
    _both_passes(pooled, (x, scale, shift))

    weight, bias = _empty(num_classes, shared, dtype=parameters), _empty(num_classes, dtype=parameters)
    copies = Shadows([weight, bias])
    if shadows:
        copies.refresh(gemm_dtype, cast)
    pooled = _empty(batch, width, dtype=gemm_dtype)
    _both_passes(ops.linear(pooled, weight, bias, num_classes), (pooled, weight, bias))


# -- compiling -------------------------------------------------------------------------------------------

_recorded: dict[tuple[Target, str], Variant] = {}


def _compile_all(work: list[tuple[Target, str]], arguments: tuple, jobs: int) -> int:
    """Compile everything; how many variants were not in the cache yet."""
    from growtas.progress import Progress

    fresh = 0
    with Progress(len(work), "compile", "kernel") as bar:
        if jobs == 1:
            _begin(*arguments)
            for item in work:
                fresh += _compile(item)
                bar.update()
            return fresh
        # New processes: a fork would take over the CUDA context and the threads of this one.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=arguments)
        try:
            for was_fresh in pool.map(_compile, work):
                fresh += was_fresh
                bar.update()
        except BrokenProcessPool as error:
            raise GrowtasError(
                "A process that compiles ended without an answer. Give --arch as Triton knows it, such as "
                "80 90, and fewer --jobs where memory is short."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return fresh


def _begin(space: SearchSpace, batch: tuple, dtype: tuple, num_classes: int, targets: tuple) -> None:
    """In every compiling process: find out again what there is to compile, since kernels cannot be sent."""
    for target in targets:
        for key, variant in record(space, batch, dtype, num_classes, target).items():
            _recorded[target, key] = variant


def _compile(item: tuple[Target, str]) -> bool:
    """Compile one variant into Triton's disk cache; whether it was not there yet.

    Raises:
        GrowtasError: it does not compile.
    """
    target, _ = item
    variant = _recorded[item]
    try:
        return compile_into_cache(variant, target[0])
    except Exception as error:
        first = (str(error).splitlines() or ["no message"])[0]
        raise GrowtasError(
            f"{variant.kernel} does not compile for sm_{target[0]} ({type(error).__name__}: {first}). Train "
            "with GROWTAS_BACKEND=torch, and report this with the version of Triton."
        ) from error


def compile_into_cache(variant: Variant, capability: int) -> bool:
    """Compile a variant under the key that a launch looks for; whether it was not in the cache yet.

    Args:
        variant: as ``launch.recording`` found it.
        capability: compute capability times ten.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from growtas.kernels.common import launch

    seen: list[bool] = []

    def listener(*, cache_hit: bool, **_: Any) -> None:
        seen.append(cache_hit)

    source = ASTSource(
        launch.KERNELS[variant.kernel], dict(variant.signature), dict(variant.constants), dict(variant.attrs)
    )
    former, triton.knobs.compilation.listener = triton.knobs.compilation.listener, listener
    try:
        triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(variant.options))
    finally:
        triton.knobs.compilation.listener = former
    return not all(seen)
