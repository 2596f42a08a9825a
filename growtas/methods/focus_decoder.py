"""The sampler's LSTM for one subnet at a time, in numpy: several times faster than torch at batch size 1.

Every training step draws from it, so it must cost little beside the step. What does not change between two
updates of the sampler is multiplied out once: an input of the LSTM is one of few embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from torch import Tensor, nn


class Decoder:
    """A snapshot of a sampler's weights.

    They are read once; later changes do not reach the snapshot.

    Args:
        cell: the LSTM of width W.
        budgets: embeddings of the budgets, (K, W).
        start: the first input, (W,).
        tokens: inputs after each decision, (choices, W) each.
        weights, biases: output layers of each decision, (choices, W) and (choices,).
    """

    def __init__(
        self,
        cell: nn.LSTMCell,
        budgets: Tensor,
        start: Tensor,
        tokens: Iterable[Tensor],
        weights: Iterable[Tensor],
        biases: Iterable[Tensor],
    ) -> None:
        def array(tensor) -> np.ndarray:
            return tensor.detach().numpy()

        hidden = cell.hidden_size
        # a sigmoid is (1 + tanh(x / 2)) / 2, so one tanh serves the gates i, f, o and the candidate g alike
        self.scale = np.full(4 * hidden, 0.5)
        self.scale[2 * hidden : 3 * hidden] = 1.0
        self.shift = 1 - self.scale
        inputs = self.scale[:, None] * array(cell.weight_ih)
        bias = self.scale * (array(cell.bias_ih) + array(cell.bias_hh))
        self.recurrent = self.scale[:, None] * array(cell.weight_hh)
        self.budgets = array(budgets) @ inputs.T
        self.start = array(start) @ inputs.T + bias
        self.tokens = [array(token) @ inputs.T + bias for token in tokens]
        self.weights = [array(weight).copy() for weight in weights]
        self.biases = [array(bias).copy() for bias in biases]
        self.hidden = hidden

    def decode(
        self,
        budget_weights: np.ndarray,
        length: Callable[[list[int]], int],
        choose: Callable[[list[float]], int],
    ) -> list[int]:
        """Make one decision after the other.

        Args:
            budget_weights: of the budget embeddings, (K,).
            length: decisions in all, from those made so far.
            choose: the number of a choice, from the probabilities of all of them.

        Returns:
            The number of the choice at each decision.
        """
        own = self.hidden
        condition = budget_weights @ self.budgets
        h = c = np.zeros(own)
        token = self.start
        found: list[int] = []
        while len(found) < length(found):
            place = len(found)
            gates = np.tanh(self.recurrent @ h + token + condition) * self.scale + self.shift
            c = gates[own : 2 * own] * c + gates[:own] * gates[2 * own : 3 * own]
            h = gates[3 * own :] * np.tanh(c)
            found.append(choose(_softmax((self.weights[place] @ h + self.biases[place]).tolist())))
            token = self.tokens[place][found[-1]]
        return found


def _softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]
