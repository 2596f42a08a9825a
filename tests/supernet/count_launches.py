"""Counts what a training step of AutoFormer-T launches on a GPU, without one; prints it as JSON.

A process of its own, because Triton decides at its import whether kernels are interpreted. The launchers run
on meta tensors inside ``launch.recording``, and the tensor operations between them are counted there too.
"""

from __future__ import annotations

import collections
import json

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import growtas
from growtas.kernels.common import launch
from growtas.nn import Block
from growtas.nn import block as block_module
from growtas.nn import linear as linear_module
from growtas.ops import dispatch
from growtas.subnet import Subnet
from growtas.supernet import vit as vit_module

#: What launches nothing: views, allocation and bookkeeping.
FREE = set(
    "_reshape_alias _unsafe_view alias as_strided detach empty empty_like empty_strided expand lift_fresh "
    "new_empty new_empty_strided permute promote_types select "
    "slice split squeeze t transpose unbind unsqueeze view".split()
)
KERNELS_OF = {"slice_backward": 2}  # zeros, and the copy into them
SUBNET = Subnet(216, 13, (4.0,) * 13, (4,) * 13)


class Counter(TorchDispatchMode):
    """Counts the operations that launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.found[name] += KERNELS_OF.get(name, 1)
        return func(*args, **(kwargs or {}))


def pretend_to_have_a_gpu() -> None:
    """Meta tensors stand for CUDA's: every operation runs its Triton launcher, in bfloat16."""
    torch._C._len_torch_dispatch_stack = lambda: 0  # not as one opaque operator
    dispatch._mismatch = lambda *_: ""
    dispatch.available = lambda _: dispatch.Availability(True)
    for module in (block_module, linear_module, vit_module):
        module.compute_dtype = lambda _: torch.bfloat16
    dispatch.use("triton")


def whole_step() -> tuple[dict[str, int], dict[str, int]]:
    """Triton kernels that a step with drop path launches, and tensor operations outside of its blocks."""
    net = growtas.Supernet("autoformer-tiny", drop_path_rate=0.1).to("meta").train()
    images, labels = torch.empty(128, 3, 224, 224), torch.zeros(128, dtype=torch.long)
    images, labels = images.to("meta"), labels.to("meta")

    def step() -> None:
        logits = net(images, SUBNET).float()  # as autocast does for a loss
        torch.nn.functional.cross_entropy(logits, labels).backward()

    with launch.recording(90):
        step()  # once before: tables that are kept are there
        net.zero_grad(set_to_none=True)
        with launch.counted() as names, Counter() as counter:
            step()
    return dict(collections.Counter(names)), dict(counter.found)


def within_a_block() -> dict[str, int]:
    """Tensor operations between the launches of one block, forward and backward."""
    block = Block(256, 4, 1024, 64, 14, "interleaved").to("meta")
    x = torch.empty(128, 197, 216, device="meta", requires_grad=True)
    with launch.recording(90):
        y = block(x, 4, 864, (14, 14))  # once before: buffers that are made once are there
        y.backward(torch.empty_like(y))
        block.zero_grad(set_to_none=True)
        x.grad = None
        seed = torch.empty_like(y)
        with Counter() as counter:
            block(x, 4, 864, (14, 14)).backward(seed)
    return dict(counter.found)


if __name__ == "__main__":
    pretend_to_have_a_gpu()
    kernels, others = whole_step()
    print(json.dumps({"kernels": kernels, "others": others, "within_a_block": within_a_block()}))
