"""REINFORCE: moves a sampler towards the subnets that were rewarded more than expected."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from growtas.methods.focus_sampler import ArchitectureSampler
from growtas.space import Subnet


class Reinforce:
    """Policy gradient with a baseline and an entropy bonus, stepped by Adam.

    The baseline is an exponential moving average of the rewards, kept at each of the sampler's K budgets and
    interpolated like their embeddings: what a small budget can reach is not held against a large one. While
    the supernet learns, every reward rises and the average lags behind; that would reward whatever is drawn,
    and make the sampler certain of it. So what the other subnets of an update earned above the average is
    taken off too.

    Args:
        sampler: what is trained.
        lr: of Adam.
        decay: of the moving average, per update.
        entropy: weight of the summed entropy of a subnet's decisions.

    Source: Williams (1992); the baseline and the bonus are usual additions.
    """

    def __init__(self, sampler: ArchitectureSampler, lr: float, decay: float, entropy: float) -> None:
        self.sampler, self.decay, self.entropy = sampler, decay, entropy
        self.optimizer = torch.optim.Adam(sampler.parameters(), lr=lr, foreach=False)
        self.sums = torch.zeros(len(sampler.budgets), dtype=torch.float64)  # decayed, of weighted rewards
        self.counts = torch.zeros(len(sampler.budgets), dtype=torch.float64)  # decayed, of the weights

    @property
    def updated(self) -> bool:
        """Return whether there was an update."""
        return bool(self.counts.any())

    def baseline(self, budgets: Sequence[float], default: float) -> Tensor:
        """The reward expected at budgets (B,), from earlier updates; ``default`` where there were none."""
        weights = self.sampler.budget_weights(budgets)
        counts = weights @ self.counts
        return torch.where(counts > 0, (weights @ self.sums) / counts.clamp(min=1e-300), default)

    def update(
        self, subnets: Sequence[Subnet], budgets: Sequence[float], rewards: Sequence[float]
    ) -> dict[str, float]:
        """One step of the sampler.

        Args:
            subnets: drawn from the sampler, B of them, each given its budget.
            budgets: of each.
            rewards: of each.

        Returns:
            The means of the rewards, of the baseline that they were compared with and of the entropy.
        """
        earned = torch.tensor(rewards, dtype=torch.float64)
        baseline = self.baseline(budgets, earned.mean().item())
        with torch.enable_grad():
            log_probs, entropies = self.sampler.log_probs(subnets, budgets)
            loss = -(_without_drift(earned - baseline) * log_probs).mean() - self.entropy * entropies.mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        weights = self.sampler.budget_weights(budgets)
        self.sums = self.decay * self.sums + earned @ weights
        self.counts = self.decay * self.counts + weights.sum(0)
        return {
            "reward": earned.mean().item(),
            "baseline": baseline.mean().item(),
            "entropy": entropies.mean().item(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Weights, Adam's moments and steps, and the baseline: tensors and plain values."""
        return {
            "weights": self.sampler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "baseline": {"sums": self.sums, "counts": self.counts},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave. Raises: RuntimeError, KeyError: it is of another sampler."""
        self.sampler.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share the moments
        self.sums = state["baseline"]["sums"].clone()
        self.counts = state["baseline"]["counts"].clone()


def _without_drift(advantages: Tensor) -> Tensor:
    """Each (B,) less the mean of the others: unbiased, as a draw does not enter what it is compared with."""
    others = len(advantages) - 1
    return advantages - (advantages.sum() - advantages) / others if others else advantages
