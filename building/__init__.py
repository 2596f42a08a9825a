"""Build the native modules, for setup.py. Not installed; needs pybind11 and ninja, never torch."""
