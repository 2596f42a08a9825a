"""A FocusFormer-style method: a learned sampler draws the subnets of training, given a budget.

FocusFormer trains a supernet with an architecture sampler that raises the probability of good architectures
under varying budgets, and that names an architecture for a budget in the end. How its sampler is built,
rewarded and scheduled is not published in anything we have: what stands here is our own design, close to
ShiftNAS (an LSTM of 64 units conditioned on the budget, updated every 100 iterations on held-out images).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from growtas import cost
from growtas.bounds import IMAGES, Bound
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.methods.base import Method, MethodSettings, register
from growtas.methods.focus_reinforce import Reinforce
from growtas.methods.focus_sampler import ArchitectureSampler
from growtas.space import SearchSpace, Subnet, seeded_rng

if TYPE_CHECKING:
    from growtas.methods.base import TrainingContext

COSTS = {"params": cost.parameters, "macs": cost.macs}
_SHARE = Bound(0, 1, whole=False)
_BOUNDS = {
    "budgets": Bound(0, 4096, above=True),
    "penalty": Bound(0, 10**9, whole=False),
    "update_every": Bound(0, 10**9, above=True),
    "uniform": _SHARE,
    "epsilon": _SHARE,
    "entropy": Bound(0, 10**9, whole=False),
    "decay": Bound(0, 1, whole=False, below=True),
    "samples": Bound(0, 10_000, above=True),
    "images": Bound(0, IMAGES.most, above=True),
    "lr": Bound(0, 10**9, whole=False, above=True),
    "hidden": Bound(0, 4096, above=True),
}


@dataclass(frozen=True)
class FocusOptions:
    """Options of ``focusformer``; all of them are our own choice.

    Args:
        cost: what budgets count: ``params`` or ``macs``.
        budgets: number K of budget embeddings, evenly spaced from the smallest to the largest subnet's cost.
        penalty: lambda of the reward, accuracy - lambda * max(0, cost / budget - 1). At 1 the sampler first
            learned to stay small whatever the budget (seen on made-up accuracies); at 0.5 it did not.
        update_every: steps between updates of the sampler.
        uniform: share of the run, at its beginning, in which subnets are drawn uniformly.
        epsilon: probability with which a subnet is drawn uniformly later on.
        entropy: weight of the entropy bonus.
        decay: of the moving average that is the baseline, per update.
        samples: subnets that are evaluated for an update.
        images: held-out images that they are evaluated on.
        lr: of the sampler.
        hidden: width of the LSTM.

    Raises:
        UsageError: a value is not possible.
    """

    cost: str = "params"
    budgets: int = 8
    penalty: float = 0.5
    update_every: int = 100
    uniform: float = 0.1
    epsilon: float = 0.1
    entropy: float = 1e-3
    decay: float = 0.9
    samples: int = 16
    images: int = 256
    lr: float = 0.01
    hidden: int = 64

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise UsageError(f"cost={self.cost!r} of focusformer is unknown.{nearest(self.cost, COSTS)}")
        for name, bound in _BOUNDS.items():
            bound(name, getattr(self, name), "focusformer")


@register("focusformer")
class FocusFormer(Method):
    """Subnets drawn from a sampler that REINFORCE trains on held-out accuracy under budgets.

    Source: the idea is FocusFormer's (Liu et al., 2022); the sampler, its reward and its schedule are ours.
    """

    Options = FocusOptions
    options: FocusOptions

    def __init__(self, settings: MethodSettings) -> None:
        super().__init__(settings)
        if not isinstance(self.space, SearchSpace):
            raise UsageError(
                f"method='focusformer' samples vision transformers, and {self.space.name!r} is a space of "
                "another family; choose a space such as 'digits', or another method."
            )
        options = self.options
        self.low, self.high = (self.cost(end) for end in (self.space.smallest(), self.space.largest()))
        seed = seeded_rng("focusformer weights", settings.seed).getrandbits(63)
        self.sampler = ArchitectureSampler(
            self.space, self.low, self.high, options.budgets, options.hidden, seed
        )
        self.reinforce = Reinforce(self.sampler, options.lr, options.decay, options.entropy)
        self.uniform_steps = round(options.uniform * settings.epochs * settings.steps_per_epoch)

    def cost(self, subnet: Subnet) -> int:
        """The share of a budget that a subnet takes."""
        return COSTS[self.options.cost](subnet, self.space, self.settings.num_classes)

    def sample(self, step: int, rng: random.Random) -> Subnet:
        """A uniform draw at first, and with probability epsilon; else the sampler's, for a random budget."""
        if step < self.uniform_steps or rng.random() < self.options.epsilon:
            return self.space.sample(rng)
        return self.sampler.draw(rng.uniform(self.low, self.high), rng)

    def begin_stage(self, stage: int, training: TrainingContext) -> dict[str, Any]:
        """Nothing is changed; the log learns when the sampler is trained, a short run perhaps never."""
        steps = self.settings.epochs * self.settings.steps_per_epoch
        updates = (steps - self.uniform_steps) // self.options.update_every
        return {"uniform_steps": self.uniform_steps, "sampler_updates": updates}

    def after_step(self, step: int, training: TrainingContext) -> dict[str, Any]:
        """Every ``update_every`` steps after the uniform phase, one update of the sampler."""
        trained = step + 1 - self.uniform_steps
        if trained <= 0 or trained % self.options.update_every:
            return {}
        rng = seeded_rng("focusformer", self.settings.seed, step)
        count = self.options.samples
        # one budget in each of as many equal parts: all sizes are heard at every update
        parts = [(part + rng.random()) / count for part in range(count)]
        budgets = [self.low + part * (self.high - self.low) for part in parts]
        subnets = [self.sampler.draw(budget, rng) for budget in budgets]
        accuracies = self._accuracies(subnets, step, training)
        rewards = [
            accuracy - self.options.penalty * max(0.0, self.cost(subnet) / budget - 1)
            for subnet, budget, accuracy in zip(subnets, budgets, accuracies, strict=True)
        ]
        found = self.reinforce.update(subnets, budgets, rewards)
        found["accuracy"] = sum(accuracies) / count
        return {name: round(value, 6) for name, value in found.items()}

    @torch.no_grad()
    def _accuracies(self, subnets: Sequence[Subnet], step: int, training: TrainingContext) -> list[float]:
        """Share of held-out images that each subnet classifies correctly with the weights it inherits."""
        images, labels = training.draw_images("search", self.options.images, "focusformer", step)
        net, was_training = training.net, training.net.training
        net.eval()
        try:
            shares = torch.stack([self._share(training, subnet, images, labels) for subnet in subnets])
        finally:
            net.train(was_training)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(shares, 0)  # ranks that round differently must not part ways
        return shares.tolist()

    @staticmethod
    def _share(training: TrainingContext, subnet: Subnet, images: Tensor, labels: Tensor) -> Tensor:
        with training.autocast():
            logits = training.net(images, subnet)
        return ((logits.argmax(1) == labels) & logits.isfinite().all(1)).double().mean()

    def state_dict(self) -> dict[str, Any]:
        """The sampler's weights, its optimizer's state and the baseline."""
        return self.reinforce.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            GrowtasError: it is not the state of such a sampler.
        """
        try:
            self.reinforce.load_state_dict(state)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise GrowtasError(
                "The checkpoint does not hold this sampler of method 'focusformer' "
                f"({str(error).splitlines()[-1].strip()}); other options wrote it."
            ) from error
