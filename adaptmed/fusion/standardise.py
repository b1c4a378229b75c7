"""Input statistics of frozen tokens, taken once over training rows."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.types import Tokens


def channel_statistics(
    read: Callable[[NDArray[np.int64]], Tokens], rows: NDArray[np.int64]
) -> tuple[Float[Tensor, " width"], Float[Tensor, " width"]]:
    """Mean and standard deviation per channel over valid tokens, in float64 and a few rows at a time."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(rows), 128):
        tokens = read(rows[start : start + 128])
        values = tokens.values[tokens.valid].double()
        count, total, squares = count + len(values), total + values.sum(0), squares + values.square().sum(0)
    mean = total / max(count, 1)
    return mean.float(), (squares / max(count, 1) - mean.square()).clamp(min=0).sqrt().float()
