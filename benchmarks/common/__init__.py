"""Shared parts of the benchmarks: paired timing, the roofline, the machine, tables, the products measured."""
