"""A model of what a training step of a supernet's subnet moves and computes on a GPU, launch by launch.

From shapes alone: each launch reads each of its inputs once and writes each of its outputs once; of a
shared weight it reads the slice, and it writes the whole gradient. Sums that a launch leaves for its own last
program do not count: they stay in the caches. The step is that of common/steps.py under bf16 autocast,
without drop-path: activations, shadows of weights and products are 16 bits, the residual stream, statistics
and gradients of weights fp32. FLOPs are those of matrix products, with what is made again and relative terms.

tests/benchmarks/count_step_bytes.py counts the same on the launches themselves, and a test compares both.
Smaller than a thousandth of the whole, and left out: the loss, the head's few rows, scalars.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from growtas.space import SearchSpace, Subnet

BACKENDS = ("triton", "cublas")
HALF, FULL = 2, 4  # bytes of an element
SIDE, PADDED = 16, 128  # of relative attention's places: class of the grid, tokens padded to a multiple
SMALL = 1e-3  # share of a step's bytes, or of its FLOPs, under which the model may lack a launch


@dataclass
class Launches:
    """All launches of one kernel or operation in a step."""

    launches: list[tuple[float, float]] = field(default_factory=list)  # bytes and FLOPs of each

    @property
    def moved(self) -> float:
        """Bytes of all."""
        return sum(moved for moved, _ in self.launches)

    @property
    def flops(self) -> float:
        """FLOPs of all."""
        return sum(flops for _, flops in self.launches)

    def least(self, bandwidth: float, peak: float) -> float:
        """The least seconds: of each launch its bytes or its FLOPs, whichever takes longer."""
        return sum(max(moved / bandwidth, flops / peak) for moved, flops in self.launches)


Step = dict[str, Launches]


def step_bytes(space: SearchSpace, subnet: Subnet, batch: int, backend: str, classes: int = 1000) -> Step:
    """The launches of a training step.

    Args:
        space, subnet: which network; up to 256 wide, as the fused kernels are.
        batch: images.
        backend: ``triton`` or ``cublas``.
        classes: outputs of the head.

    Returns:
        kernel or tensor operation -> its launches, in order of their first.
    """
    found: Step = {}
    for name, moved, flops in _Model(space, subnet, batch, backend, classes).step():
        found.setdefault(name, Launches()).launches.append((moved, flops))
    return found


def least(step: Step, bandwidth: float, peak: float) -> float:
    """The least seconds of a step, no launch overlapping another and none waiting for the host."""
    return sum(own.least(bandwidth, peak) for own in step.values())


Launch = tuple[str, float, float]


class _Model:
    """The launches in order; R rows, d wide, w = h * e, m hidden; D, W, M of the supernet."""

    def __init__(self, space: SearchSpace, subnet: Subnet, batch: int, backend: str, classes: int) -> None:
        self.subnet, self.batch, self.classes = subnet, batch, classes
        self.fused = backend == "triton"
        self.tokens, self.e, self.d = space.num_tokens, space.head_dim, subnet.embed_dim
        self.D, self.W = space.super_embed_dim, space.super_num_heads * space.head_dim
        self.M, self.depth = space.super_hidden_dim, max(space.depth)
        self.patch = space.in_channels * space.patch_size**2
        self.R, self.patches = batch * self.tokens, batch * (self.tokens - 1)
        self.table = 2 * space.max_relative_position + 2  # rows
        self.x16, self.x32 = HALF * self.R * self.d, FULL * self.R * self.d  # the stream's rows

    def step(self) -> Iterator[Launch]:
        """Forward, then backward."""
        layers = list(zip(self.subnet.num_heads, self.subnet.hidden_dims, strict=True))
        yield from self.begin()
        for heads, hidden in layers:
            yield from self.attention(heads * self.e, heads)
            yield from self.mlp(hidden)
        yield from self.end()
        for heads, hidden in reversed(layers):
            yield from self.mlp_backward(hidden)
            yield from self.attention_backward(heads * self.e, heads)
        yield from self.begin_backward()

    # -- parts that many launches share ---------------------------------------------------------------------

    def gemm(self, rows: int, inner: int, columns: int, out: float, extra: float = 0) -> Launch:
        """A product of 16-bit operands whose result has ``out`` bytes an element."""
        moved = HALF * (rows * inner + inner * columns) + out * rows * columns + extra
        return "mm", moved, 2 * rows * inner * columns

    def named(self, name: str, launch: Launch) -> Launch:
        """A launch under another name."""
        return name, *launch[1:]

    def statistics(self) -> int:
        """Mean and rstd of every row."""
        return 2 * FULL * self.R

    def weight_gradient(self, n: int, k: int, shared_n: int, shared_k: int, rows: int) -> Iterator[Launch]:
        """dW, written at the shared size: by cuBLAS in its slice, with zeros around it."""
        whole, own = FULL * shared_n * shared_k, FULL * n * k
        operands, flops = HALF * rows * (n + k), 2 * rows * n * k
        if self.fused:
            yield "linear.backward._weight", operands + whole, flops
            return
        yield "mm", operands + own, flops
        yield "zero_", FULL * (shared_n - n) * shared_k, 0
        yield "zero_", FULL * n * (shared_k - k), 0

    def norm(self) -> Launch:
        """LayerNorm of the stream."""
        return "layer_norm.forward._forward", self.x32 + self.x16 + self.statistics(), 0

    def norm_backward(self, residual: bool) -> Launch:
        """Its backward pass, which adds a residual branch's gradient."""
        moved = self.x16 + (3 if residual else 2) * self.x32 + self.statistics()
        return "layer_norm.backward._backward", moved, 0

    # -- branches -------------------------------------------------------------------------------------------

    def attention(self, w: int, heads: int) -> Iterator[Launch]:
        """LayerNorm, qkv, attention, projection, residual."""
        qkv = self.gemm(self.R, self.d, 3 * w, HALF)
        if self.fused:
            moved = qkv[1] - self.x16 + self.x32 + self.statistics()
            yield "norm_qkv.forward._forward_held", moved, qkv[2]
        else:
            yield self.norm()
            yield self.named("addmm", qkv)
        places = self.places()
        lse, pairs = FULL * self.R * heads, self.batch * heads
        scores = 2 * pairs * self.tokens**2
        tables = 2 * pairs * self.tokens * 4 * SIDE * self.e
        yield (
            "relative_attention.forward._forward",
            HALF * 4 * self.R * w + lse + places + FULL * 4 * self.table * self.e,
            scores * 2 * (self.e + 2 * SIDE) + 2 * tables,
        )
        if self.fused:
            yield self.named("linear.forward._forward", self.gemm(self.R, w, self.d, FULL, self.x32))
        else:
            yield self.named("addmm", self.gemm(self.R, w, self.d, HALF))
            yield "add", self.x16 + 2 * self.x32, 0

    def places(self) -> int:
        """Bytes that kernels read of a grid: which place a token has, and the way to table space and back."""
        padded = -(-self.tokens // PADDED) * PADDED
        return padded * 2 * SIDE * (HALF + FULL) + padded * 4 * SIDE * FULL

    def mlp(self, m: int) -> Iterator[Launch]:
        """LayerNorm, fc1, GELU, fc2, residual."""
        if self.fused:
            moved = 2 * self.x32 + HALF * 2 * self.d * m + self.statistics()
            yield "mlp.fused_forward._forward", moved, 2 * 2 * self.R * self.d * m
            return
        yield self.norm()
        yield self.named("addmm", self.gemm(self.R, self.d, m, HALF))
        yield "gelu", 2 * HALF * self.R * m, 0
        yield self.named("addmm", self.gemm(self.R, m, self.d, HALF))
        yield "add", self.x16 + 2 * self.x32, 0

    def mlp_backward(self, m: int) -> Iterator[Launch]:
        """From dy, x and the statistics; the hidden layer is made again, or by cuBLAS kept."""
        hidden = HALF * self.R * m
        if self.fused:
            moved = 3 * self.x32 + 2 * self.x16 + 2 * hidden + HALF * 2 * self.d * m + self.statistics()
            yield "mlp.fused_backward._backward", moved, 2 * 3 * self.R * self.d * m
        else:
            yield "layer_norm.normalise._normalise", self.x32 + self.x16 + self.statistics(), 0
            yield "common.rows._rows", self.x32 + self.x16, 0
            yield self.gemm(self.R, self.d, m, HALF)
            yield "common.rows._rows", 4 * hidden, 0
        gradients = [
            *self.weight_gradient(self.d, m, self.D, self.M, self.R),
            *self.weight_gradient(m, self.d, self.M, self.D, self.R),
        ]
        if self.fused:
            both = [sum(values) for values in zip(*(launch[1:] for launch in gradients), strict=True)]
            yield "linear.backward_pair._weights", *both
        else:
            yield from gradients
            yield self.gemm(self.R, m, self.d, HALF)
            yield self.norm_backward(residual=True)

    def attention_backward(self, w: int, heads: int) -> Iterator[Launch]:
        """The projection, attention in two passes, qkv and LayerNorm."""
        projection = self.gemm(self.R, self.d, w, HALF)
        if self.fused:  # which reads dy in fp32 and leaves it in 16 bits
            yield "linear.backward_converting._input", projection[1] + self.x32, projection[2]
        else:
            yield "common.rows._rows", self.x32 + self.x16, 0
            yield projection
        yield from self.weight_gradient(self.d, w, self.D, self.W, self.R)
        lse, pairs = FULL * self.R * heads, self.batch * heads
        scores, tables = 2 * pairs * self.tokens**2, 2 * pairs * self.tokens * 4 * SIDE * self.e
        terms = 2 * HALF * self.R * heads * 2 * SIDE
        qkv, out = 3 * HALF * self.R * w, HALF * self.R * w
        table, hot = FULL * 4 * self.table * self.e, -(-self.tokens // PADDED) * PADDED * 2 * SIDE * HALF
        yield (
            "relative_attention.two_pass._backward_queries",
            qkv + 3 * out + 2 * lse + terms + table + self.places(),
            scores * (3 * self.e + 4 * 2 * SIDE) + 5 * tables,
        )
        yield (
            "relative_attention.two_pass._backward_keys",
            qkv + 3 * out + 2 * lse + terms + hot + table,
            scores * (4 * self.e + 2 * 2 * SIDE),
        )
        product = 2 * self.R * self.d * 3 * w
        if self.fused:
            stream = self.x32 + self.statistics()
            yield "qkv.backward._weight", qkv + stream + FULL * 3 * self.W * self.D, product
            moved = qkv + stream + 2 * self.x32 + HALF * 3 * w * self.d
            yield "norm_qkv.backward._input", moved, product
            return
        own = FULL * 3 * w * self.d
        yield "layer_norm.normalise._normalise", self.x32 + self.x16 + self.statistics(), 0
        yield "mm", qkv + self.x16 + own, product
        yield "zero_", FULL * 3 * (self.W - w) * self.D, 0
        yield "zero_", FULL * 3 * w * (self.D - self.d), 0
        yield "copy_", 2 * own, 0  # rows back in the weight's order
        yield "sum", qkv, 0
        yield self.gemm(self.R, 3 * w, self.d, HALF)
        yield self.norm_backward(residual=True)

    # -- ends -----------------------------------------------------------------------------------------------

    def begin(self) -> Iterator[Launch]:
        """Shadows, patches, their product, and the tokens with their position."""
        block = 3 * self.W * self.D + self.W * self.D + 2 * self.D * self.M
        biases = 3 * self.W + 2 * self.D + self.M
        shared = self.depth * (block + biases) + self.D * (self.patch + 1) + self.classes * (self.D + 1)
        yield "shadow._cast", (FULL + HALF) * shared, 0
        yield "_to_copy", (FULL + HALF) * self.patches * self.patch, 0
        name = "linear.forward._forward" if self.fused else "addmm"
        yield self.named(name, self.gemm(self.patches, self.patch, self.d, HALF))
        moved = HALF * self.patches * self.d + self.x32 + FULL * (self.tokens + 1) * self.d
        yield "tokens.forward._forward", moved, 0

    def end(self) -> Iterator[Launch]:
        """The last LayerNorm with the mean of the patches, both passes; no statistics of cls tokens."""
        stream, statistics = FULL * self.patches * self.d, 2 * FULL * self.patches
        pooled = HALF * self.batch * self.d
        yield "pooled_norm.forward._forward", stream + statistics + pooled, 0
        yield "pooled_norm.backward._backward", stream + self.x32 + statistics + pooled, 0

    def begin_backward(self) -> Iterator[Launch]:
        """Gradients of the position and of cls, and of the patches' product."""
        patches = HALF * self.patches * self.d
        yield "tokens.backward._backward", self.x32 + patches + FULL * (self.tokens + 1) * self.D, 0
        if not self.fused:
            yield "common.rows._rows", 2 * patches, 0
        yield from self.weight_gradient(self.d, self.patch, self.D, self.patch, self.patches)
