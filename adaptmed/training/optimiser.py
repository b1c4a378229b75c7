"""AdamW with one rate for each part, linear warm-up and cosine decay; which parameters have weight decay."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

Group = dict[str, Any]
"""A parameter group of torch's optimisers."""


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Factor on the peak learning rate: linear warm-up, then a cosine to 0.

    Example:
        >>> [round(learning_rate_factor(step, 10, 0.2), 2) for step in (0, 1, 6, 10)]
        [0.5, 1.0, 0.5, 0.0]
    """
    warmup = round(warmup_share * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def scheduled_adamw(
    groups: Iterable[Group], *, steps: int, warmup_share: float, learning_rate: float = 1e-3
) -> OptimizerLRSchedulerConfig:
    """Build AdamW with a schedule that Lightning advances after every step.

    Args:
        groups: Parameter groups.
        steps: Of the whole run.
        warmup_share: Share of the steps over which the rates rise.
        learning_rate: Peak rate of the groups that have none of their own.
    """
    optimiser = torch.optim.AdamW(list(groups), lr=learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps, warmup_share))
    return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def parameter_groups(module: nn.Module, weight_decay: float) -> list[Group]:
    """Split trainable parameters: matrices of linear layers decay; norms, biases, positions and temperature do not."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (matrices if name.endswith("weight") and parameter.ndim == 2 else others).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def kernel_groups(module: nn.Module, weight_decay: float) -> list[Group]:
    """Split trainable parameters of a module with convolutions: kernels and matrices decay; the others do not."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    several = [parameter for parameter in trained if parameter.ndim > 1]
    single = [parameter for parameter in trained if parameter.ndim <= 1]
    return [{"params": several, "weight_decay": weight_decay}, {"params": single, "weight_decay": 0.0}]


def at_rate(groups: Iterable[Group], learning_rate: float) -> list[Group]:
    """Give groups a peak rate of their own, and leave empty ones out."""
    return [group | {"lr": learning_rate} for group in groups if group["params"]]
