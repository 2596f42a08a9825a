"""How often a training step waits for the device: each wait leaves a GPU without work."""

from __future__ import annotations

import pytest
import torch
from runs import SPACE
from test_training_loop import one_step, trainer
from torch.overrides import TorchFunctionMode

import growtas

WAITING = {"tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
COPYING = {"tensor", "as_tensor"}  # from the host's memory, which is not pinned: the copy waits


class Waits(TorchFunctionMode):
    """Names the calls that would wait for a GPU if the tensors were there."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in WAITING or name in COPYING and (kwargs or {}).get("device") is not None:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {"drop_path": 0.2},
        {"drop_path": 0.2, "clip_grad": 1.0, "ema_decay": 0.99},
        {"mixup": 0.8, "cutmix": 1.0},
        {"method": "single", "opt": "sgd"},
    ],
)
def test_a_step_waits_for_the_device_once(tmp_path, options):
    made = trainer(tmp_path, **{"mixup": 0.0, "cutmix": 0.0, **options})
    one_step(made)  # warm: state of the optimizer, kernels
    with Waits() as waits:
        one_step(made)
    assert waits.found == ["tolist"]


def test_every_kind_of_wait_is_seen():
    x = torch.ones(3)
    with Waits() as waits:
        x.tolist(), x.sum().item(), x.cpu(), float(x[0]), bool(x[0]), torch.tensor([1.0], device="cpu")
    assert waits.found == ["tolist", "item", "cpu", "__float__", "__bool__", "tensor"]


@pytest.mark.parametrize("space", [SPACE, "digits-mobilenet"])
def test_drop_path_makes_nothing_from_a_list(space):
    net = growtas.Supernet(space, num_classes=10, drop_path_rate=0.3).train()
    size, channels = net.space.image_size, net.space.in_channels
    images, largest = torch.randn(2, channels, size, size), net.space.largest()
    with Waits() as waits:
        net(images, largest)
    assert waits.found == []
    assert not [name for name in net.state_dict() if "drop_path" in name], "checkpoints stay as they were"
    assert torch.equal(net.drop_path_kept.flatten(), 1 - torch.tensor(net.drop_path_rates))
