"""FocusFormer's sampler: a distribution that normalises, listens to budgets and learns from rewards."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch

from growtas import cost
from growtas.errors import GrowtasError
from growtas.methods.focus_reinforce import Reinforce
from growtas.methods.focus_sampler import ArchitectureSampler, decisions_of
from growtas.space import SearchSpace, Subnet

TINY = SearchSpace(
    "tiny",
    embed_dim=(8, 12),
    mlp_ratio=(1, 2, 3),
    num_heads=(1, 2),
    depth=(1, 2),
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)


def everything(space):
    """Every subnet of a small space."""
    for depth, embed_dim in itertools.product(space.depth, space.embed_dim):
        for heads in itertools.product(space.num_heads, repeat=depth):
            for ratios in itertools.product(space.mlp_ratio, repeat=depth):
                yield Subnet(embed_dim, depth, heads, ratios)


def sampler(space=TINY, seed=1, spread=0.5, **given):
    """A sampler from 0 to 100 whose output layers are not zero, so that nothing is uniform."""
    made = ArchitectureSampler(space, 0, 100, seed=seed, **given)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (*made.weights, *made.biases):
            parameter.normal_(0, spread, generator=generator)
    return made


def probabilities(made, budget):
    subnets = list(everything(made.space))
    logs, _ = made.log_probs(subnets, [budget] * len(subnets))
    return dict(zip(subnets, logs.exp().tolist(), strict=True))


def test_the_decisions_are_depth_embed_dim_and_each_layers_ratio_and_heads():
    names = [(decision.name, decision.layer) for decision in decisions_of(TINY)]
    layers = [("mlp_ratio", 0), ("num_heads", 0), ("mlp_ratio", 1), ("num_heads", 1)]
    assert names == [("depth", None), ("embed_dim", None), *layers]
    made = sampler()
    for subnet in everything(TINY):
        assert made.complete(made.indices(subnet)) == subnet
    assert made.complete([]) == TINY.smallest() and made.complete([1, 1, 2]) == Subnet(12, 2, (1, 1), (3, 1))


@pytest.mark.parametrize("budget", [0, 37, 100])
def test_probabilities_sum_to_one(budget):
    found = probabilities(sampler(), budget)
    assert len(found) == TINY.count() == 84
    assert math.isclose(sum(found.values()), 1, abs_tol=1e-12)
    assert max(found.values()) > 20 * min(found.values())


def test_drawn_frequencies_are_the_probabilities():
    made, rng, count = sampler(), random.Random(3), 2000
    drawn = Counter(made.draw(60, rng) for _ in range(count))
    for subnet, probability in probabilities(made, 60).items():
        deviation = math.sqrt(probability * (1 - probability) * count)
        assert abs(drawn[subnet] - probability * count) < 5 * deviation + 1, subnet


def test_the_untrained_sampler_is_uniform_in_every_choice():
    made = ArchitectureSampler(TINY, 0, 100)
    for subnet, probability in probabilities(made, 30).items():
        assert math.isclose(probability, 1 / 4 / 6**subnet.depth)


def test_draws_are_a_function_of_weights_budget_and_generator():
    first, second = sampler(), sampler()
    assert [first.draw(b, random.Random(b)) for b in range(50)] == [
        second.draw(b, random.Random(b)) for b in range(50)
    ]
    before = torch.get_rng_state()
    ArchitectureSampler(TINY, 0, 100).draw(5, random.Random(0))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(sampler(seed=2).budgets, first.budgets)


def test_draws_follow_a_change_of_the_weights():
    made = sampler()
    made.draw(50, random.Random(0))
    with torch.no_grad():
        made.biases[1][1] += 100
    assert all(made.draw(50, random.Random(i)).embed_dim == 12 for i in range(20))
    made.load_state_dict(sampler().state_dict())
    assert {made.draw(50, random.Random(i)).embed_dim for i in range(20)} == {8, 12}


def test_entropy_is_of_the_decisions_along_the_subnet():
    made = ArchitectureSampler(TINY, 0, 100)
    _, entropies = made.log_probs([TINY.smallest(), TINY.largest()], [10, 20])
    expected = [math.log(4 * 6**depth) for depth in (1, 2)]
    assert torch.allclose(entropies, torch.tensor(expected, dtype=torch.float64))


def test_budgets_between_two_embeddings_are_interpolated():
    made = sampler(budgets=5)  # at 0, 25, 50, 75 and 100
    rows = made.budget_weights([0, 25, 30, 62.5, 100, -7, 300])
    expected = [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0.8, 0.2, 0, 0],
        [0, 0, 0.5, 0.5, 0],
        [0, 0, 0, 0, 1],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
    ]
    assert torch.allclose(rows, torch.tensor(expected, dtype=torch.float64))
    near, far = (probabilities(made, budget) for budget in (50.001, 75))
    at = probabilities(made, 50)
    assert max(abs(near[s] - at[s]) for s in at) < 1e-3 < max(abs(far[s] - at[s]) for s in at)
    assert ArchitectureSampler(TINY, 0, 100, budgets=1).budget_weights([33]).tolist() == [[1.0]]


# -- the likeliest subnet within limits ----------------------------------------------------------------------


def params(subnet, space=TINY):
    return cost.parameters(subnet, space, 10)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_likeliest_subnet_within_a_limit(seed):
    made = sampler(seed=seed, spread=1.0)
    found = probabilities(made, 40)
    low, high = (params(end) for end in (TINY.smallest(), TINY.largest()))
    for limit in (low, low + 100, (low + high) // 2, high):
        best = max((s for s in found if params(s) <= limit), key=found.get)
        assert made.most_probable(40, lambda s, limit=limit: params(s) <= limit, beam=100) == best
        narrow = made.most_probable(40, lambda s, limit=limit: params(s) <= limit, beam=1)
        assert params(narrow) <= limit


def test_greedy_takes_the_likeliest_choice_of_each_decision():
    made = sampler(spread=2.0)
    taken = made.indices(made.greedy(40))
    found = [(made.indices(subnet), probability) for subnet, probability in probabilities(made, 40).items()]
    for place in range(len(taken)):
        shares = Counter()
        for indices, probability in found:
            if indices[:place] == taken[:place]:
                shares[indices[place]] += probability
        assert shares[taken[place]] == max(shares.values())


def test_nothing_admitted():
    with pytest.raises(GrowtasError, match="Not even the smallest"):
        sampler().most_probable(40, lambda subnet: False)


# -- learning ------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_expected_reward():
    """Over many samples: REINFORCE's gradient against the one of the sum over every subnet."""
    made = sampler()
    subnets = list(everything(TINY))
    reward = {subnet: subnet.embed_dim / 10 + sum(subnet.num_heads) / 4 for subnet in subnets}
    logs, _ = made.log_probs(subnets, [50.0] * len(subnets))
    expected = (logs.exp() * torch.tensor([reward[s] for s in subnets], dtype=torch.float64)).sum()
    exact = torch.autograd.grad(expected, list(made.biases))

    rng, count = random.Random(0), 2500
    drawn = Counter(made.draw(50, rng) for _ in range(count))
    times = torch.tensor([drawn[s] for s in subnets], dtype=torch.float64)
    earned = torch.tensor([reward[s] for s in subnets], dtype=torch.float64)
    logs, _ = made.log_probs(subnets, [50.0] * len(subnets))
    advantage = earned - (earned * times).sum() / count
    estimate = torch.autograd.grad((times * advantage * logs).sum() / count, list(made.biases))
    exact, estimate = torch.cat(exact), torch.cat(estimate)
    assert torch.nn.functional.cosine_similarity(exact, estimate, 0) > 0.97
    assert abs(exact.norm() - estimate.norm()) < 0.15 * exact.norm()


def test_the_entropy_bonus_alone_leads_back_to_uniform():
    made, rng = sampler(spread=0.2), random.Random(0)
    learner = Reinforce(made, lr=0.01, decay=0.9, entropy=1.0)

    def unevenness():
        found = probabilities(made, 50)
        return max(abs(p * 4 * 6**s.depth - 1) for s, p in found.items())

    before = unevenness()
    for _ in range(40):
        learner.update([made.draw(50, rng) for _ in range(4)], [50] * 4, [0.0] * 4)
    assert unevenness() < 0.3 * before


def test_it_learns_the_larger_nets_for_the_larger_budgets():
    """Accuracy grows with size, and what is over the budget costs: the best net is the one that just fits."""
    rng = random.Random(0)
    low, high = cost.parameter_range(TINY, 10)
    made = ArchitectureSampler(TINY, low, high)
    learner = Reinforce(made, lr=0.01, decay=0.9, entropy=1e-3)
    for _ in range(80):
        budgets = [low + (part + rng.random()) / 16 * (high - low) for part in range(16)]
        subnets = [made.draw(budget, rng) for budget in budgets]
        sizes = [params(subnet) for subnet in subnets]
        rewards = [
            0.8 + 0.1 * (size - low) / (high - low) - 0.5 * max(0, size / budget - 1)
            for size, budget in zip(sizes, budgets, strict=True)
        ]
        told = learner.update(subnets, budgets, rewards)
    assert set(told) == {"reward", "baseline", "entropy"} and told["reward"] > 0.75

    def mean_size(budget):
        return sum(params(made.draw(budget, rng)) for _ in range(40)) / 40

    small, large = mean_size(low), mean_size(high)
    assert small < low + 0.15 * (high - low)
    assert large > low + 0.45 * (high - low)


def test_the_baseline_is_a_moving_average_at_each_budget():
    made = ArchitectureSampler(TINY, 0, 100, budgets=3)
    learner = Reinforce(made, lr=1e-3, decay=0.5, entropy=0.0)
    smallest = TINY.smallest()
    assert not learner.updated and learner.baseline([10, 100], 0.7).tolist() == [0.7, 0.7]
    learner.update([smallest] * 2, [0, 25], [1.0, 0.0])
    assert learner.updated
    found = learner.baseline([0, 50, 100], 0.7).tolist()
    assert found == pytest.approx([1.0 / 1.5, 0.0, 0.7])
    learner.update([smallest], [0], [3.0])
    assert learner.baseline([0], 0.7).item() == pytest.approx((0.5 * 1.0 + 3.0) / (0.5 * 1.5 + 1))


def test_rewards_that_rise_for_all_teach_nothing():
    """A supernet in training gets better everywhere; what was drawn must not become likelier from that."""
    made = sampler()
    learner = Reinforce(made, lr=0.1, decay=0.9, entropy=0.0)
    before = probabilities(made, 50)
    subnets = [made.draw(50, random.Random(i)) for i in range(4)]
    for reward in (0.0, 0.5, 1.0):
        learner.update(subnets, [50] * 4, [reward] * 4)
    assert probabilities(made, 50) == pytest.approx(before, abs=1e-6)
    learner.update(subnets[:1], [50], [1.0])  # alone it has nothing to be compared with but the average
    assert probabilities(made, 50)[subnets[0]] > before[subnets[0]]


def test_state_round_trip_continues_alike():
    first = Reinforce(sampler(), lr=0.01, decay=0.9, entropy=1e-3)
    second = Reinforce(sampler(seed=9), lr=0.01, decay=0.9, entropy=1e-3)

    def update(learner, seed):
        own = random.Random(seed)
        subnets = [learner.sampler.draw(50, own) for _ in range(4)]
        return learner.update(subnets, [20, 40, 60, 80], [own.random() for _ in range(4)])

    for seed in range(3):
        update(first, seed)
    second.load_state_dict(first.state_dict())
    told = update(first, 7)
    assert update(second, 7) == told
    for ours, theirs in zip(first.sampler.parameters(), second.sampler.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    draws = [[made.sampler.draw(50, random.Random(i)) for i in range(50)] for made in (first, second)]
    assert draws[0] == draws[1]
