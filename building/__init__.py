"""How setup.py builds the native modules. Not installed; needs pybind11 and ninja, never torch."""
