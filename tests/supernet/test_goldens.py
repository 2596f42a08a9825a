"""The supernet against outputs of the published AutoFormer code (tests/data/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from thinning import thinned

import growtas
from growtas.supernet.published import autoformer_name, load_autoformer

DATA = Path(__file__).parents[1] / "data"
SPEC = json.loads((DATA / "autoformer_small.json").read_text())
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(DATA / "autoformer_small.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def space() -> growtas.SearchSpace:
    return growtas.SearchSpace(
        "golden", (96, 112, 128), (3, 3.5, 4), (1, 2), (1, 2), image_size=32, patch_size=8
    )


@pytest.fixture
def net(arrays, space):
    net = growtas.Supernet(space, num_classes=10, qkv_bias="published")
    prefix = "weight/"
    weights = {n[len(prefix) :]: torch.from_numpy(a) for n, a in arrays.items() if n.startswith(prefix)}
    load_autoformer(net, weights)
    return net


def relative(ours: torch.Tensor, theirs: np.ndarray) -> float:
    theirs = torch.from_numpy(theirs)
    return ((ours.detach() - theirs).norm() / theirs.norm()).item()


RUNS = [(case, backend) for case in range(len(SPEC["cases"])) for backend in ("torch", "cpu", "triton")]
INTERPRETED = [(case, "triton") for case in range(1, len(SPEC["cases"]) - 1)]  # seconds each


@pytest.mark.parametrize(
    ("case", "cpu_backend"),
    thinned(RUNS, fast={i for i, run in enumerate(RUNS) if run not in INTERPRETED}, several=True),
    indirect=["cpu_backend"],
)
def test_matches_published_code(case, net, arrays, cpu_backend):
    expected = SPEC["cases"][case]
    subnet = growtas.Subnet.from_json(expected["subnet"])
    images = torch.from_numpy(arrays["images"]).clone().requires_grad_()
    logits = net(images, subnet)
    loss = F.cross_entropy(logits, torch.from_numpy(arrays["labels"]))
    loss.backward()
    assert relative(logits, arrays[f"logits/{case}"]) < TOLERANCE
    assert loss.item() == pytest.approx(expected["loss"], rel=TOLERANCE)
    assert relative(images.grad, arrays[f"image_grad/{case}"]) < TOLERANCE

    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert set(gradients) == {autoformer_name(name) for name in expected["param_grads"]}
    for name, numbers in expected["param_grads"].items():
        gradient = gradients[autoformer_name(name)].double()
        assert gradient.norm().item() == pytest.approx(numbers["norm"], rel=TOLERANCE), name
        # A sum of many signs is rounding noise where it nearly cancels: measure it against the norm then.
        assert gradient.sum().item() == pytest.approx(
            numbers["sum"], rel=TOLERANCE, abs=TOLERANCE * numbers["norm"]
        ), name


def test_interleaved_bias_differs(space, arrays, net):
    """The golden tells the layouts apart: a small subnet reads its k and v biases elsewhere."""
    other = growtas.Supernet(space, num_classes=10, qkv_bias="interleaved")
    other.load_state_dict(net.state_dict())
    images, subnet = torch.from_numpy(arrays["images"]), space.smallest()
    assert relative(other(images, subnet), arrays["logits/0"]) > 1e-3


def test_foreign_weights_are_refused(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(growtas.UsageError, match="not the weights of this AutoFormer"):
        load_autoformer(net, {"model": {"conv1.weight": torch.zeros(3)}})
    weights = {f"{name}": value for name, value in net.state_dict().items()}
    weights["head.weight"] = torch.zeros(1000, 128)
    with pytest.raises(growtas.UsageError, match=r"head.weight is \(1000, 128\)"):
        load_autoformer(net, weights)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
