"""What the benchmarks share: paired timing, the roofline, the machine, tables, the products measured."""
