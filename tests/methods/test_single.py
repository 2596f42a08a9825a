"""Training one subnet only: which one, and that nothing else is touched."""

from __future__ import annotations

import pytest

import growtas
from growtas.errors import UsageError
from growtas.methods import MethodSettings, create_method
from growtas.methods.regions import used_by
from growtas.space import load_space
from growtas.training.log import read_log

DIGITS = load_space("digits")
MOBILENET = load_space("digits-mobilenet")
MIDDLE = "d36-h2,3,2-r2,3,2"


def single(options: str = "", space=DIGITS, **given):
    return create_method(
        "single", MethodSettings(space, num_classes=10, epochs=4, steps_per_epoch=5, options=options, **given)
    )


@pytest.mark.parametrize(
    ("options", "space", "expected"),
    [
        ("", DIGITS, DIGITS.smallest()),
        ("subnet=largest", DIGITS, DIGITS.largest()),
        (f"subnet={MIDDLE}", DIGITS, DIGITS.subnet(36, 3, (2, 3, 2), (2, 3, 2))),
        ("subnet=smallest", MOBILENET, MOBILENET.smallest()),
        (f"subnet={MOBILENET.largest()}", MOBILENET, MOBILENET.largest()),
    ],
)
def test_every_step_trains_the_named_subnet(options, space, expected):
    method = single(options, space)
    assert {method.subnets(step) for step in range(20)} == {(expected,)}
    assert method.extremes(0) == method.extremes(19) == (expected, expected)
    assert [stage.groups for stage in method.stages] == [(space.group_of(expected),)]


def test_what_its_depths_leave_out_makes_no_other_subnet():
    kernel, expand, depth = "3,7,7,3,3,3,3,3,3", "3,6,6,3,3,3,3,3,3", "1,1,1"
    assert single(f"subnet=k{kernel}-e{expand}-d{depth}", MOBILENET).subnet == MOBILENET.smallest()


def test_the_sandwich_and_a_teacher_are_that_subnet_too():
    smallest = DIGITS.smallest()
    assert set(single(sandwich=True, distill="inplace").subnets(3)) == {smallest}


@pytest.mark.parametrize(
    ("options", "space", "sentence"),
    [
        ("subnet=smalest", DIGITS, r"subnet='smalest'.*such as d24-h2,2,2-r2,2,2\. Did you mean 'smallest'"),
        ("subnet=d24-h2,2", DIGITS, "'d24-h2,2' is not a subnet"),
        ("subnet=d30-h2,2,2-r2,2,2", DIGITS, "embed_dim=30"),
        ("subnet=k3-e3-d1", DIGITS, "no subnet of space 'digits', which holds vision transformers"),
        (f"subnet={MIDDLE}", MOBILENET, "no subnet of space 'digits-mobilenet', which holds MobileNetV3"),
        ("size=largest", DIGITS, "Method 'single' has no option 'size'"),
    ],
)
def test_what_it_refuses(options, space, sentence):
    with pytest.raises(UsageError, match=sentence):
        single(options, space)


def test_a_run_moves_that_subnets_weights_alone(tmp_path):
    """Two runs of one seed begin alike, so what neither trains is bit for bit the same in both."""
    settings = {"epochs": 1, "batch_size": 192, "weight_decay": 0.0, "eval_every": 0, "eval_subnets": 0}
    nets, trained = [], []
    for text in (MIDDLE, "d24-h3,2,2-r2,2,2"):
        options = {
            "method": "single",
            "method_options": f"subnet={text}",
            "device": "cpu",
            "tensorboard": False,
        }
        run = growtas.train("digits", **settings, **options, out=tmp_path / text)
        assert {subnet for record in read_log(run.path, "step") for subnet in record["subnets"]} == {text}
        nets.append(dict(run.load_net().named_parameters()))
        trained.append(used_by(run.load_net(), [DIGITS.parse(text)]))
    for name, first in nets[0].items():
        differs = first != nets[1][name]
        either, both = trained[0][name] | trained[1][name], trained[0][name] & trained[1][name]
        assert not (differs & ~either).any(), name
        if both.any():
            assert differs[both].float().mean() > 0.5, name
