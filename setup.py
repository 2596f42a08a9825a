"""Build script (placeholder until the native build lands)."""

from setuptools import setup

setup(
    name="growtas",
    version="0.1.0",
    packages=["growtas", "growtas.kernels", "growtas.ops", "growtas.nn", "growtas.supernet", "growtas.methods",
              "growtas.training", "growtas.search", "growtas.export"],
    package_dir={"growtas.kernels": "kernels"},
)
