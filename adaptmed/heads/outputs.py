"""Which labels or classes a head tells apart, and the way between its logits and all of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy import ndarray
from torch import Tensor

from adaptmed.heads.probe import Probe


@dataclass(frozen=True)
class Outputs:
    """Labels or classes; those without a positive or a negative in the fraction have no logit.

    Attributes:
        count: Number of labels or classes.
        multiclass: Whether they are classes that exclude each other.
        reasons: As in ``Probe``: why a label has no prediction, or a class the probability 0.

    Example:
        >>> outputs = Outputs(3, multiclass=False, reasons={1: "no positive in the fraction"})
        >>> outputs.probabilities(torch.zeros(1, 2)).tolist()
        [[0.5, nan, 0.5]]
    """

    count: int
    multiclass: bool
    reasons: Mapping[int, str]

    @classmethod
    def of(cls, probe: Probe) -> Self:
        """The outputs of a fitted probe."""
        return cls(len(probe.bias), probe.multiclass, probe.reasons)

    @property
    def usable(self) -> list[int]:
        """Numbers of the labels or classes that have a logit, in the order of the logits."""
        return [index for index in range(self.count) if index not in self.reasons]

    def targets(self, labels: Shaped[ndarray, "n *label"]) -> Tensor:
        """Labels as the loss wants them: in the head's own numbering; a class that has no logit is not labelled.

        Example:
            >>> import numpy as np
            >>> outputs = Outputs(3, multiclass=True, reasons={1: "no row of this class in the fraction"})
            >>> outputs.targets(np.array([0, 1, 2, -1])).tolist()
            [0, -1, 1, -1]
        """
        if not self.multiclass:
            return torch.as_tensor(labels[:, self.usable], dtype=torch.float32)
        places = torch.full((self.count + 1,), -1)  # the last one is read by the number -1: not labelled
        places[self.usable] = torch.arange(len(self.usable))
        return places[torch.as_tensor(labels)]

    def probabilities(self, logits: Float[Tensor, "n logit"]) -> Float[Tensor, "n output"]:
        """Return probabilities of all: NaN for labels with a reason, 0 for missing classes; NaN without any logit."""
        missing = 0.0 if self.multiclass and self.usable else torch.nan
        found = torch.full((len(logits), self.count), missing)
        found[:, self.usable] = logits.softmax(dim=1) if self.multiclass else logits.sigmoid()
        return found


def learnable(labels: Shaped[np.ndarray, "n *label"], count: int) -> Outputs:
    """Tell which labels or classes can be learnt from these.

    Args:
        labels: ``(n, label)`` of 0, 1 and NaN, or ``(n,)`` class numbers with -1.
        count: How many labels or classes there are.

    Example:
        >>> learnable(np.array([0, 2, -1]), 3).reasons
        {1: 'no row of this class in the fraction'}
    """
    if labels.ndim == 1:
        there = set(labels[labels >= 0].tolist())
        if len(there) < 2:
            return Outputs(count, True, dict.fromkeys(range(count), "fewer than two classes in the fraction"))
        absent = [number for number in range(count) if number not in there]
        return Outputs(count, True, dict.fromkeys(absent, "no row of this class in the fraction"))
    reasons = {}
    for number, column in enumerate(labels.T):
        missing = [word for word, value in (("positive", 1), ("negative", 0)) if not (column == value).any()]
        if missing:
            reasons[number] = f"no {missing[0]} in the fraction"
    return Outputs(count, False, reasons)
