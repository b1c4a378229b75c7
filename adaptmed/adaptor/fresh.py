"""An untrained fusion of an adaptor's shape, drawn by a seed, its input statistics fitted on rows of a bank."""

import numpy as np
import torch
from jaxtyping import Int

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.fusion import Fusion, build_fusion
from adaptmed.layers.draws import step_seed


def fresh_fusion(adaptor: Adaptor, bank: Bank, rows: Int[np.ndarray, " n"], *, seed: int) -> Fusion:
    """Build an untrained fusion of the same shape, in evaluation mode.

    Args:
        adaptor: Gives the shape.
        bank: Tokens of its encoders.
        rows: Row numbers on which the input statistics are fitted: those the adaptor was trained on.
        seed: Of the weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        fresh = Adaptor(build_fusion(adaptor.fusion.config), adaptor.encoders)
    fresh.standardise(bank, rows)
    return fresh.fusion.eval()
