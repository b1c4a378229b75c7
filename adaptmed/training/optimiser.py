"""Parameter groups and the learning rate over the steps of a run."""

import math
from typing import Any

from torch import nn

from adaptmed.methods import Schedule


def learning_rate_factor(step: int, steps: int, schedule: Schedule) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine to 0.

    Example:
        >>> [round(learning_rate_factor(step, 10, Schedule(warmup_share=0.2)), 2) for step in (0, 1, 6, 10)]
        [0.5, 1.0, 0.5, 0.0]
    """
    warmup = round(schedule.warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: matrices of linear layers decay; norms, biases, positions and temperature do not."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (matrices if name.endswith("weight") and parameter.ndim == 2 else others).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
