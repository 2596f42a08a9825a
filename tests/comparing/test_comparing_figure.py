"""How methods look in the pictures: one colour each, specs of one method told apart."""

from __future__ import annotations

import pytest

from growtas.comparing.figure import looks
from growtas.comparing.specs import read_methods
from growtas.methods import method_names
from growtas.methods.base import registered
from growtas.plotting import ACCENT, METHOD_COLOURS, method_colour, method_marker


def test_every_method_has_a_colour_of_its_own():
    method_names()  # so that all are registered
    ours = {name for name, cls in registered().items() if cls.__module__.startswith("growtas.")}
    assert ours <= set(METHOD_COLOURS)
    colours = [*METHOD_COLOURS.values(), ACCENT]
    assert len(set(colours)) == len(colours)


def test_a_method_of_the_users_has_one_that_stays():
    assert method_colour("growtas") == "#0072B2"
    other = method_colour("mine")
    assert other not in METHOD_COLOURS.values()
    assert other == "#332288"  # written down: Python hashes text anew in every process


def test_settings_are_told_by_hollow_markers():
    specs = read_methods(["uniform", "growtas", "growtas:stages=3", "growtas:transition=9", "growtas+"])
    found = looks(specs)
    plain, three, nine = (found[spec] for spec in specs[1:4])
    assert plain["color"] == three["color"] == nine["color"] == METHOD_COLOURS["growtas"]
    assert plain["markerfacecolor"] == plain["color"] and three["markerfacecolor"] == "white"
    assert len({plain["marker"], three["marker"], nine["marker"]}) == 3
    assert found[specs[4]] == method_marker("growtas+")


@pytest.mark.parametrize("methods", [["growtas:stages=3", "growtas"], ["growtas", "growtas:stages=3"]])
def test_the_method_as_it_is_is_filled_wherever_it_stands(methods):
    found = {str(spec): look for spec, look in looks(read_methods(methods)).items()}
    assert found["growtas"] == method_marker("growtas")
    assert found["growtas:stages=3"] == method_marker("growtas", 1)
