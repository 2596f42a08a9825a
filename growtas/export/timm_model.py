"""An extracted subnet as timm's users expect a vision transformer: registered as ``growtas_vit``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import global_pool_nlc, resample_abs_pos_embed
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from growtas.errors import UsageError
from growtas.nn.linear import SlicedLinear
from growtas.space import SearchSpace
from growtas.subnet import Subnet
from growtas.supernet.vit import NORM_EPS, VisionTransformer, ViTDims

POOLINGS = ("", "avg", "token")

# What AutoFormer's search found in its tiny space; timm.create_model builds it where no sizes are given.
_TINY = Subnet.parse("d192-h3,3,3,3,3,3,3,3,3,3,4,3,3-r3.5,3.5,3,3.5,3,3,4,4,3.5,4,3.5,4,3.5")


class Classifier(SlicedLinear):
    """The head as an ordinary layer, ``head(x)``: code written for timm replaces or calls it like that."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.out_features)


class GrowtasViT(VisionTransformer):
    """A vision transformer of AutoFormer's kind with sizes chosen per layer, in timm's interface.

    Args:
        embed_dim: channels of the residual stream.
        num_heads: attention heads of each layer.
        mlp_ratio: hidden width of each layer's MLP over embed_dim.
        img_size: pixels of the square input, or that number twice.
        patch_size: pixels of a square patch.
        in_chans: channels of the input.
        num_classes: outputs; 0 for features.
        head_dim: channels of one attention head.
        max_relative_position: clamp of row and column distances, in patches.
        global_pool: ``"avg"`` (mean of the patch tokens), ``"token"`` (the cls token) or ``""`` (no pooling).
        drop_rate: dropout before the head.
        drop_path_rate: of the last block.
        norm_eps: epsilon of every LayerNorm.

    Raises:
        UsageError: the lists differ in length, a size is not positive, the image is not square, or the
            pooling is unknown.
    """

    architecture = "growtas_vit"

    def __init__(
        self,
        embed_dim: int = _TINY.embed_dim,
        num_heads: Sequence[int] = _TINY.num_heads,
        mlp_ratio: Sequence[float] = _TINY.mlp_ratio,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        head_dim: int = 64,
        max_relative_position: int = 14,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        subnet = Subnet(embed_dim, len(num_heads), tuple(num_heads), tuple(mlp_ratio))
        side = _square(img_size)
        if side % patch_size:
            raise UsageError(f"img_size={side} is no multiple of patch_size={patch_size}.")
        dims = ViTDims(
            embed_dim=embed_dim,
            num_heads=subnet.num_heads,
            hidden_dims=subnet.hidden_dims,
            image_size=side,
            patch_size=patch_size,
            in_channels=in_chans,
            head_dim=head_dim,
            max_relative_position=max_relative_position,
        )
        super().__init__(dims, num_classes=0, drop_path_rate=drop_path_rate, norm_eps=norm_eps)
        self.subnet = subnet
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = embed_dim
        self.num_prefix_tokens = 1
        self.grad_checkpointing = False
        self.feature_info = [
            {"module": f"blocks.{layer}", "num_chs": embed_dim, "reduction": patch_size}
            for layer in range(dims.depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.global_pool = ""
        self.reset_classifier(num_classes, global_pool)

    @staticmethod
    def args_of(net: VisionTransformer, subnet: Subnet) -> dict[str, Any]:
        """The arguments that build a subnet of a supernet."""
        dims = net.dims.of_subnet(subnet)
        return {
            "embed_dim": subnet.embed_dim,
            "num_heads": list(subnet.num_heads),
            "mlp_ratio": list(subnet.mlp_ratio),
            "img_size": dims.image_size,
            "patch_size": dims.patch_size,
            "in_chans": dims.in_channels,
            "num_classes": net.num_classes,
            "head_dim": dims.head_dim,
            "max_relative_position": dims.max_relative_position,
            "global_pool": net.global_pool,
            **({"norm_eps": net.norm_eps} if net.norm_eps != NORM_EPS else {}),
        }

    def own_space(self) -> SearchSpace:
        """The space whose one subnet the model is: the form in which growtas.cost takes sizes."""
        subnet, dims = self.subnet, self.dims
        return SearchSpace(
            self.architecture,
            (subnet.embed_dim,),
            tuple(sorted(set(subnet.mlp_ratio))),
            tuple(sorted(set(subnet.num_heads))),
            (subnet.depth,),
            image_size=dims.image_size,
            patch_size=dims.patch_size,
            in_channels=dims.in_channels,
            head_dim=dims.head_dim,
            max_relative_position=dims.max_relative_position,
        )

    def model_args(self) -> dict[str, Any]:
        """The arguments that build this network again, as plain values."""
        return self.args_of(self, self.subnet)

    # -- forward -----------------------------------------------------------------------------------------

    def _block_outputs(self, images: Tensor) -> Iterator[Tensor]:
        """The (B, N, d) tokens after each block."""
        x = self.forward_embedding(images, self.dims.embed_dim)
        for block, heads, hidden in zip(
            self.blocks, self.dims.num_heads, self.dims.hidden_dims, strict=False
        ):
            run = checkpoint if self.grad_checkpointing and torch.is_grad_enabled() else _call
            x = run(block, x, heads, hidden, self.dims.grid)
            yield x

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, S, S) images to (B, N, d) tokens after the final norm; token 0 is cls."""
        for tokens in self._block_outputs(x):  # noqa: B007 - the last one counts
            pass
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, d) tokens to (B, num_classes) logits, or to what the head takes if ``pre_logits``."""
        x = self.head_drop(_pool(x, self.global_pool))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) images to (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of chosen blocks.

        Args:
            x: (B, C, S, S) images.
            indices: the last n blocks if a number, these blocks if a list, all if None.
            return_prefix_tokens: give pairs of patch tokens and (B, 1, d) cls token.
            norm: apply the final norm to each.
            stop_early: do not run blocks behind the last chosen one.
            output_fmt: ``"NCHW"`` for (B, d, rows, columns), ``"NLC"`` for (B, patches, d).
            intermediates_only: leave the final features out.

        Returns:
            The intermediate outputs, and before them the final features unless ``intermediates_only``.

        Raises:
            UsageError: an unknown output format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise UsageError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NLC.")
        chosen, last = feature_take_indices(len(self.blocks), indices)
        outputs = []
        for layer, tokens in enumerate(self._block_outputs(x)):
            if layer in chosen:
                outputs.append(self.norm(tokens) if norm else tokens)
            if stop_early and layer == last:
                break
        intermediates = [output[:, 1:] for output in outputs]
        if output_fmt == "NCHW":
            intermediates = [
                patches.reshape(len(x), *self.dims.grid, -1).permute(0, 3, 1, 2).contiguous()
                for patches in intermediates
            ]
        if return_prefix_tokens:
            cls_tokens = (output[:, :1] for output in outputs)
            intermediates = list(zip(intermediates, cls_tokens, strict=True))
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediate outputs do not need, for timm's ``features_only``.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: drop the final norm.
            prune_head: drop the head.

        Returns:
            The chosen blocks' numbers.
        """
        chosen, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return chosen

    # -- what training scripts ask for -------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a freshly initialised head.

        Args:
            num_classes: outputs; 0 for features.
            global_pool: another pooling; as it was if None.

        Raises:
            UsageError: an unknown pooling.
        """
        if global_pool is not None:
            if global_pool not in POOLINGS:
                known = ", ".join(repr(name) for name in POOLINGS)
                raise UsageError(f"global_pool={global_pool!r} is unknown; choose one of {known}.")
            self.global_pool = global_pool
        self.num_classes = num_classes
        like = self.cls_token
        self.head = (
            Classifier(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        ).train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates and staged freezing."""
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass in place of keeping its activations."""
        self.grad_checkpointing = enable


def _call(block: nn.Module, *args: Any) -> Tensor:
    return block(*args)


def _pool(x: Tensor, pooling: str) -> Tensor:
    if pooling == "avg":
        return x[:, 1:].mean(1)  # as the supernet pools, to the bit
    return global_pool_nlc(x, pool_type=pooling, num_prefix_tokens=1)


def _square(img_size: int | Sequence[int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise UsageError(f"img_size={tuple(img_size)} is not square, and this network takes square images.")
    return sides.pop()


def resample_positions(state_dict: dict[str, Tensor], model: GrowtasViT) -> dict[str, Tensor]:
    """Fit a checkpoint's absolute positions to another image size; the relative tables fit any.

    Args:
        state_dict: of a GrowtasViT of the same sizes but img_size.
        model: the one to load into.
    """
    positions = state_dict["pos_embed"]
    if positions.shape[1] == model.pos_embed.shape[1]:
        return state_dict
    resampled = resample_abs_pos_embed(positions, new_size=list(model.dims.grid), num_prefix_tokens=1)
    return {**state_dict, "pos_embed": resampled}


def pretrained_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a checkpoint's input and head.

    Args:
        values: further or other entries, such as ``mean`` and ``std``.
    """
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.875,  # int(256 / 224 * S), as AutoFormer and this project evaluate
        "interpolation": "bicubic",
        "num_classes": 1000,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **values,
    }


default_cfgs = generate_default_cfgs({"growtas_vit": pretrained_cfg()})


@register_model
def growtas_vit(pretrained: bool = False, **kwargs: Any) -> GrowtasViT:
    """A subnet that growtas found and extracted; without sizes, the one AutoFormer found in its tiny space.

    Args:
        pretrained: load the weights that ``pretrained_cfg`` points to.
        kwargs: of :class:`GrowtasViT` and of timm's ``build_model_with_cfg``.
    """
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        GrowtasViT,
        "growtas_vit",
        pretrained,
        pretrained_filter_fn=resample_positions,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )
