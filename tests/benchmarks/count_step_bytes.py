"""Counts the bytes and the FLOPs of a training step of AutoFormer-T on a GPU, without one; prints JSON.

    python count_step_bytes.py triton|cublas    bytes and FLOPs of a step at batch 128, by kernel

``traced`` counts one block's launches in Triton's interpreter: bytes by sizes, and as touched. The whole step
is a process of its own, because Triton decides at its import whether kernels are interpreted. It runs on meta
tensors inside ``launch.recording``, as under bf16 autocast with shadows. Every launch of a Triton kernel
counts the tensors that it was given, and of a shared weight the slice that its own sizes name; every tensor
operation between them counts its inputs and outputs. Room for sums within a launch does not count: a few
programs' worth, which stays in the caches.
"""

from __future__ import annotations

import collections
import contextlib
import inspect
import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import growtas
from growtas import shadow, warmup
from growtas.kernels import shadow as cast_kernel
from growtas.kernels.common import launch
from growtas.nn import Block
from growtas.nn import block as block_module
from growtas.nn import linear as linear_module
from growtas.ops import dispatch, shadows
from growtas.ops.linear import cublas, reference
from growtas.ops.qkv import reference as qkv_reference
from growtas.subnet import Subnet
from growtas.supernet import vit

SUBNET = Subnet(216, 13, (4.0,) * 13, (4,) * 13)
BATCH = 128

#: Room for sums and parts of results within a launch.
ROOM = {"partial_ptr", "counter_ptr", "work_ptr"}
#: How many elements of a whole shared tensor a launch reads, by the sizes that it was given.
SLICES = {
    "layer_norm": {"weight_ptr": "width", "bias_ptr": "width"},
    "pooled_norm.forward": {
        "x_ptr": "x_ptr.numel() // N * (last - first)", "mean_ptr": "mean_ptr.numel() // N * (last - first)",
        "rstd_ptr": "rstd_ptr.numel() // N * (last - first)", "weight_ptr": "width", "bias_ptr": "width",
    },
    "tokens": {"cls_ptr": "width", "pos_ptr": "N * width"},
    "linear.forward": {"weight_ptr": "N * K", "bias_ptr": "N"},
    "linear.backward": {"weight_ptr": "N * K"},
    "linear.backward_converting": {"weight_ptr": "N * K"},
    "mlp.fused_forward": {
        "gamma_ptr": "width", "beta_ptr": "width", "w1_ptr": "hidden * width", "b1_ptr": "hidden",
        "w2_ptr": "hidden * width", "b2_ptr": "width", "z_ptr": "0",
    },
    "norm_qkv": {
        "norm_weight_ptr": "K", "norm_bias_ptr": "K", "weight_ptr": "3 * heads * HEAD_DIM * K",
        "bias_ptr": "3 * heads * HEAD_DIM",
    },
}  # fmt: skip
SLICES["pooled_norm.backward"] = {k: v for k, v in SLICES["pooled_norm.forward"].items() if k != "bias_ptr"}
SLICES["relative_attention.forward"] = {
    "hot_ptr": "-(-N // BLOCK_K) * BLOCK_K * 2 * SIDE",
    "terms_index_ptr": "-(-N // BLOCK_Q) * BLOCK_Q * 2 * SIDE",
    "tables_index_ptr": "-(-N // BLOCK_Q) * BLOCK_Q * 4 * SIDE",
}
SLICES["relative_attention.two_pass"] = {
    **SLICES["relative_attention.forward"],
    "dq_ptr": "qkv_ptr.numel() // 3",  # of dqkv
}
SLICES["relative_attention.one_pass"] = SLICES["relative_attention.forward"]
SLICES["mlp.fused_backward"] = {k: v for k, v in SLICES["mlp.fused_forward"].items() if k != "z_ptr"}
SLICES["qkv"] = SLICES["norm_qkv"]
#: Multiply-adds of a launch on tensor cores, by its own sizes.
PRODUCTS = {
    "linear.forward._forward": "M * N * K",
    "linear.backward._input": "M * N * K",
    "linear.backward._weight": "M * N * K",
    "linear.backward_converting._input": "M * N * K",
    "linear.backward_pair._weights": "M * (N1 * K1 + N2 * K2)",
    "mlp.fused_forward._forward": "2 * M * width * hidden",
    "mlp.fused_backward._backward": "3 * M * width * hidden",
    "norm_qkv.forward._forward_held": "M * K * 3 * heads * HEAD_DIM",
    "norm_qkv.forward._forward_tiled": "M * K * 3 * heads * HEAD_DIM",
    "norm_qkv.backward._input": "M * K * 3 * heads * HEAD_DIM",
    "qkv.backward._weight": "M * K * 3 * heads * HEAD_DIM",
    # with a table's window: terms, and what lies in place space, beside every product over keys
    "relative_attention.forward._forward": "PAIRS * N * (2 * N * (HEAD_DIM + 2 * SIDE) + 2 * TABLES)",
    "relative_attention.two_pass._backward_queries": (
        "PAIRS * N * (N * (3 * HEAD_DIM + 8 * SIDE) + 5 * TABLES)"
    ),
    "relative_attention.two_pass._backward_keys": "PAIRS * N * N * (4 * HEAD_DIM + 4 * SIDE)",
    "relative_attention.one_pass._backward": "PAIRS * N * (N * (5 * HEAD_DIM + 8 * SIDE) + 5 * TABLES)",
}
#: What moves nothing: views, allocation and bookkeeping.
FREE = set(
    "_reshape_alias _unsafe_view alias as_strided detach empty empty_like empty_strided expand lift_fresh "
    "new_empty new_empty_strided permute select slice split squeeze t transpose unbind unsqueeze view".split()
)


class Counts:
    """Launches, bytes and FLOPs by kernel or operation."""

    def __init__(self) -> None:
        self.found: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])

    def add(self, name: str, moved: int, flops: int) -> None:
        """One launch."""
        for place, value in enumerate((1, moved, flops)):
            self.found[name][place] += value

    def launched(
        self, jitted: Any, grid: tuple, device: torch.device, *arguments: Any, **constants: Any
    ) -> None:
        """A launch of a Triton kernel, by its arguments; in the place of ``launch.run``."""
        name, given = launch.name_of(jitted), given_to(jitted, arguments, constants)
        self.add(name, sum(sizes(name, given).values()), flops(name, given))

    def cast(self, work: Any) -> None:
        """The launch that casts all shared weights; its arguments are addresses in a table."""
        self.add("shadow._cast", sum(w.weight.nbytes + w.matrix.nbytes for w in work), 0)


def given_to(jitted: Any, arguments: tuple, constants: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a launch by name."""
    return dict(zip(inspect.signature(jitted.fn).parameters, arguments, strict=False)) | constants


def sizes(name: str, given: dict[str, Any]) -> dict[str, int]:
    """The bytes that a launch reads or writes of each tensor that it was given."""
    module = name.rpartition(".")[0]
    slices, found = SLICES.get(module, SLICES.get(module.split(".")[0], {})), {}
    for pointer, tensor in given.items():
        if isinstance(tensor, torch.Tensor) and pointer not in ROOM:
            elements = eval(slices[pointer], {}, given) if pointer in slices else tensor.numel()
            assert elements <= tensor.numel(), f"{name} reads past {pointer}"
            found[pointer] = elements * tensor.element_size()
    return found


def flops(name: str, given: dict[str, Any]) -> int:
    """The FLOPs of a launch on tensor cores."""
    known = dict(given)
    if name.startswith("relative_attention") and "qkv_ptr" in given:
        known["PAIRS"] = given["qkv_ptr"].shape[1] * given["heads"]
        known["TABLES"] = 4 * given["SIDE"] * given["HEAD_DIM"]
    return 2 * eval(PRODUCTS.get(name, "0"), {}, known)


class Between(TorchDispatchMode):
    """Counts what tensor operations read and write; an expanded tensor as what is in memory."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in FREE or func.is_view:
            return out
        given = [t for a in (*args, *(kwargs or {}).values()) for t in _tensors(a)]
        if name in ("zero_", "copy_", "fill_", "zeros_like", "ones_like"):
            given = given[1:] if name == "copy_" else []
        tensors = {id(t): t for t in (*given, *_tensors(out))}.values()
        moved = sum(_in_memory(t) for t in tensors)
        flops = 0
        if name in ("mm", "addmm", "addmm_"):
            a, b = [t for t in _tensors(args) if t.dim() == 2][-2:]
            flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
        self.counts.add(name, moved, flops)
        return out


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, tuple | list) else []


def _in_memory(tensor: torch.Tensor) -> int:
    sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return tensor.element_size() * torch.Size(sizes).numel()


@contextlib.contextmanager
def on_a_pretended_gpu(preferred: str, counts: Counts) -> Iterator[None]:
    """Meta tensors stand for CUDA's, under bf16 autocast, with shadows."""
    torch._C._len_torch_dispatch_stack = lambda: 0  # operations run directly, not as one opaque operator
    for module in (block_module, linear_module, vit):
        module.compute_dtype = lambda _: torch.bfloat16
    shadow._place = lambda weight: weight.untyped_storage()._cdata  # meta tensors have no address
    shadows.copy = cast_kernel.cast = counts.cast
    launch.run = counts.launched
    kept = reference.linear_backward_weight

    def on_cuda(dy, x, weight, bias, scale=None, tokens=1, into=None):
        """As cublas does where tensors say that they are CUDA's."""
        if into is not None or preferred != "cublas":
            return kept(dy, x, weight, bias, scale, tokens, into)
        dy, dbias = cublas.scaled_rows(dy, scale, tokens, x.dtype, bias)
        return cublas.weight_gradient(dy, x, weight), dbias

    def matmul_into(a, b, out):
        torch.mm(a, b, out=torch.empty_like(out)) if a.dtype == out.dtype else between_mm(a, b, out)

    def between_mm(a, b, out):
        counts.add("mm", sum(map(_in_memory, (a, b, out))), 2 * a.shape[0] * a.shape[1] * b.shape[1])

    reference.linear_backward_weight = on_cuda
    cublas.matmul_into = qkv_reference.matmul_into = reference.matmul_into = matmul_into
    with launch.recording(90), warmup._on_triton(warmup._targets((90,))[0], preferred):
        yield


def count(preferred: str) -> Counts:
    """A training step of T."""
    counts = Counts()
    with on_a_pretended_gpu(preferred, counts):
        net = growtas.Supernet("autoformer-tiny").to("meta").train()
        images = torch.empty(BATCH, 3, 224, 224, device="meta")
        labels = torch.empty(BATCH, dtype=torch.long, device="meta")

        def step() -> None:
            torch.nn.functional.cross_entropy(net(images, SUBNET).float(), labels).backward()
            for parameter in net.parameters():
                parameter.grad = None

        step()  # once before: tables that are kept are there
        torch.autograd.graph.increment_version(list(net.parameters()))  # as an optimizer step
        counts.found.clear()
        with Between(counts):
            step()
    return counts


def traced() -> list[tuple[str, int, int]]:
    """Trace the addresses that one block reads and writes, of a small image in Triton's interpreter.

    Returns:
        Of each launch its kernel, the bytes of :func:`sizes`, and those of the addresses that it touched.
    """
    from triton.runtime import interpreter

    found, addresses, kept = [], [], launch.run
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(pointers: Any, mask: Any) -> None:
        addresses.append(np.unique(pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]))

    def loaded(self, pointers, mask, *rest):
        note(pointers, mask)
        return load(self, pointers, mask, *rest)

    def stored(self, pointers, value, mask, *rest):
        note(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def run(jitted: Any, grid: tuple, device: torch.device, *arguments: Any, **constants: Any) -> None:
        addresses.clear()
        kept(jitted, grid, device, *arguments, **constants)
        name, given = launch.name_of(jitted), given_to(jitted, arguments, constants)
        storages: dict[int, tuple[int, int]] = {}  # two pointers into one tensor are one
        for pointer in sizes(name, given):
            tensor = given[pointer]
            begin, bytes_ = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
            storages[begin] = bytes_, max(tensor.element_size(), *storages.get(begin, (0, 0))[1:])
        whole, touched = np.unique(np.concatenate(addresses)), 0
        for begin, (bytes_, element) in storages.items():
            own = whole[(whole >= begin) & (whole < begin + bytes_)] - np.uint64(begin)
            touched += element * len(np.unique(own // np.uint64(element)))
        found.append((name, sum(sizes(name, given).values()), touched))

    block = Block(128, 2, 256, 64, 6, "interleaved")  # distances up to 6: all that a 7 x 7 grid has
    x = torch.randn(1, 50, 104, requires_grad=True)
    layers = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    made = shadow.Shadows([weight for layer in layers for weight in (layer.weight, layer.bias)])
    made.refresh(torch.float16)  # bfloat16 has no products in the interpreter
    with (
        patch.object(builder, "create_masked_load", loaded),
        patch.object(builder, "create_masked_store", stored),
        patch.object(launch, "run", run),
        dispatch.use("triton"),
        torch.autocast("cpu", torch.float16),
    ):
        block(x, 2, 208, (7, 7)).sum().backward()
    return found


if __name__ == "__main__":
    print(json.dumps(count(sys.argv[1]).found))
