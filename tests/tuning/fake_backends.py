"""Implementations of LayerNorm that a tuning must leave out, one prefix each."""

from __future__ import annotations

import os
import signal
import time

import torch

from growtas.ops import reference

count = 0


def right_layer_norm_forward(x, weight, bias, eps, out_dtype):
    return reference.layer_norm_forward(x, weight, bias, eps, out_dtype)


def right_layer_norm_backward(*arguments):
    return reference.layer_norm_backward(*arguments)


def wrong_layer_norm_forward(*arguments):
    y, mean, rstd = reference.layer_norm_forward(*arguments)
    return y * 1.001, mean, rstd


def wronggradient_layer_norm_forward(*arguments):
    return reference.layer_norm_forward(*arguments)


def wronggradient_layer_norm_backward(*arguments):
    dx, dweight, dbias = reference.layer_norm_backward(*arguments)
    return dx, dweight, dbias * 1.001


def unwritten_layer_norm_forward(*arguments):
    y, mean, rstd = reference.layer_norm_forward(*arguments)
    out = torch.empty_like(y)
    out[:-1] = y[:-1]  # the last row is whatever lay there
    return out, mean, rstd


def changing_layer_norm_forward(*arguments):
    """Now and then another last bit, as a race between threads gives it."""
    global count
    count += 1
    y, mean, rstd = reference.layer_norm_forward(*arguments)
    if count % 2:
        y[0, 0] = torch.nextafter(y[0, 0], y[0, 0] + 1)
    return y, mean, rstd


changing_layer_norm_backward = unwritten_layer_norm_backward = right_layer_norm_backward
wrong_layer_norm_backward = crash_layer_norm_backward = right_layer_norm_backward


def crash_layer_norm_forward(*arguments):
    os.kill(os.getpid(), signal.SIGSEGV)


def hang_layer_norm_forward(*arguments):
    time.sleep(3600)


def broken_layer_norm_forward(*arguments):
    raise RuntimeError("ptxas fatal: register allocation failed\nand much more")


def printing_layer_norm_forward(*arguments):
    print("a compiler's chatter")
    os.write(1, b"and more of it\n")
    return reference.layer_norm_forward(*arguments)


printing_layer_norm_backward = right_layer_norm_backward
