"""Finds an editable growtas where Python starts in the folder that holds the clone. Installed with it.

There, PathFinder takes the clone's folder ``growtas`` for a namespace package, and setuptools' own finder,
which knows where the package is, is asked last. This one is asked first, and answers in that case alone: a
regular package on sys.path, such as another checkout on PYTHONPATH, stays the one that is imported.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location
from pathlib import Path

PACKAGE = ""  # the package's folder: the build writes it into the installed copy


class BesideClone:
    """A finder for ``sys.meta_path``."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        """The editable package in place of a namespace package of its name."""
        if fullname != "growtas":
            return None
        found, file = PathFinder.find_spec(fullname), Path(PACKAGE, "__init__.py")
        is_namespace = found is not None and found.origin is None
        return spec_from_file_location(fullname, file) if is_namespace and file.exists() else None


if PACKAGE:
    sys.meta_path.insert(0, BesideClone)
