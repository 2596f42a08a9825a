"""AutoFormer's vision transformer, as a supernet and as a subnet taken out of one.

Both are the same class: a supernet has a search space to choose from, and an extracted subnet is an instance
whose layers have nothing left to choose (DESIGN: "a subnet is a supernet with nothing left to choose").
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from growtas.errors import UsageError, nearest
from growtas.nn.block import Block, altered, run_blocks
from growtas.nn.linear import PartialLayerNorm, PatchEmbedding, SlicedLinear
from growtas.nn.precision import compute_dtype
from growtas.ops.checks import BIAS_LAYOUTS
from growtas.ops.pooled_norm import pooled_norm
from growtas.ops.qkv.reference import qkv_bias_rows, qkv_rows
from growtas.ops.registry import eager
from growtas.ops.shadows import refresh
from growtas.ops.tokens import tokens
from growtas.shadow import SHADOW_DTYPES, Shadows
from growtas.space import SearchSpace, Subnet

UNUSED_BLOCKS = ("skip", "zero")
POOLS = ("avg", "token")
NORM_EPS = 1e-5


@dataclass(frozen=True)
class ViTDims:
    """Every size of a transformer; per-layer values as tuples.

    Args:
        embed_dim: channels of the residual stream.
        num_heads: heads of each layer.
        hidden_dims: MLP width of each layer.
        image_size, patch_size: pixels.
        in_channels: of the images.
        head_dim: channels per head.
        max_relative_position: clamp of row and column distances, in patches.
    """

    embed_dim: int
    num_heads: tuple[int, ...]
    hidden_dims: tuple[int, ...]
    image_size: int = 224
    patch_size: int = 16
    in_channels: int = 3
    head_dim: int = 64
    max_relative_position: int = 14

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.num_heads)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @classmethod
    def of_space(cls, space: SearchSpace) -> ViTDims:
        """The sizes of a space's supernet."""
        depth = space.super_depth
        return cls(
            space.super_embed_dim,
            (space.super_num_heads,) * depth,
            (space.super_hidden_dim,) * depth,
            space.image_size,
            space.patch_size,
            space.in_channels,
            space.head_dim,
            space.max_relative_position,
        )

    def of_subnet(self, subnet: Subnet) -> ViTDims:
        """The sizes of a subnet of this transformer."""
        return dataclasses.replace(
            self, embed_dim=subnet.embed_dim, num_heads=subnet.num_heads, hidden_dims=subnet.hidden_dims
        )


class VisionTransformer(nn.Module):
    """A transformer that runs any subnet of itself: ``net(images, subnet)``.

    Args:
        dims: its own, largest sizes.
        num_classes: outputs; 0 for features only.
        space: the choices that subnets are checked against; None for an extracted subnet.
        qkv_bias: ``interleaved`` (nested in the heads) or ``published`` (AutoFormer's weights).
        drop_path_rate: of the last block; rises linearly from 0, and is not rescaled by a sampled depth.
        unused_blocks: what training does with blocks beyond the sampled depth: ``skip`` leaves them without
            gradients, so the optimizer does not move them; ``zero`` gives zero gradients, so weight decay and
            momentum still do (the published code under torch 1.7).
        global_pool: what the head takes: ``avg``, the mean of the patch tokens, or ``token``, the cls token.
        norm_eps: epsilon of every LayerNorm.

    Attributes:
        checkpoint_activations: keep only the input of each block for the backward pass, which computes the
            block again.

    Raises:
        UsageError: an option is unknown.

    Source: AutoFormer (Chen et al., ICCV 2021): global average pooling, relative position, ``change_qkv``.
    """

    needs_calibration = False  # there are no statistics of batches

    def __init__(
        self,
        dims: ViTDims,
        num_classes: int = 1000,
        space: SearchSpace | None = None,
        qkv_bias: str = "interleaved",
        drop_path_rate: float = 0.0,
        unused_blocks: str = "skip",
        global_pool: str = "avg",
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        _check_option("qkv_bias", qkv_bias, BIAS_LAYOUTS)
        _check_option("unused_blocks", unused_blocks, UNUSED_BLOCKS)
        _check_option("global_pool", global_pool, POOLS)
        self.dims = dims
        self.space = space
        self.num_classes = num_classes
        self.num_features = self.embed_dim = dims.embed_dim
        self.qkv_bias = qkv_bias
        self.unused_blocks = unused_blocks
        self.global_pool = global_pool
        self.norm_eps = norm_eps
        self.checkpoint_activations = False
        self._subnet: Subnet | None = None
        self._shadows: Shadows | None = None

        self.patch_embed = PatchEmbedding(dims.in_channels, dims.embed_dim, dims.patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, dims.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, dims.grid[0] * dims.grid[1] + 1, dims.embed_dim))
        self.drop_path_rates = torch.linspace(0, drop_path_rate, dims.depth, device="cpu").tolist()
        # On the net's device: made from the list in every step it would wait for the GPU.
        kept = 1 - torch.tensor(self.drop_path_rates).view(-1, 1, 1)
        self.register_buffer("drop_path_kept", kept, persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                dims.embed_dim,
                heads,
                hidden,
                dims.head_dim,
                dims.max_relative_position,
                qkv_bias,
            )
            for heads, hidden in zip(dims.num_heads, dims.hidden_dims, strict=True)
        )
        self.norm = PartialLayerNorm(dims.embed_dim)
        self.head = SlicedLinear(dims.embed_dim, num_classes) if num_classes else nn.Identity()
        for layer in self.modules():
            if isinstance(layer, PartialLayerNorm):
                layer.eps = norm_eps
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    # -- choosing a subnet -------------------------------------------------------------------------------

    def set_subnet(self, subnet: Subnet | None) -> None:
        """Choose what ``net(images)`` runs: a convenience for code that cannot pass the subnet.

        Raises:
            UsageError: the subnet is outside the space.
        """
        if subnet is not None:
            self._check(subnet)
        self._subnet = subnet

    def _check(self, subnet: Subnet) -> None:
        if self.space is not None:
            self.space.validate(subnet)
            return
        own = self.dims
        fits = (
            subnet.embed_dim <= own.embed_dim
            and subnet.depth <= own.depth
            and all(a <= b for a, b in zip(subnet.num_heads, own.num_heads, strict=False))
            and all(a <= b for a, b in zip(subnet.hidden_dims, own.hidden_dims, strict=False))
        )
        if not fits:
            raise UsageError(f"Subnet {subnet} does not fit into a transformer of {own}.")

    def _chosen(self, subnet: Subnet | None) -> ViTDims:
        subnet = subnet or self._subnet
        if subnet is not None:
            self._check(subnet)
            return self.dims.of_subnet(subnet)
        if self.space is not None:
            raise UsageError("A supernet needs a subnet: call net(images, subnet), or net.set_subnet first.")
        return self.dims

    # -- forward -----------------------------------------------------------------------------------------

    def forward_embedding(self, images: Tensor, embed_dim: int) -> Tensor:
        """(B, C, S, S) images to (B, N, d) tokens: patches, cls token and absolute position."""
        expected = (self.dims.in_channels, self.dims.image_size, self.dims.image_size)
        if tuple(images.shape[1:]) != expected:
            raise UsageError(
                f"The images are {tuple(images.shape[1:])}, but this network takes {expected} "
                "(channels, height, width); resize them or set image_size and in_channels of the space."
            )
        patches = self.patch_embed(images, embed_dim)
        return tokens(patches, self.cls_token, self.pos_embed)

    def forward_features(self, images: Tensor, subnet: Subnet | None = None) -> Tensor:
        """(B, C, S, S) images to (B, N, d) tokens after the final norm; token 0 is cls."""
        return self.norm(self._forward_blocks(images, subnet))

    def _forward_blocks(self, images: Tensor, subnet: Subnet | None) -> Tensor:
        chosen = self._chosen(subnet)
        self._cast_shared_weights(compute_dtype(images))
        x = self.forward_embedding(images, chosen.embed_dim)
        scales = self._drop_path_scales(x, chosen.depth)
        blocks = list(zip(self.blocks, chosen.num_heads, chosen.hidden_dims, scales, strict=False))
        again = self.checkpoint_activations and torch.is_grad_enabled()
        return run_blocks(x, blocks, chosen.grid, again)

    def _cast_shared_weights(self, dtype: torch.dtype) -> None:
        """Before GEMMs in 16 bits: bring the shadows of the shared weights up to date (``growtas.shadow``).

        A compiled graph and operators under another dispatch mode read the weights themselves.
        """
        if dtype not in SHADOW_DTYPES or not eager():
            return
        if self._shadows is None:
            weights, head_dims = [self.patch_embed.proj.weight, self.patch_embed.proj.bias], {}
            for block in self.blocks:
                for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                    if layer is block.attn.qkv and self.qkv_bias == "interleaved":
                        head_dims |= {len(weights): self.dims.head_dim, len(weights) + 1: self.dims.head_dim}
                    elif layer is block.attn.qkv:
                        head_dims[len(weights)] = self.dims.head_dim
                    weights += [layer.weight, layer.bias]
            if isinstance(self.head, SlicedLinear):
                weights += [self.head.weight, self.head.bias]
            self._shadows = Shadows(weights, head_dims)
        refresh(self._shadows, dtype, self.cls_token.device)

    def _apply(self, fn, recurse=True):
        self._shadows = None  # parameters may move, or be replaced
        return super()._apply(fn, recurse)

    def _drop_path_scales(self, x: Tensor, depth: int) -> list[tuple[Tensor, Tensor] | None]:
        """For each block the factors (B,) of its two branches: 0 where dropped, else 1 / (1 - rate).

        All of a step's are drawn at once: on a GPU that is a few launches, not a few per branch.
        """
        if not self.training or not self.drop_path_rates[-1]:
            return [None] * depth
        kept = self.drop_path_kept[:depth].float()  # fp32 in a net of any dtype
        drawn = torch.rand(depth, 2, len(x), dtype=kept.dtype, device=x.device).lt_(kept).div_(kept)
        scales = iter(drawn.flatten(0, 1).unbind())
        pairs = zip(scales, scales, strict=True)
        return [pair if rate else None for rate, pair in zip(self.drop_path_rates, pairs, strict=False)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, d) tokens, or (B, d) pooled ones, to (B, num_classes) logits."""
        if x.ndim == 3:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        if pre_logits or not self.num_classes:
            return x
        return self.head(x, self.num_classes)

    def _pools_in_norm(self) -> bool:
        """True if the final norm and the pooling can be one operation: nothing looks between them."""
        norm, names = self.norm, ("forward_features", "forward_head")
        methods = [getattr(getattr(self, name), "__func__", None) for name in names]
        whole = type(norm) is PartialLayerNorm and not (altered(norm) or _has_any_global_hook())
        return eager() and whole and methods == [getattr(VisionTransformer, name) for name in names]

    def forward(self, images: Tensor, subnet: Subnet | None = None) -> Tensor:
        """Logits of a subnet.

        Args:
            images: (B, C, S, S).
            subnet: which part of the supernet runs; an extracted subnet needs none.

        Returns:
            (B, num_classes).

        Raises:
            UsageError: the subnet is outside the space, or the images do not fit.
        """
        if not self._pools_in_norm():
            return self.forward_head(self.forward_features(images, subnet))
        x, norm = self._forward_blocks(images, subnet), self.norm
        pooled = (0, 1) if self.global_pool == "token" else (1, x.shape[1])
        return self.forward_head(pooled_norm(x, norm.weight, norm.bias, pooled, norm.eps, compute_dtype(x)))

    # -- parameters --------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        """Names that the published recipe excludes from weight decay, besides 1-D parameters."""
        return {"pos_embed", "cls_token"}

    def unused_parameters(self, subnet: Subnet) -> Iterator[nn.Parameter]:
        """Parameters of the blocks beyond a subnet's depth."""
        for block in self.blocks[subnet.depth :]:
            yield from block.parameters()

    def subnet_shapes(self, subnet: Subnet) -> Mapping[str, tuple[int, ...]]:
        """How much of every parameter a subnet uses: the sizes of a leading box.

        Args:
            subnet: of this network.

        Returns:
            Parameter name to sizes, one per axis; what the subnet does not use at all (the blocks beyond its
            depth) does not appear.

        Raises:
            UsageError: the subnet is outside the space.

        Example:
            >>> net = growtas.Supernet("digits", 10)
            >>> net.subnet_shapes(net.space.smallest())["norm.weight"]
            (24,)
        """
        return _parameter_shapes(self._chosen(subnet), self.num_classes)

    def slice_state_dict(self, subnet: Subnet) -> dict[str, Tensor]:
        """The weights of a subnet, as the state dict of the smaller transformer that it is.

        The qkv bias comes out interleaved whatever this network's layout.

        Args:
            subnet: what to cut out.

        Returns:
            Copies, in the shapes of ``VisionTransformer(self.dims.of_subnet(subnet), num_classes)``.
        """
        chosen = self._chosen(subnet)
        with torch.device("meta"):
            target = VisionTransformer(chosen, self.num_classes).state_dict()
        source = self.state_dict()
        sliced = {}
        for name, like in target.items():
            sliced[name] = source[name][tuple(slice(size) for size in like.shape)].clone()
        if self.qkv_bias == "published":
            for layer, heads in enumerate(chosen.num_heads):
                name = f"blocks.{layer}.attn.qkv.bias"
                for part in range(3):
                    own = qkv_bias_rows(source[name], heads, chosen.head_dim, part, self.qkv_bias)
                    qkv_rows(sliced[name], heads, chosen.head_dim, part).copy_(own)
        return sliced


@functools.lru_cache(maxsize=64)
def _parameter_shapes(dims: ViTDims, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of a transformer.

    Training asks for another one in every step, and the layers are few: each is built once.
    """
    shapes = dict(_shapes_around(dataclasses.replace(dims, num_heads=(), hidden_dims=()), num_classes))
    for layer, (heads, hidden) in enumerate(zip(dims.num_heads, dims.hidden_dims, strict=True)):
        block = _block_shapes(dims.embed_dim, heads, hidden, dims.head_dim, dims.max_relative_position)
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    return MappingProxyType(shapes)


@functools.lru_cache(maxsize=64)
def _shapes_around(dims: ViTDims, num_classes: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a transformer without blocks, read off one that holds no numbers."""
    with torch.device("meta"):
        return parameter_shapes(VisionTransformer(dims, num_classes))


@functools.lru_cache(maxsize=1024)
def _block_shapes(*sizes: int) -> Mapping[str, tuple[int, ...]]:
    """The shapes of a block. Args: sizes: those that :class:`growtas.nn.block.Block` takes."""
    with torch.device("meta"):
        return parameter_shapes(Block(*sizes, qkv_bias="interleaved"))


def parameter_shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The shape of every parameter of a module, by name."""
    return MappingProxyType({name: tuple(each.shape) for name, each in module.named_parameters()})


def _check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r} is unknown.{nearest(str(value), known)}")
