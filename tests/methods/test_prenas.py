"""PreNAS on networks: the score and its fast form, what is chosen with it, and the method in a run."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import growtas
from growtas import cost
from growtas.errors import GrowtasError, UsageError
from growtas.methods import MethodSettings, TrainingContext, create_method
from growtas.methods.prenas_score import box_sums, gradients, score_parts
from growtas.space import SearchSpace, Subnet, load_space
from growtas.supernet import Supernet
from growtas.training import Run, checkpoint

# Larger than its largest subnet in every direction, and widths that are no multiples of anything.
SPACE = SearchSpace(
    "odd",
    embed_dim=(10, 13, 17),
    mlp_ratio=(1.5, 2, 3.3),
    num_heads=(1, 2, 3),
    depth=(2, 3, 4),
    super_embed_dim=20,
    super_mlp_ratio=4,
    super_num_heads=4,
    super_depth=5,
    image_size=8,
    patch_size=4,
    in_channels=2,
    head_dim=4,
    max_relative_position=1,
)
UNSCORED = ("table", "cls_token", "pos_embed")


def random_net(seed: int = 0, **given):
    """A supernet of SPACE in which no bias is zero and no norm one, so that each must be counted."""
    net = Supernet(SPACE, 5, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return net


def random_images(count: int = 5, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 2, 8, 8, generator=generator)
    return images, torch.randint(5, (count,), generator=generator)


def context(net, draw=None) -> TrainingContext:
    return TrainingContext(net, None, torch.device("cpu"), draw, None)


def chosen_by(space, classes=1000, seed=0, **given):
    """A method after its choice on a supernet initialised from the seed, and what it logs."""
    torch.manual_seed(seed)
    net = Supernet(space, classes)
    method = create_method("prenas", MethodSettings(space, classes, 9, 400, seed=seed, **given))
    return method, method.begin_stage(0, context(net))


# -- the score -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("qkv_bias", ["interleaved", "published"])
def test_the_fast_score_is_that_of_the_subnet_taken_out_tensor_by_tensor(qkv_bias):
    net = random_net(qkv_bias=qkv_bias)
    found = gradients(net, *random_images())
    scores = score_parts(net, found)
    of_gradients = copy.deepcopy(net)
    of_gradients.load_state_dict(found)
    rng = random.Random(7)
    for _ in range(40):
        subnet = SPACE.sample(rng)
        weights, slopes = net.slice_state_dict(subnet), of_gradients.slice_state_dict(subnet)
        anew = sum(
            (weights[name].double() * slopes[name].double()).abs().sum().item()
            for name in weights
            if not any(part in name for part in UNSCORED)
        )
        assert scores.of(subnet) == pytest.approx(anew, rel=1e-6)


def test_layers_are_ranked_by_what_a_choice_adds_at_the_largest_width():
    net = random_net(1)
    found = gradients(net, *random_images())
    scores = score_parts(net, found)
    assert set(scores.heads_rank) == {2, 3} and set(scores.ratio_rank) == {2, 3.3}
    assert all(
        len(column) == 4 for table in (scores.heads_rank, scores.ratio_rank) for column in table.values()
    )
    weights = net.state_dict()

    def share(name, cut, part):
        w, g = weights[name][cut], found[name][cut]
        return ((w * g)[part].abs().sum() / w.abs().sum() / g.abs().sum()).item()

    columns = (slice(None), slice(17))
    for layer in range(4):
        qkv, fc1, fc2 = (f"blocks.{layer}.{n}.weight" for n in ("attn.qkv", "mlp.fc1", "mlp.fc2"))
        assert scores.heads_rank[3][layer] == pytest.approx(share(qkv, columns, slice(24, 36)), rel=1e-5)
        expected = share(fc1, columns, slice(34, 56))
        expected += share(fc2, (slice(17), slice(None)), (slice(None), slice(34, 56)))
        assert scores.ratio_rank[3.3][layer] == pytest.approx(expected, rel=1e-5)


def test_box_sums():
    values = torch.randn(7, 5, dtype=torch.float64)
    sums = box_sums(values, (2, 7, 3), (5, 1))
    assert sums.shape == (3, 2)
    for i, rows in enumerate((2, 7, 3)):
        for j, columns in enumerate((5, 1)):
            assert sums[i, j].item() == pytest.approx(values[:rows, :columns].sum().item())


@pytest.mark.parametrize("with_labels", [False, True])
def test_gradients_are_those_of_one_plain_backward_pass_of_the_largest(with_labels):
    net = random_net(2, drop_path_rate=0.0)
    images, labels = random_images(7)
    found = gradients(net, images, labels if with_labels else None, chunk=3)
    logits = net(images, SPACE.largest())
    (F.cross_entropy(logits, labels) if with_labels else logits.sum()).backward()
    for name, parameter in net.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected.abs().max().item()
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5 * scale, msg=name)
    assert not found["blocks.4.mlp.fc1.weight"].any() and found["blocks.3.mlp.fc1.weight"].any()


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_everything_as_it_was(training):
    net = random_net(3, drop_path_rate=0.5).train(training)
    rates = list(net.drop_path_rates)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    marked = net.blocks[0].mlp.fc1.weight
    marked.grad = torch.full_like(marked, 3.0)
    global_state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    options = MethodSettings(SPACE, 5, 2, 2, options="images=3")
    create_method("prenas", options).begin_stage(0, context(net))
    assert net.training is training and net.drop_path_rates == rates
    assert all(torch.equal(before[name], parameter) for name, parameter in net.named_parameters())
    assert (marked.grad == 3).all() and sum(p.grad is not None for p in net.parameters()) == 1
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == global_state


def test_drop_path_does_not_change_the_score():
    images, labels = random_images()
    first, second = (
        gradients(random_net(4, drop_path_rate=rate).train(), images, labels) for rate in (0.0, 0.9)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_weights_that_are_not_finite_are_named():
    net = random_net()
    net.head.weight.data[0, 0] = float("nan")
    with pytest.raises(GrowtasError, match="score of the supernet is not finite"):
        score_parts(net, gradients(net, *random_images()))


# -- the choice ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "images", "shapes", "probabilities"),
    [
        (
            "autoformer-tiny",
            2,
            [(192, 12), (216, 12), (240, 12), (240, 12), (240, 14), (240, 14)],
            [1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8],
        ),
        pytest.param(
            "autoformer-small",
            1,
            [(320, 13), (384, 13), (448, 13), (448, 14)],
            [1 / 4] * 4,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "autoformer-base", 1, [(528, 14), (576, 14), (624, 14)], [1 / 3] * 3, marks=pytest.mark.slow
        ),
    ],
)
def test_the_published_shapes_come_out_of_the_score(name, images, shapes, probabilities):
    space = load_space(name)
    method, logged = chosen_by(space, options=f"images={images}")
    rows = logged["preferred"]
    subnets = [Subnet.parse(row["subnet"]) for row in rows]
    assert [(subnet.embed_dim, subnet.depth) for subnet in subnets] == shapes
    assert [row["probability"] for row in rows] == pytest.approx(probabilities)
    assert [row["params"] for row in rows] == [cost.parameters(subnet, space) for subnet in subnets]
    bins = [method.bins.index(row["params"]) for row in rows]
    assert bins == sorted(set(bins))


def test_the_choice_is_a_function_of_seed_and_weights():
    first, again, other = (chosen_by(SPACE, 5, seed, options="bins=3")[1] for seed in (5, 5, 6))
    assert first == again != other
    assert json.loads(json.dumps(first)) == first


def test_draws_are_uniform_over_groups_then_members():
    method, logged = chosen_by(SPACE, 5, options="bins=8,depths=2,4")
    expected = {row["subnet"]: row["probability"] for row in logged["preferred"]}
    assert (
        len(expected) > 4 and len(set(expected.values())) > 1 and sum(expected.values()) == pytest.approx(1)
    )
    counts = Counter(str(subnet) for step in range(3000) for subnet in method.subnets(step))
    assert counts.keys() == expected.keys()
    for text, probability in expected.items():
        assert abs(counts[text] / 3000 - probability) < 0.04  # four standard deviations
        assert Subnet.parse(text).depth in (2, 4)


def test_the_sandwich_is_made_of_the_chosen_subnets():
    method, logged = chosen_by(SPACE, 5, sandwich=True)
    rows = sorted(logged["preferred"], key=lambda row: row["params"])
    largest, smallest, drawn = method.subnets(0)
    assert (str(smallest), str(largest)) == (rows[0]["subnet"], rows[-1]["subnet"])
    assert str(drawn) in {row["subnet"] for row in rows}


def test_training_images_and_their_labels_are_scored_on_request():
    net, asked = random_net(), []
    images, labels = random_images(6)

    def draw(split, count, *key):
        asked.append((split, count))
        return images, labels

    settings = MethodSettings(SPACE, 5, 9, 400, options="data=train,images=6")
    rows = create_method("prenas", settings).begin_stage(0, context(net, draw))["preferred"]
    assert asked == [("train", 6)]
    scores = score_parts(net, gradients(net, images, labels))
    for row in rows:
        assert row["score"] == pytest.approx(scores.of(Subnet.parse(row["subnet"])), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "mean", "std"),
    [("", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ("mean=0,std=1,2,3", (0, 0, 0), (1, 2, 3))],
)
def test_noise_has_the_mean_and_deviation_of_each_channel(options, mean, std):
    space = SearchSpace(**{**SPACE.to_dict(), "in_channels": 3, "image_size": 64})
    settings = MethodSettings(space, 5, 9, 400, options=options)
    net = Supernet(space, 5)
    images, labels = create_method("prenas", settings)._images(context(net))
    assert images.shape == (64, 3, 64, 64) and labels is None
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor(mean).float(), rtol=0, atol=0.03)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.tensor(std).float(), rtol=0.02, atol=0)


def test_every_rank_takes_the_choice_of_the_first(monkeypatch):
    from growtas.methods.prenas import dist

    sent = []

    def broadcast(rows, src):
        assert src == 0
        if sent:
            rows[:] = pickle.loads(sent[0])
        else:
            sent.append(pickle.dumps(rows))

    alone = chosen_by(SPACE, 5, seed=2)[0].state_dict()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: len(sent))
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    first = chosen_by(SPACE, 5, seed=1)[0].state_dict()
    second = chosen_by(SPACE, 5, seed=2)[0].state_dict()
    assert first == second != alone


# -- state and errors ----------------------------------------------------------------------------------------


def test_the_choice_is_restored_from_a_checkpoint():
    method, _ = chosen_by(SPACE, 5, options="bins=4")
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored = create_method("prenas", method.settings)
    with pytest.raises(GrowtasError, match="not chosen its subnets yet"):
        restored.subnets(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert [restored.subnets(step) for step in range(50)] == [method.subnets(step) for step in range(50)]
    assert restored.extremes(0) == method.extremes(0) and restored.state_dict() == method.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"subnets": ["d10-h1,1-r1.5,1.5"] * 2},
        {"groups": [[0]]},
        {"subnets": ["d11-h1,1-r1.5,1.5"], "params": [1], "scores": [1.0], "groups": [[0]]},
    ],
)
def test_state_of_something_else_is_refused(change):
    method, _ = chosen_by(SPACE, 5, options="bins=4")
    with pytest.raises(GrowtasError, match="does not fit method 'prenas'"):
        method.load_state_dict({**method.state_dict(), **change})
    with pytest.raises(GrowtasError, match="does not fit method 'prenas'"):
        method.load_state_dict({})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("bins=1e6-2e6/1e6", r"No subnet of space 'odd' falls into the bins 1,000,000-2,000,000/1,000,000"),
        ("data=training", "Did you mean 'train'"),
        ("images=0", "images=0 of prenas is not possible; it must be 1 or more"),
        ("mean=0,0,0", "3 numbers, but the images have 2 channels"),
        ("std=much", "no number"),
        ("depths=9", "no depth 9"),
        ("image=3", "Did you mean 'images'"),
    ],
)
def test_what_cannot_be_is_said_before_training(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        create_method("prenas", MethodSettings(SPACE, 5, 9, 400, options=options))


def test_more_choices_than_cut_points_are_refused():
    space = SearchSpace("shallow", (8,), (1,), (1, 2, 3, 4), (1, 2))
    with pytest.raises(UsageError, match="num_heads but the smallest and the largest"):
        create_method("prenas", MethodSettings(space, 5, 9, 400))


def test_a_convolutional_space_is_refused():
    with pytest.raises(UsageError, match="heads and MLP widths of a vision transformer"):
        create_method("prenas", MethodSettings(load_space("ofa-mobilenetv3"), 5, 9, 400))


# -- a run ---------------------------------------------------------------------------------------------------


def test_a_run_trains_the_chosen_subnets_only(tmp_path):
    space = SearchSpace(**{**SPACE.to_dict(), "in_channels": 1})
    run = growtas.train(
        space=space,
        data="digits",
        method="prenas",
        method_options="bins=4,data=train,images=16",
        epochs=1,
        log_every=1,
        eval_subnets=0,
        tensorboard=False,
        device="cpu",
        out=tmp_path / "run",
    )
    events = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    chosen = {row["subnet"] for event in events if event["event"] == "stage" for row in event["preferred"]}
    trained = [text for event in events if event["event"] == "step" for text in event["subnets"]]
    assert len(chosen) > 1 and set(trained) <= chosen and len(trained) == run.steps
    state = checkpoint.load(Run.open(run.path).checkpoint_path)["method"]
    assert set(state["subnets"]) == chosen
