"""An optimizer's moments of a new region are reset at a transition where that is asked for."""

from __future__ import annotations

import pytest
import torch

import growtas
from growtas.methods import MethodSettings, TrainingContext, create_method
from growtas.methods.regions import new_region

OPTIMIZERS = {
    "adamw": lambda ps: torch.optim.AdamW(ps, weight_decay=0.5),
    "fused adamw": lambda ps: torch.optim.AdamW(ps, weight_decay=0.5, amsgrad=True, fused=True),
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, weight_decay=0.5, nesterov=True),
    "sgd without momentum": lambda ps: torch.optim.SGD(ps, 0.1),
}


def after_a_step(name, moments):
    """A net and its optimizer as they are when growtas lets the third group in; all had gradients."""
    torch.manual_seed(0)
    net = growtas.Supernet("digits", num_classes=10)
    optimizer = OPTIMIZERS[name](net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    settings = MethodSettings(net.space, 10, 9, 4, new_region="near_zero", new_region_moments=moments)
    training = TrainingContext(net, optimizer, torch.device("cpu"), None, None)
    return net, optimizer, create_method("growtas", settings), training


def state_by_name(net, optimizer):
    return {
        (name, key): torch.as_tensor(value).clone()
        for name, parameter in net.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_the_new_region_are_reset_and_no_others(name):
    net, optimizer, method, training = after_a_step(name, "reset")
    before, new = state_by_name(net, optimizer), new_region(net, (0, 1), (0, 1, 2))
    assert method.begin_stage(0, training) == {}
    done = method.begin_stage(1, training)
    kinds = set()
    for (parameter, key), value in state_by_name(net, optimizer).items():
        old, mask = before[parameter, key], new.get(parameter, torch.zeros(value.shape, dtype=torch.bool))
        if value.shape != net.get_parameter(parameter).shape:
            assert torch.equal(value, old), (parameter, key)  # a count of steps
            continue
        kinds.add(key)
        assert (old != 0).all() and not value[mask].any(), (parameter, key)
        assert torch.equal(value[~mask], old[~mask]), (parameter, key)
    expected = {"sgd": {"momentum_buffer"}, "adamw": {"exp_avg", "exp_avg_sq"}, "sgd without momentum": set()}
    assert kinds == expected.get(name, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
    assert done["reset_moments"] == len(kinds) * done["new_entries"]


def test_moments_are_kept_unless_asked():
    net, optimizer, method, training = after_a_step("adamw", "keep")
    before = state_by_name(net, optimizer)
    assert "reset_moments" not in method.begin_stage(1, training)
    for key, value in state_by_name(net, optimizer).items():
        assert torch.equal(value, before[key]), key
