"""``growtas_vit``: a vision transformer of AutoFormer's kind with sizes chosen per layer, for timm.

Needs torch and timm only. ``growtas extract`` puts this file beside the weights, so that a process without
growtas loads them:

    import growtas_vit
    model = growtas_vit.load("FOLDER")   # or timm.create_model("local-dir:FOLDER", pretrained=True)

It differs from timm's VisionTransformer in three things: the number of heads and the MLP ratio are chosen per
layer, a head has ``head_dim`` channels at any width, and attention knows the distance of two patches by row
and by column, for keys and for values.

Source: AutoFormer (Chen et al., ICCV 2021).
"""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, use_fused_attn
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, is_model, register_model
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.jit import Final

NORM_EPS = 1e-5
POOLINGS = ("", "avg", "avgmax", "max", "token", "map")
MOST_LAYERS, MOST_CHANNELS, MOST_PIXELS, MOST_CLASSES = 1000, 2**16, 2**14, 10**6

# What AutoFormer's search found in its tiny space; timm.create_model builds it where no sizes are given.
TINY_HEADS = (3,) * 10 + (4, 3, 3)
TINY_RATIOS = (3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5)


class RelativeAttention(nn.Module):
    """Self-attention in which keys and values know their distance from the query, in rows and in columns.

    For the query at (r, c) and the key at (r', c') the logit is ``q.(k + Kv[r' - r] + Kh[c' - c])``, and the
    output adds ``Vv[r' - r] + Vh[c' - c]`` to the key's value; a pair with the cls token takes row 0 of each
    table. Nothing of size (N, N, channels) is needed: q gets one channel per row, per column and for cls,
    k and v get 1 in the channels of their own place and 0 elsewhere. Then the added channels of ``q.k`` are
    the distances' logits, and those of the output are the attention that each row, column and cls received.

    Args:
        dim: channels of the residual stream.
        num_heads, head_dim: of the attention.
        max_relative_position: clamp of row and column distances, in patches.
        grid_size: rows and columns of patches.
        attn_drop, proj_drop: dropout of the attention and of the result.
    """

    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        max_relative_position: int,
        grid_size: tuple[int, int],
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.max_relative_position = max_relative_position
        self.grid_size = grid_size
        self.scale = head_dim**-0.5
        self.fused_attn = use_fused_attn()
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)  # row 3 * u + i: channel u of q, k or v
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(num_heads * head_dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        for name in ("key_table_v", "key_table_h", "value_table_v", "value_table_h"):
            table = nn.Parameter(torch.empty(2 * max_relative_position + 2, head_dim))
            self.register_parameter(name, nn.init.trunc_normal_(table, std=0.02))

    def _distances(self, size: int, device: torch.device) -> Tensor:
        """(size, size): for each place of a query the tables' row for each place of a key."""
        place, clamp = torch.arange(size, device=device), self.max_relative_position
        return (place[None, :] - place[:, None]).clamp(-clamp, clamp) + clamp + 1

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, grid_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, N, dim) to (B, N, dim).

        Args:
            x: tokens, cls first.
            attn_mask: added to the logits, or False where a key is hidden; broadcastable to (B, heads, N, N).
            grid_size: rows and columns of patches where they are not the layer's own.
        """
        batch, tokens, _ = x.shape
        rows, columns = self.grid_size if grid_size is None else grid_size
        head_dim, heads = self.head_dim, self.num_heads
        q, k, v = self.qkv(x).reshape(batch, tokens, heads, head_dim, 3).permute(4, 0, 2, 1, 3).unbind(0)

        # The added channels: rows, columns, cls. To the cls query all distances are the same: they shift
        # its logits alike, which softmax ignores.
        by_row, by_column = self._distances(rows, x.device), self._distances(columns, x.device)
        patches = q[:, :, 1:].reshape(batch, heads, rows, columns, head_dim)
        to_rows = torch.einsum("bhrce,rse->bhrcs", patches, self.key_table_v[by_row])
        to_columns = torch.einsum("bhrce,cse->bhrcs", patches, self.key_table_h[by_column])
        to_cls = patches @ (self.key_table_v[0] + self.key_table_h[0]).to(q.dtype).unsqueeze(1)
        added = torch.cat((to_rows, to_columns, to_cls), -1).flatten(2, 3)
        own_row = torch.eye(rows, dtype=q.dtype, device=q.device).repeat_interleave(columns, 0)
        own_column = torch.eye(columns, dtype=q.dtype, device=q.device).repeat(rows, 1)
        place = F.pad(torch.cat((own_row, own_column), 1), (0, 1, 1, 0))
        is_cls = F.pad(torch.ones(1, 1, dtype=q.dtype, device=q.device), (rows + columns, 0, 0, tokens - 1))
        place = (place + is_cls).expand(batch, heads, -1, -1)
        q = torch.cat((q, F.pad(added, (0, 0, 1, 0))), -1)
        k, v = torch.cat((k, place), -1), torch.cat((v, place), -1)

        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p=dropout, scale=self.scale)
        else:
            logits = q @ k.transpose(-2, -1) * self.scale
            if attn_mask is not None:
                if attn_mask.dtype == torch.bool:
                    logits = logits.masked_fill(~attn_mask, float("-inf"))
                else:
                    logits = logits + attn_mask
            x = self.attn_drop(logits.softmax(-1)) @ v

        x, from_rows, from_columns, from_cls = x.split([head_dim, rows, columns, 1], -1)
        to_grid = [batch, heads, rows, columns, -1]
        of_rows, of_columns = from_rows[:, :, 1:].reshape(to_grid), from_columns[:, :, 1:].reshape(to_grid)
        values = torch.einsum("bhrcs,rse->bhrce", of_rows, self.value_table_v[by_row])
        values = values + torch.einsum("bhrcs,cse->bhrce", of_columns, self.value_table_h[by_column])
        cls_value = (self.value_table_v[0] + self.value_table_h[0]).to(x.dtype)
        values = values.flatten(2, 3) + from_cls[:, :, 1:] * cls_value
        of_cls = (from_rows[:, :, :1].sum(-1, keepdim=True) + from_cls[:, :, :1]) * cls_value
        x = x + torch.cat((of_cls, values), 2)
        x = x.transpose(1, 2).reshape(batch, tokens, heads * head_dim)
        return self.proj_drop(self.proj(x))


class Block(nn.Module):
    """Pre-norm block: attention and MLP, each in a residual branch.

    Args:
        dim: channels of the residual stream.
        hidden_dim: of the MLP.
        norm_eps: epsilon of both LayerNorms.
        proj_drop: dropout of the attention's result and inside of the MLP.
        drop_path: rate at which an image skips a branch.
        **attention: further arguments of :class:`RelativeAttention`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        norm_eps: float = NORM_EPS,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        **attention: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = RelativeAttention(dim, proj_drop=proj_drop, **attention)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, hidden_dim, drop=proj_drop)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, grid_size: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, N, dim) to (B, N, dim); see :class:`RelativeAttention`."""
        x = x + self.drop_path1(self.attn(self.norm1(x), attn_mask, grid_size))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class GrowtasViT(VisionTransformer):
    """A vision transformer with heads and MLP width chosen per layer, in timm's interface.

    Args:
        embed_dim: channels of the residual stream.
        num_heads: attention heads of each layer.
        mlp_ratio: hidden width of each layer's MLP over embed_dim.
        img_size, patch_size: pixels; one number for a square, or height and width.
        in_chans: channels of the input.
        num_classes: outputs; 0 for features.
        head_dim: channels of one attention head.
        max_relative_position: clamp of row and column distances, in patches.
        global_pool: ``avg`` (mean of the patch tokens), ``token`` (the cls token), or another of timm's.
        dynamic_img_size: take images of any size, with resampled positions.
        drop_rate: dropout before the head.
        proj_drop_rate, attn_drop_rate, pos_drop_rate, drop_path_rate: as in timm's VisionTransformer.
        norm_eps: epsilon of every LayerNorm.

    Raises:
        ValueError: a size is not possible, or the lists differ in length.
    """

    architecture = "growtas_vit"

    def __init__(
        self,
        embed_dim: int = 192,
        num_heads: Sequence[int] = TINY_HEADS,
        mlp_ratio: Sequence[float] = TINY_RATIOS,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        head_dim: int = 64,
        max_relative_position: int = 14,
        global_pool: str = "avg",
        dynamic_img_size: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = NORM_EPS,
    ) -> None:
        _list("num_heads", num_heads, MOST_LAYERS)
        _list("mlp_ratio", mlp_ratio, MOST_LAYERS)
        depth = len(num_heads)
        if len(mlp_ratio) != depth:
            raise ValueError(
                f"num_heads has {depth} entries and mlp_ratio {len(mlp_ratio)}: give one of each per layer."
            )
        for name, value in (("embed_dim", embed_dim), ("head_dim", head_dim), ("in_chans", in_chans)):
            _whole(name, value, 1, MOST_CHANNELS)
        _whole("num_classes", num_classes, 0, MOST_CLASSES)
        _whole("max_relative_position", max_relative_position, 0, MOST_PIXELS)
        for layer in range(depth):
            _whole(f"num_heads of layer {layer}", num_heads[layer], 1, MOST_CHANNELS // head_dim)
            _real(f"mlp_ratio of layer {layer}", mlp_ratio[layer], 1 / embed_dim, MOST_CHANNELS / embed_dim)
        sides = [_pair("img_size", img_size), _pair("patch_size", patch_size)]
        if any(patch > image for image, patch in zip(*sides, strict=True)):
            raise ValueError(f"patch_size={patch_size} is larger than img_size={img_size}.")
        for name, rate in (
            ("drop_rate", drop_rate),
            ("proj_drop_rate", proj_drop_rate),
            ("attn_drop_rate", attn_drop_rate),
            ("pos_drop_rate", pos_drop_rate),
            ("drop_path_rate", drop_path_rate),
        ):
            _real(name, rate, 0, 1)
        _real("norm_eps", norm_eps, 0, 1)
        if global_pool not in POOLINGS:
            known = ", ".join(map(repr, POOLINGS))
            raise ValueError(f"global_pool={_shown(global_pool)} is unknown; choose one of {known}.")
        super().__init__(
            img_size=tuple(img_size) if isinstance(img_size, list) else img_size,
            patch_size=tuple(patch_size) if isinstance(patch_size, list) else patch_size,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=0,
            num_heads=_pooling_heads(embed_dim, head_dim),
            fc_norm=False,  # the norm comes before the pooling
            dynamic_img_size=dynamic_img_size,
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        )
        self.in_chans = in_chans
        self.mlp_ratio, self.head_dim, self.norm_eps = tuple(mlp_ratio), head_dim, norm_eps
        self.max_relative_position = max_relative_position
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    int(embed_dim * ratio),
                    norm_eps,
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    drop_path=rate,
                    num_heads=heads,
                    head_dim=head_dim,
                    max_relative_position=max_relative_position,
                    grid_size=self.patch_embed.grid_size,
                )
                for heads, ratio, rate in zip(num_heads, mlp_ratio, rates, strict=True)
            )
        )
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": f"blocks.{layer}", "num_chs": embed_dim, "reduction": reduction}
            for layer in range(depth)
        ]
        self.init_weights()
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def model_args(self) -> dict[str, Any]:
        """The arguments that build this network again, as plain values."""
        height, width = self.patch_embed.img_size
        patch_height, patch_width = self.patch_embed.patch_size
        return {
            "embed_dim": self.embed_dim,
            "num_heads": [block.attn.num_heads for block in self.blocks],
            "mlp_ratio": list(self.mlp_ratio[: len(self.blocks)]),
            "img_size": height if height == width else [height, width],
            "patch_size": patch_height if patch_height == patch_width else [patch_height, patch_width],
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "head_dim": self.head_dim,
            "max_relative_position": self.max_relative_position,
            "global_pool": self.global_pool,
            **({"norm_eps": self.norm_eps} if self.norm_eps != NORM_EPS else {}),
            **({"dynamic_img_size": True} if self.dynamic_img_size else {}),
        }

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the size of the images, or of the patches, with resampled positions.

        Args:
            img_size: height and width in pixels; as it was if None.
            patch_size: likewise.
        """
        super().set_input_size(img_size, patch_size)
        for block in self.blocks:
            block.attn.grid_size = self.patch_embed.grid_size

    # -- forward -----------------------------------------------------------------------------------------

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Images to tokens, and their rows and columns where these are not fixed."""
        x = self.patch_embed(x)
        grid_size: tuple[int, int] | None = None
        if self.dynamic_img_size:
            grid_size = (x.shape[1], x.shape[2])
        return self._pos_embed(x), grid_size

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) images to (B, N, d) tokens after the final norm; token 0 is cls."""
        x, grid_size = self._embed(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, attn_mask, grid_size)
            else:
                x = block(x, attn_mask, grid_size)
        return self.norm(x)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) images to (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x, attn_mask))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]] | dict[str, Any]:
        """The outputs of chosen blocks, and the final features; see timm's VisionTransformer.

        Args:
            x: (B, C, H, W) images.
            indices: the last n blocks if a number, these blocks if a list, all if None.
            return_prefix_tokens: give pairs of patch tokens and (B, 1, d) cls token.
            norm: apply the final norm to each.
            stop_early: do not run blocks behind the last chosen one.
            output_fmt: ``NCHW`` for (B, d, rows, columns), ``NLC`` for (B, patches, d).
            intermediates_only: leave the final features out.
            output_dict: give a dictionary.
            attn_mask: as in :class:`RelativeAttention`.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NLC.")
        chosen, last = feature_take_indices(len(self.blocks), indices)
        rows, columns = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        x, grid_size = self._embed(x)
        outputs = []
        for layer, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            if self.grad_checkpointing:
                x = checkpoint(block, x, attn_mask, grid_size)
            else:
                x = block(x, attn_mask, grid_size)
            if layer in chosen:
                outputs.append(self.norm(x) if norm else x)
        cls_tokens, outputs = [y[:, :1] for y in outputs], [y[:, 1:] for y in outputs]
        if output_fmt == "NCHW":
            outputs = [y.unflatten(1, (rows, columns)).permute(0, 3, 1, 2).contiguous() for y in outputs]
        if output_dict:
            found: dict[str, Any] = {"image_intermediates": outputs}
            if return_prefix_tokens:
                found["image_intermediates_prefix"] = cls_tokens
            return found if intermediates_only else {**found, "image_features": self.norm(x)}
        if return_prefix_tokens:
            outputs = list(zip(outputs, cls_tokens, strict=True))
        return outputs if intermediates_only else (self.norm(x), outputs)

    # -- growtas' kernels --------------------------------------------------------------------------------

    def fuse(self) -> "GrowtasViT":
        """Run growtas' kernels over the same parameters until :meth:`unfuse`; forward hooks do not fire.

        Raises:
            ImportError: growtas is not installed.
        """
        try:
            from growtas.architectures import fused
        except ImportError as error:
            raise ImportError(
                "fuse() runs the kernels of growtas, which is not installed here; without it the model runs "
                "as plain PyTorch."
            ) from error
        fused.fuse(self)
        return self

    def unfuse(self) -> "GrowtasViT":
        """Run plain PyTorch again."""
        for module in self.modules():
            module.__dict__.pop("forward", None)
        return self


def _pooling_heads(embed_dim: int, head_dim: int) -> int:
    """Heads of global_pool="map": as many as divide the width and have at least head_dim channels."""
    most = max(embed_dim // head_dim, 1)
    return next(heads for heads in range(most, 0, -1) if embed_dim % heads == 0)


def _whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises: ValueError: a size is no whole number of these."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise ValueError(
            f"{name}={_shown(value)} is not possible; it must be a whole number from {least:,} to {most:,}."
        )


def _real(name: str, value: Any, least: float, most: float) -> None:
    """Raises: ValueError: a value is no number of these."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= value <= most:
        raise ValueError(
            f"{name}={_shown(value)} is not possible; it must be a number from {least:g} to {most:g}."
        )


def _list(name: str, value: Any, most: int) -> None:
    """Raises: ValueError: a value is no list of at most so many entries."""
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= most:
        raise ValueError(
            f"{name}={_shown(value)} is not possible; it must be a list of 1 to {most:,} entries."
        )


def _pair(name: str, value: Any) -> tuple[int, int]:
    """Height and width. Raises: ValueError: they are no whole numbers, or too large."""
    if not isinstance(value, list | tuple):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name}={_shown(value)} is not possible; give one number, or height and width.")
    for side in value:
        _whole(name, side, 1, MOST_PIXELS)
    return tuple(value)


def _shown(value: Any) -> str:
    """A value for a sentence, cut where it is long."""
    return (
        f"{value!r:.60}"
        if not isinstance(value, int) or abs(value) < 10**60
        else "a number of over 60 digits"
    )


def check_weights(weights: dict[str, Tensor], model: nn.Module) -> None:
    """Check that weights are those of the model that its config.json describes.

    The head may have other classes only where the caller of ``create_model`` asked for them.

    Raises:
        ValueError: a tensor is missing, unknown or not finite, or the head has other classes.
    """
    head = "head"
    rows = len(weights[f"{head}.weight"]) if weights.get(f"{head}.weight", torch.empty(())).ndim else 0
    saved = getattr(model, "pretrained_model_args", {}).get("num_classes", rows)  # older timm keeps none
    declared = model.pretrained_cfg["num_classes"]
    if not rows == saved == declared:
        raise ValueError(
            f"The head of the weights has {rows:,} classes, but config.json says num_classes={declared}, and "
            f"{saved} in model_args. Save the model again; for a head of other classes, pass num_classes."
        )
    lost = {name for name in model.state_dict() if not name.endswith("num_batches_tracked")} - set(weights)
    unknown = set(weights) - set(model.state_dict())
    if model.num_classes != declared:
        lost, unknown = (
            {name for name in names if not name.startswith(f"{head}.")} for names in (lost, unknown)
        )
    if lost or unknown:
        missing, others = (", ".join(sorted(names)[:3]) for names in (lost, unknown))
        raise ValueError(
            f"The weights are not those of this model: {len(lost):,} tensors are missing ({missing}) and "
            f"{len(unknown):,} are unknown ({others:.200})."
        )
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite: the weights are damaged. Use others.")


def check_digest(folder: str | os.PathLike) -> None:
    """Check that model.safetensors is the file that config.json was saved with, if that says.

    Raises:
        ValueError: it is another one, or damaged.
    """
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        about = json.load(file).get("growtas")
    digest = about.get("sha256") if isinstance(about, dict) else None
    path = os.path.join(folder, "model.safetensors")
    if digest is None or not os.path.isfile(path):  # a folder of an older version
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(
            f"{path} is damaged, or another one than its config.json was saved with: its SHA-256 starts with "
            f"{found[:12]}, not {str(digest)[:12]}. Save the model again; after a change on purpose, "
            "remove sha256 from config.json."
        )


def _filtered(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of a checkpoint as timm adapts them, checked."""
    weights = checkpoint_filter_fn(weights, model)
    check_weights(weights, model)
    return weights


def pretrained_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a checkpoint's input and head.

    Args:
        values: further or other entries, such as ``mean`` and ``std``.
    """
    return {
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "crop_pct": 0.875,  # int(256 / 224 * S), as AutoFormer evaluates
        "interpolation": "bicubic",
        "num_classes": 1000,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **values,
    }


default_cfgs = generate_default_cfgs({GrowtasViT.architecture: pretrained_cfg()})


def growtas_vit(pretrained: bool = False, **kwargs: Any) -> "GrowtasViT":
    """A subnet that growtas found and extracted; without sizes, the one AutoFormer found in its tiny space.

    Args:
        pretrained: load the weights that ``pretrained_cfg`` points to.
        kwargs: of :class:`GrowtasViT` and of timm's ``build_model_with_cfg``.
    """
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        GrowtasViT,
        GrowtasViT.architecture,
        pretrained,
        pretrained_filter_fn=_filtered,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )


def load(folder: str | os.PathLike, **kwargs: Any) -> "GrowtasViT":
    """A model from its folder (model.safetensors and config.json), in evaluation mode.

    Args:
        folder: that ``growtas extract`` or ``growtas.export.save`` wrote.
        kwargs: of timm's ``create_model``, such as ``num_classes`` or ``img_size``.

    Raises:
        ValueError: config.json describes no model, or other weights than model.safetensors holds, which may
            be damaged.
    """
    name = f"local-dir:{os.fspath(folder)}"
    try:
        if kwargs:  # timm adapts the weights to them
            model = timm.create_model(name, pretrained=True, **kwargs)
            check_digest(folder)
            return model.eval()
        weights = safetensors.torch.load_file(os.path.join(folder, "model.safetensors"))
        with torch.device("meta"):  # nothing is allocated for sizes that the weights do not have
            own = timm.create_model(name)
        check_weights(weights, own)
        check_digest(folder)
        for key, value in own.state_dict().items():
            if value.shape != weights.get(key, value).shape:
                raise ValueError(
                    f"{key} is {tuple(weights[key].shape)}, and {tuple(value.shape)} is expected."
                )
        model = timm.create_model(name)
        model.load_state_dict({**model.state_dict(), **weights})  # old folders have no counters of batches
        return model.eval()
    except (OSError, ValueError):
        raise
    except Exception as error:  # timm and safetensors raise their own
        raise ValueError(f"{folder} holds no model that fits its weights ({error!r:.300}).") from error


if not is_model(GrowtasViT.architecture):  # growtas registers the same file
    register_model(growtas_vit)
