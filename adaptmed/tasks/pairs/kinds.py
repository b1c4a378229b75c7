"""Kinds of questions, learnt from the fraction: which answers a question of a kind can have."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adaptmed.heads.probe import fit_probe

LEAST = 0.1
"""A kind that is less likely than this is excluded; in doubt nothing is."""


@dataclass(frozen=True)
class Questions:
    """Questions of the fraction.

    Attributes:
        features: Pooled text Tokens of each.
        closed: Whether each is closed.
        answers: Number of each answer in the vocabulary.
        patients: Of each.
    """

    features: Float[np.ndarray, "n width"]
    closed: Bool[np.ndarray, " n"]
    answers: Int[np.ndarray, " n"]
    patients: np.ndarray


class Kinds(nn.Module):
    """Tells open from closed questions, and excludes the answers that only the other kind had in the fraction.

    Args:
        width: Of the pooled text Tokens.
        answers: How many there are.
    """

    weight: Tensor
    bias: Tensor
    seen: Tensor

    def __init__(self, width: int, answers: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(2, width))
        self.register_buffer("bias", torch.zeros(2))
        self.register_buffer("seen", torch.ones(2, answers, dtype=torch.bool))

    @classmethod
    def of(cls, questions: Questions, answers: int) -> Self | None:
        """Learn both kinds and their answers; ``None`` where the fraction has one kind alone."""
        if len(np.unique(questions.closed)) < 2:
            return None
        kinds = cls(questions.features.shape[1], answers)
        probe = fit_probe(questions.features, questions.closed.astype(np.int64), questions.patients, classes=2)
        for name, values in zip(("weight", "bias"), probe.linear(), strict=True):
            getattr(kinds, name).copy_(torch.from_numpy(values))
        numbers = np.arange(answers)
        unknown = ~np.isin(numbers, questions.answers)  # of other splits: nothing says whose answers they are
        for kind in (False, True):
            given = np.isin(numbers, questions.answers[questions.closed == kind])
            kinds.seen[int(kind)] = torch.from_numpy(given | unknown)
        return kinds

    def forward(
        self, logits: Float[Tensor, "batch answer"], features: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch answer"]:
        """Set the logits of answers that the question cannot have to minus infinity."""
        likely = (features.float() @ self.weight.T + self.bias).softmax(dim=1) >= LEAST
        possible = (likely.float() @ self.seen.float()) > 0
        return logits.masked_fill(~possible, -torch.inf)
