"""The exponential moving average (EMA) of what is trained."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class WeightAverage(nn.Module):
    """Follows trained parameters as an exponential moving average; part of a checkpoint, never of a gradient.

    In step ``t`` (from 1) the average moves by ``1 - min(decay, t / (t + 9))`` towards the parameters, so that the
    first, untrained weights are soon forgotten.

    Args:
        parameters: What is trained, always given in the same order.
        decay: In (0, 1); the average looks back over about ``1 / (1 - decay)`` steps.

    Example:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> average = WeightAverage([weight], decay=0.9)
        >>> _ = weight.data.fill_(1.0)
        >>> average.follow([weight], step=1)
        >>> round(average.values[0].item(), 6)
        0.9
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for number, parameter in enumerate(parameters):
            self.register_buffer(str(number), parameter.detach().clone())

    @property
    def values(self) -> list[Tensor]:
        """The averages, in the order of the parameters."""
        return list(self.buffers())

    @torch.no_grad()
    def follow(self, parameters: Iterable[nn.Parameter], *, step: int) -> None:
        """Move towards the parameters after a step."""
        share = 1 - min(self.decay, step / (step + 9))
        for value, parameter in zip(self.values, parameters, strict=True):
            value.lerp_(parameter, share)

    @torch.no_grad()
    def swap(self, parameters: Iterable[nn.Parameter]) -> None:
        """Exchange averages and parameters; a second call undoes it."""
        for value, parameter in zip(self.values, parameters, strict=True):
            kept = value.clone()
            value.copy_(parameter)
            parameter.copy_(kept)
