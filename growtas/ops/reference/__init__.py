"""Every operation as a composition of torch calls: the ``torch`` back end; in fp64, the truth for the others.

Weights arrive at full size and are read through strided views of the slice: BLAS takes a leading dimension,
so nothing is copied. The one exception is mixed precision, where a slice of another dtype than the
activations is cast first. Weight gradients are full-size, each element written once (:mod:`slices`).

Shapes: M rows of activations, k and n widths of a slice, N_max and K_max of the shared weight; B batch,
h heads, N tokens, e channels per head.
"""

from __future__ import annotations

from growtas.ops.reference.attention import relative_attention_backward, relative_attention_forward
from growtas.ops.reference.layer_norm import layer_norm_again, layer_norm_backward, layer_norm_forward
from growtas.ops.reference.products import (
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_gelu_backward_input,
    linear_gelu_forward,
    linear_residual_forward,
    scaled_rows,
)
from growtas.ops.reference.qkv import (
    empty_qkv,
    gradient_layout,
    interleaved,
    qkv_backward_input,
    qkv_backward_weight,
    qkv_bias_rows,
    qkv_forward,
    qkv_rows,
)
from growtas.ops.reference.slices import full_size

__all__ = [
    "empty_qkv",
    "full_size",
    "gradient_layout",
    "interleaved",
    "layer_norm_again",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "linear_gelu_backward_input",
    "linear_gelu_forward",
    "linear_residual_forward",
    "qkv_backward_input",
    "qkv_backward_weight",
    "qkv_bias_rows",
    "qkv_forward",
    "qkv_rows",
    "relative_attention_backward",
    "relative_attention_forward",
    "scaled_rows",
]
