"""A distribution over the subnets of a vision-transformer space, conditioned on a budget.

An LSTM chooses one decision after the other: depth, embed_dim, then ratio and heads of each layer. Its input
is the decision before and the budget, each as an embedding; every decision has an output layer of its own.
The output layers begin at zero, so the untrained sampler is uniform in every choice, as ``space.sample`` is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from growtas.errors import GrowtasError
from growtas.methods.focus_decoder import Decoder
from growtas.space import SearchSpace, Subnet

BEAM = 64


class Decision(NamedTuple):
    """One choice of an architecture.

    Args:
        name: field of the space that lists the choices.
        layer: the block that it belongs to; None for a choice of the whole subnet.
        choices: ascending.
    """

    name: str
    layer: int | None
    choices: tuple[float, ...]


def decisions_of(space: SearchSpace) -> tuple[Decision, ...]:
    """The decisions of the deepest subnet, in the order in which they are made."""
    whole = (Decision("depth", None, space.depth), Decision("embed_dim", None, space.embed_dim))
    layers = (
        Decision(name, layer, getattr(space, name))
        for layer in range(space.depth[-1])
        for name in ("mlp_ratio", "num_heads")
    )
    return (*whole, *layers)


class ArchitectureSampler(nn.Module):
    """Autoregressive distribution over subnets, given a budget.

    It computes in double precision on the CPU: that costs next to nothing at this size, and the draws depend
    the less on how a processor rounds.

    Args:
        space: what is sampled from.
        low, high: the smallest and the largest budget; those beyond are treated as the nearest of the two.
        budgets: number K of embeddings, for budgets evenly spaced from ``low`` to ``high``; budgets between
            two of them get the linear interpolation.
        hidden: width of the LSTM and of the embeddings.
        seed: of the initial weights; torch's global generator is not used.
    """

    def __init__(
        self, space: SearchSpace, low: float, high: float, budgets: int = 8, hidden: int = 64, seed: int = 0
    ) -> None:
        super().__init__()
        self.space, self.low, self.high = space, float(low), float(high)
        self.decisions = decisions_of(space)
        double = {"dtype": torch.float64}
        sizes = [len(decision.choices) for decision in self.decisions]
        self.cell = nn.utils.skip_init(nn.LSTMCell, hidden, hidden, **double)
        self.budgets = nn.Parameter(torch.empty(budgets, hidden, **double))
        self.start = nn.Parameter(torch.empty(hidden, **double))
        self.tokens = nn.ParameterList(nn.Parameter(torch.empty(n, hidden, **double)) for n in sizes)
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(n, hidden, **double)) for n in sizes)
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(n, **double)) for n in sizes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.cell.parameters():  # as torch initialises an LSTM and embeddings
                parameter.uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator)
            for parameter in (self.budgets, self.start, *self.tokens):
                parameter.normal_(generator=generator)
        self._parameters_listed = list(self.parameters())
        self._decoder: Decoder | None = None
        self._decoder_version: list[int] | None = None

    # -- the distribution --------------------------------------------------------------------------------

    def budget_weights(self, budgets: Sequence[float]) -> Tensor:
        """Interpolation weights of the K embeddings, (B, K): two neighbours that sum to one."""
        count = len(self.budgets)
        clamped = torch.tensor(budgets, dtype=torch.float64).clamp(self.low, self.high)
        place = (clamped - self.low) / max(self.high - self.low, 1.0) * (count - 1)
        return (1 - (place[:, None] - torch.arange(count)).abs()).clamp(min=0)

    def log_probs(self, subnets: Sequence[Subnet], budgets: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of subnets, each given its budget, with their gradients.

        Returns:
            Log-probabilities (B,), and the entropies of the decisions along each subnet, summed (B,).
        """
        chosen = torch.tensor([self.indices(subnet, pad=True) for subnet in subnets])
        ends = torch.tensor([2 + 2 * subnet.depth for subnet in subnets])
        condition = self.budget_weights(budgets) @ self.budgets
        state = self._first_state(len(subnets))
        token = self.start.expand(len(subnets), -1)
        total = entropy = torch.zeros(len(subnets), dtype=torch.float64)
        for place in range(int(ends.max())):
            logs, state = self._step(place, token + condition, state)
            taken = logs.gather(1, chosen[:, place, None])[:, 0]
            active = place < ends
            total = total + torch.where(active, taken, 0.0)
            entropy = entropy + torch.where(active, -(logs.exp() * logs).sum(1), 0.0)
            token = self.tokens[place][chosen[:, place]]
        return total, entropy

    def _first_state(self, count: int) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(count, self.cell.hidden_size, dtype=torch.float64)
        return zeros, zeros

    def _step(
        self, place: int, inputs: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Log-probabilities (B, choices) of one decision, and the next state."""
        state = self.cell(inputs, state)
        return (state[0] @ self.weights[place].T + self.biases[place]).log_softmax(1), state

    # -- drawing -----------------------------------------------------------------------------------------

    def draw(self, budget: float, rng: random.Random) -> Subnet:
        """One subnet, as a function of the weights, the budget and one uniform number per decision."""

        def by_chance(probabilities: list[float]) -> int:
            left = rng.random()
            for index, probability in enumerate(probabilities):
                left -= probability
                if left < 0:
                    return index
            return len(probabilities) - 1  # rounding: they may sum to a little less than one

        return self._decode(budget, by_chance)

    def greedy(self, budget: float) -> Subnet:
        """The subnet of the likeliest choice at every decision; the smaller one where two are equal."""
        return self._decode(budget, lambda probabilities: probabilities.index(max(probabilities)))

    def _decode(self, budget: float, choose: Callable[[list[float]], int]) -> Subnet:
        version = [each._version for each in self._parameters_listed]  # in-place changes count it up
        if version != self._decoder_version:
            parts = (self.cell, self.budgets, self.start, self.tokens, self.weights, self.biases)
            self._decoder, self._decoder_version = Decoder(*parts), version
        weights = self.budget_weights([budget])[0].numpy()
        return self.complete(self._decoder.decode(weights, self._length, choose))

    @torch.no_grad()
    def most_probable(self, budget: float, admits: Callable[[Subnet], bool], beam: int = BEAM) -> Subnet:
        """The likeliest subnet that is admitted, by beam search; deterministic.

        A prefix of decisions is dropped as soon as its smallest completion is not admitted, so every
        prefix that is kept leads to an admitted subnet.

        Args:
            budget: that the distribution is conditioned on.
            admits: whether a subnet is cheap enough; must hold for every subnet with smaller choices than
                one for which it holds.
            beam: prefixes kept at every decision; with as many as the space has subnets it is exact.

        Raises:
            GrowtasError: not even the smallest subnet is admitted.
        """
        condition = self.budget_weights([budget]) @ self.budgets
        state, token = self._first_state(1), self.start.expand(1, -1)
        prefixes: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]  # minus log-probability, choices
        finished: list[tuple[float, tuple[int, ...]]] = []
        for place in range(len(self.decisions)):
            logs, state = self._step(place, token + condition, state)
            longer = sorted(
                (cost - log, (*prefix, index), row)
                for row, ((cost, prefix), row_logs) in enumerate(zip(prefixes, logs.tolist(), strict=True))
                for index, log in enumerate(row_logs)
            )
            kept = []
            for cost, prefix, row in longer:
                if len(kept) == beam:
                    break
                if not admits(self.complete(prefix)):
                    continue
                if len(prefix) == self._length(prefix):
                    finished.append((cost, prefix))
                else:
                    kept.append((cost, prefix, row))
            if not kept:
                break
            rows = [row for _, _, row in kept]
            state = tuple(part[rows] for part in state)
            token = self.tokens[place][[prefix[-1] for _, prefix, _ in kept]]
            prefixes = [(cost, prefix) for cost, prefix, _ in kept]
        if not finished:
            raise GrowtasError(f"Not even the smallest subnet of space {self.space.name!r} is admitted.")
        return self.complete(min(finished)[1])

    # -- subnets and indices -----------------------------------------------------------------------------

    def _length(self, prefix: Sequence[int]) -> int:
        """Decisions of the subnets that begin with these choices; the depth, made first, tells."""
        return 2 + 2 * self.space.depth[prefix[0]] if prefix else 1

    def indices(self, subnet: Subnet, pad: bool = False) -> list[int]:
        """The number of the choice at each decision. Args: pad: with 0, to the length of the deepest."""
        found = [
            decision.choices.index(
                getattr(subnet, decision.name)
                if decision.layer is None
                else getattr(subnet, decision.name)[decision.layer]
            )
            for decision in self.decisions[: 2 + 2 * subnet.depth]
        ]
        return found + [0] * (len(self.decisions) - len(found)) if pad else found

    def complete(self, prefix: Sequence[int]) -> Subnet:
        """The smallest subnet that begins with these choices; with all of them, the one that they are."""
        indices = list(prefix) or [0]
        indices += [0] * (self._length(indices) - len(indices))
        depth, embed_dim, *layers = (
            decision.choices[index] for decision, index in zip(self.decisions, indices, strict=False)
        )
        return Subnet(embed_dim, depth, tuple(layers[1::2]), tuple(layers[0::2]))
