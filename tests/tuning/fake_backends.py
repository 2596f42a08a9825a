"""Implementations of LayerNorm that a tuning must leave out, one class each, with the steps of a backend."""

from __future__ import annotations

import os
import signal
import time

import torch

from growtas.ops.layer_norm import reference


class right:
    layer_norm_forward = staticmethod(reference.layer_norm_forward)
    layer_norm_backward = staticmethod(reference.layer_norm_backward)


class wrong(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        y, mean, rstd = reference.layer_norm_forward(*arguments)
        return y * 1.001, mean, rstd


class wronggradient(right):
    @staticmethod
    def layer_norm_backward(*arguments):
        dx, dweight, dbias = reference.layer_norm_backward(*arguments)
        return dx, dweight, dbias * 1.001


class unwritten(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        y, mean, rstd = reference.layer_norm_forward(*arguments)
        out = torch.empty_like(y)
        out[:-1] = y[:-1]  # the last row is whatever lay there
        return out, mean, rstd


class changing(right):
    """Now and then another last bit, as a race between threads gives it."""

    count = 0

    @classmethod
    def layer_norm_forward(cls, *arguments):
        cls.count += 1
        y, mean, rstd = reference.layer_norm_forward(*arguments)
        if cls.count % 2:
            y[0, 0] = torch.nextafter(y[0, 0], y[0, 0] + 1)
        return y, mean, rstd


class crash(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        os.kill(os.getpid(), signal.SIGSEGV)


class hang(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        time.sleep(3600)


class broken(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        raise RuntimeError("ptxas fatal: register allocation failed\nand much more")


class printing(right):
    @staticmethod
    def layer_norm_forward(*arguments):
        print("a compiler's chatter")
        os.write(1, b"and more of it\n")
        return reference.layer_norm_forward(*arguments)
