"""Attention with AutoFormer's 2-D relative position for keys and values, flash style, never materialised.

Shapes: B images, h heads, N tokens on an R x C grid, row by row, with a cls token in front (N = R * C + 1) or
without one (N = R * C); E channels per head; tables (2m + 2, E), row 0 for pairs with cls, the others for
distances -m to m, to which farther ones are clamped.
    qkv (3, B, h, N, E), any strides     out (B, N, h * E)     lse (B, h, N) fp32
    S_ij  = E ** -0.5 * q_i.(k_j + key_v[r_j - r_i] + key_h[c_j - c_i])      P = softmax over j
    out_i = sum over j of P_ij (v_j + value_v[r_j - r_i] + value_h[c_j - c_i])

Algorithm: flash attention with a head that is a little wider. For one query the table terms of all keys are
u[r_j] + w[c_j], a sum over places of the grid; so [q, u, w] meets [k, onehot(r_j), onehot(c_j)], and the
value term is the same thing transposed. ``places`` says how u and w come from the tables, ``forward``,
``one_pass`` and ``two_pass`` what each kernel computes, saves and recomputes. Nothing of size N x N or N x R
exists outside of a tile, but for the place terms, (B, h, N, 2 * SIDE), between the kernels of one backward
pass. Saved for backward: qkv, out, lse. Launches: 1 forward, 2 backward. No atomics: the same bits in every
run.

Variants per kernel: dtype of qkv (x dtype of the tables, where it differs) x head width x class of the grid
(SIDE 16, 32 or 64) x class of alignment (1 in the AutoFormer spaces); one for all subnets of a space.
"""

from growtas.kernels.relative_attention.backward import relative_attention_backward
from growtas.kernels.relative_attention.forward import relative_attention_forward
from growtas.kernels.relative_attention.problem import unsupported

__all__ = ["relative_attention_backward", "relative_attention_forward", "unsupported"]
