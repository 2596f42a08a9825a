"""Triton kernels, one file per kernel, packaged as ``growtas.kernels``."""
