"""``growtas_mobilenet``: a MobileNetV3 with kernel, width and depth chosen per block, for timm.

Needs torch and timm only. ``growtas extract`` puts this file beside the weights, so that a process without
growtas loads them:

    import growtas_mobilenet
    model = growtas_mobilenet.load("FOLDER")   # or timm.create_model("local-dir:FOLDER", pretrained=True)

Source: Cai et al., "Once-for-All" (ICLR 2020), ``OFAMobileNetV3``.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import safetensors.torch
import timm
import torch
from timm.layers import DropPath, SelectAdaptivePool2d, make_divisible
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, is_model, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "h-swish": nn.Hardswish}
POOLINGS = ("avg", "max", "avgmax", "")
MOST_BLOCKS, MOST_CHANNELS, MOST_PIXELS, MOST_CLASSES = 1000, 2**16, 2**14, 10**6
MOST_KERNEL, MOST_STRIDE, MOST_EXPANSION = 99, 16, 64


def _conv(in_width: int, out_width: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_width, out_width, kernel, stride, kernel // 2, groups=groups, bias=False)


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network makes of their means.

    Args:
        width: channels.
        inner: channels between its two layers.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, inner, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(inner, width, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-and-excite, 1x1 projection; each with BatchNorm.

    Args:
        in_width, mid_width, out_width: channels before, inside and after.
        kernel, stride: of the depthwise convolution.
        activation: a key of ``ACTIVATIONS``.
        squeeze_width: inner channels of squeeze-and-excite; 0 for none.
        expands: begin with an expansion.
        drop_path: rate at which an image skips the branch beside a residual.
    """

    def __init__(
        self,
        in_width: int,
        mid_width: int,
        out_width: int,
        kernel: int,
        stride: int,
        activation: str,
        squeeze_width: int = 0,
        expands: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.residual = stride == 1 and in_width == out_width
        self.expand = _conv(in_width, mid_width) if expands else nn.Identity()
        self.expand_norm = nn.BatchNorm2d(mid_width) if expands else nn.Identity()
        self.act1 = ACTIVATIONS[activation]() if expands else nn.Identity()
        self.depthwise = _conv(mid_width, mid_width, kernel, stride, groups=mid_width)
        self.depthwise_norm = nn.BatchNorm2d(mid_width)
        self.act2 = ACTIVATIONS[activation]()
        self.se = SqueezeExcite(mid_width, squeeze_width) if squeeze_width else nn.Identity()
        self.project = _conv(mid_width, out_width)
        self.project_norm = nn.BatchNorm2d(out_width)
        self.drop_path = DropPath(drop_path) if drop_path and self.residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_width, H, W) to (B, out_width, ceil(H / stride), ceil(W / stride))."""
        y = self.act1(self.expand_norm(self.expand(x)))
        y = self.act2(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(self.se(y)))
        return x + self.drop_path(y) if self.residual else y


class GrowtasMobileNet(nn.Module):
    """A MobileNetV3 with kernel and width chosen per block, in timm's interface; OFA's largest by default.

    It takes images of any size.

    Args:
        kernel: side of each block's depthwise kernel, of all places of all stages.
        expand: middle width of each block over its input's, likewise.
        depth: blocks of each stage; the entries of the places behind them do not matter.
        stem_width, first_width, final_width, feature_width: of the fixed layers.
        widths, strides, activations, squeeze_excite: of each stage.
        stem_stride: of the first convolution.
        img_size: pixels of the images it is meant for.
        in_chans: channels of the input.
        num_classes: outputs; 0 for features.
        global_pool: ``avg``, ``max``, ``avgmax`` or, for features, ``""``.
        drop_rate: dropout before the classifier.
        drop_path_rate: of the last block.

    Raises:
        ValueError: a size is not possible, the lists do not fit each other, or the pooling is unknown.
    """

    architecture = "growtas_mobilenet"

    def __init__(
        self,
        kernel: Sequence[int] = (7,) * 20,
        expand: Sequence[int] = (6,) * 20,
        depth: Sequence[int] = (4,) * 5,
        stem_width: int = 16,
        first_width: int = 16,
        widths: Sequence[int] = (24, 40, 80, 112, 160),
        final_width: int = 960,
        feature_width: int = 1280,
        strides: Sequence[int] = (2, 2, 2, 1, 2),
        activations: Sequence[str] = ("relu", "relu", "h-swish", "h-swish", "h-swish"),
        squeeze_excite: Sequence[bool] = (False, True, False, True, True),
        stem_stride: int = 2,
        img_size: int = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.1,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        lists = {"kernel": kernel, "expand": expand, "depth": depth, "widths": widths, "strides": strides}
        lists |= {"activations": activations, "squeeze_excite": squeeze_excite}
        for name, values in lists.items():
            _list(name, values, MOST_BLOCKS)
        places, odd = divmod(len(kernel), len(depth))
        stages = {len(depth), len(widths), len(strides), len(activations), len(squeeze_excite)}
        if odd or len(expand) != len(kernel) or len(stages) > 1 or max(depth) > places:
            raise ValueError(
                "depth, widths, strides, activations and squeeze_excite need one entry per stage, kernel and "
                f"expand one per place of a block; kernel={list(kernel)}, expand={list(expand)} and "
                f"depth={list(depth)} were given for widths={list(widths)}."
            )
        for name, most in (
            ("kernel", MOST_KERNEL),
            ("depth", MOST_BLOCKS),
            ("widths", MOST_CHANNELS),
            ("strides", MOST_STRIDE),
        ):
            for value in lists[name]:
                _whole(f"an entry of {name}", value, 1, most)
        for value in expand:
            _real("an entry of expand", value, 1 / MOST_CHANNELS, MOST_EXPANSION)
        for value in activations:
            if value not in tuple(ACTIVATIONS):
                raise ValueError(
                    f"The activation {_shown(value)} is unknown; choose one of {', '.join(ACTIVATIONS)}."
                )
        for value in squeeze_excite:
            _whole("an entry of squeeze_excite", int(value) if isinstance(value, bool) else value, 0, 1)
        widths_of = {
            "stem_width": stem_width,
            "first_width": first_width,
            "final_width": final_width,
            "feature_width": feature_width,
            "in_chans": in_chans,
        }
        for name, value in widths_of.items():
            _whole(name, value, 1, MOST_CHANNELS)
        _whole("stem_stride", stem_stride, 1, MOST_STRIDE)
        for side in img_size if isinstance(img_size, list | tuple) else (img_size,):
            _whole("img_size", side, 1, MOST_PIXELS)
        _whole("num_classes", num_classes, 0, MOST_CLASSES)
        _real("drop_rate", drop_rate, 0, 1)
        _real("drop_path_rate", drop_path_rate, 0, 1)
        self._args = {
            "kernel": list(kernel),
            "expand": list(expand),
            "depth": list(depth),
            "stem_width": stem_width,
            "first_width": first_width,
            "widths": list(widths),
            "final_width": final_width,
            "feature_width": feature_width,
            "strides": list(strides),
            "activations": list(activations),
            "squeeze_excite": list(squeeze_excite),
            "stem_stride": stem_stride,
            "img_size": img_size,
        }
        self.in_chans = in_chans
        self.num_features, self.head_hidden_size = final_width, feature_width
        self.grad_checkpointing = False

        self.stem = _conv(in_chans, stem_width, 3, stem_stride)
        self.stem_norm = nn.BatchNorm2d(stem_width)
        self.stem_act = nn.Hardswish()
        self.first = InvertedResidual(stem_width, stem_width, first_width, 3, 1, "relu", expands=False)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depth), device="cpu").tolist())
        stages, self.feature_info = [], []
        width, reduction = first_width, stem_stride
        for stage, out_width in enumerate(widths):
            blocks = []
            for index in range(depth[stage]):
                mid_width = make_divisible(round(width * expand[stage * places + index]))
                block = InvertedResidual(
                    width,
                    mid_width,
                    out_width,
                    kernel[stage * places + index],
                    1 if index else strides[stage],
                    activations[stage],
                    make_divisible(mid_width // 4) if squeeze_excite[stage] else 0,
                    drop_path=next(rates),
                )
                blocks.append(block)
                width = out_width
            stages.append(nn.Sequential(*blocks))
            reduction *= strides[stage]
            self.feature_info.append({"module": f"stages.{stage}", "num_chs": width, "reduction": reduction})
        self.stages = nn.Sequential(*stages)
        self.final = _conv(width, final_width)
        self.final_norm = nn.BatchNorm2d(final_width)
        self.final_act = nn.Hardswish()
        self.mix = _conv(final_width, feature_width)
        self.mix_act = nn.Hardswish()
        self.head_drop = nn.Dropout(drop_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # OFA's initialisation, also where the convolution is depthwise
                kernel_size = module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=(2 / (module.out_channels * kernel_size)) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.reset_classifier(num_classes, global_pool)

    def model_args(self) -> dict[str, Any]:
        """The arguments that build this network again, as plain values."""
        return {
            **self._args,
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "drop_rate": self.head_drop.p,
            "global_pool": self.global_pool,
        }

    # -- forward -----------------------------------------------------------------------------------------

    def forward_stem(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to what the stages take: the first convolution and the fixed block."""
        return self.first(self.stem_act(self.stem_norm(self.stem(x))))

    def forward_final(self, x: Tensor) -> Tensor:
        """The stages' result to (B, final_width, h, w)."""
        return self.final_act(self.final_norm(self.final(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, final_width, h, w), before pooling."""
        x = self.forward_stem(x)
        for blocks in self.stages:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(blocks, x)
            else:
                x = blocks(x)
        return self.forward_final(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, final_width, h, w) to (B, num_classes) logits; ``pre_logits``: to (B, feature_width)."""
        x = self.flatten(self.mix_act(self.mix(self.pool(x))))
        return x if pre_logits else self.classifier(self.head_drop(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images of any size to (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The outputs of chosen stages, and before them the final features unless ``intermediates_only``.

        Args:
            x: (B, C, H, W) images.
            indices: the last n stages if a number, these stages if a list, all if None.
            norm: has no effect: every layer ends with its own normalisation.
            stop_early: do not run stages behind the last chosen one.
            output_fmt: ``NCHW``; there is no other.
            intermediates_only: leave the final features out.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW.")
        chosen, last = feature_take_indices(len(self.stages), indices)
        outputs = []
        x = self.forward_stem(x)
        for stage, blocks in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = checkpoint(blocks, x) if self.grad_checkpointing else blocks(x)
            if stage in chosen:
                outputs.append(x)
        return outputs if intermediates_only else (self.forward_final(x), outputs)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen intermediate outputs do not need, for timm's ``features_only``.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: drop the last convolution.
            prune_head: drop the head.

        Returns:
            The chosen stages' numbers.
        """
        chosen, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.final = self.final_norm = self.final_act = nn.Identity()
        if prune_head:
            self.mix = self.mix_act = nn.Identity()
            self.reset_classifier(0, "")
        return chosen

    # -- what training scripts ask for -------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a freshly initialised last layer.

        Args:
            num_classes: outputs; 0 for features.
            global_pool: another pooling; as it was if None.

        Raises:
            ValueError: an unknown pooling.
        """
        if global_pool is not None:
            if global_pool not in POOLINGS:
                known = ", ".join(repr(name) for name in POOLINGS)
                raise ValueError(f"global_pool={global_pool!r} is unknown; choose one of {known}.")
            self.global_pool = global_pool
            self.pool = SelectAdaptivePool2d(pool_type=global_pool)
            self.flatten = nn.Flatten(1) if global_pool else nn.Identity()
        self.num_classes = num_classes
        layer: nn.Module = nn.Identity()
        if num_classes:
            layer = nn.Linear(self.head_hidden_size, num_classes)
            nn.init.uniform_(layer.weight, -(self.head_hidden_size**-0.5), self.head_hidden_size**-0.5)
            nn.init.zeros_(layer.bias)
        self.classifier = layer.to(self.stem.weight).train(self.training)

    def no_weight_decay(self) -> set[str]:
        """Names excluded from weight decay besides 1-D parameters: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates and staged freezing."""
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^(stem|first)", "blocks": [(blocks, None), (r"^(final|mix)", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass in place of keeping its activations."""
        self.grad_checkpointing = enable

    # -- growtas' kernels --------------------------------------------------------------------------------

    def fuse(self) -> "GrowtasMobileNet":
        """Run growtas' kernels over the same parameters until :meth:`unfuse`.

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

    def unfuse(self) -> "GrowtasMobileNet":
        """Run plain PyTorch again."""
        for module in self.modules():
            module.__dict__.pop("forward", None)
        return self


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
    head = "classifier"
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
    """The weights of a checkpoint, checked."""
    check_weights(weights, model)
    return weights


def pretrained_cfg(**values: Any) -> dict[str, Any]:
    """timm's description of a checkpoint's input and head.

    Args:
        values: further or other entries, such as ``mean`` and ``std``.
    """
    return {
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "num_classes": 1000,
        "first_conv": "stem",
        "classifier": "classifier",
        **values,
    }


default_cfgs = generate_default_cfgs({GrowtasMobileNet.architecture: pretrained_cfg()})


def growtas_mobilenet(pretrained: bool = False, **kwargs: Any) -> GrowtasMobileNet:
    """A MobileNetV3 subnet that growtas found and extracted; without sizes, the largest of OFA's.

    Args:
        pretrained: load the weights that ``pretrained_cfg`` points to.
        kwargs: of :class:`GrowtasMobileNet` and of timm's ``build_model_with_cfg``.
    """
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3, 4))
    return build_model_with_cfg(
        GrowtasMobileNet,
        GrowtasMobileNet.architecture,
        pretrained,
        pretrained_filter_fn=_filtered,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **kwargs,
    )


def load(folder: str | os.PathLike, **kwargs: Any) -> GrowtasMobileNet:
    """A model from its folder (model.safetensors and config.json), in evaluation mode.

    Args:
        folder: that ``growtas extract`` or ``growtas.export.save`` wrote.
        kwargs: of timm's ``create_model``, such as ``num_classes``.

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


if not is_model(GrowtasMobileNet.architecture):  # growtas registers the same file
    register_model(growtas_mobilenet)
