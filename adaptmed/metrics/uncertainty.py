"""Bootstrap over patients and seeds: weights, intervals and p values.

The patient is the unit that is drawn, because items of one patient resemble each other. One draw of patients is shared
by every arm and every seed, since all are judged on the same test set: the difference of two arms is then paired, and
what makes the test set hard or easy for both falls out of it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from adaptmed.errors import InputError, sentence


def patient_weights(
    patients: Sequence[object] | np.ndarray, *, replicates: int = 1000, seed: int = 0
) -> Float[np.ndarray, "replicate n"]:
    """Draw patients with replacement and return how often each item counts.

    Args:
        patients: The patient of each item.
        replicates: Number of bootstrap replicates.
        seed: The same seed and patients give the same weights.

    Returns:
        Each item's weight is the number of times its patient was drawn; a row sums to the number of items on average.

    Raises:
        InputError: There is no item, or an item has no patient.

    Example:
        >>> weights = patient_weights(["a", "a", "b"], replicates=4)
        >>> weights.shape, bool((weights[:, 0] == weights[:, 1]).all())
        ((4, 3), True)
    """
    codes, names = pd.factorize(np.asarray(patients), sort=True)
    if len(codes) == 0 or (codes < 0).any():
        raise InputError(
            sentence(
                "patients",
                expected="a patient for every one of at least one item",
                got=f"{int((codes < 0).sum())} of {len(codes)} missing",
                fix="Without patients pass row numbers, so that every row is its own patient.",
            )
        )
    counts = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=max(replicates, 1)
    )
    return counts.T[codes].astype(np.float64).T  # stored item by item, as the metrics read it


def interval(samples: Float[np.ndarray, " replicate"], *, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the defined replicates.

    Args:
        samples: Bootstrap replicates; NaN where the metric is undefined.
        level: Coverage aimed at, in (0, 1).

    Returns:
        ``(low, high)``, or ``None`` when fewer than half of the replicates are defined.

    Example:
        >>> interval(np.arange(101.0), level=0.5)
        (25.0, 75.0)
    """
    defined = _defined(samples)
    if defined is None:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def hierarchical(values: Float[np.ndarray, "seed replicate"], *, seed: int = 0) -> Float[np.ndarray, " replicate"]:
    """Resample seeds outside, patients inside.

    The replicates of ``values`` already are draws of patients, the same draw in one column for every seed and every
    arm. To each column belongs one draw of seeds with replacement, over which it is averaged. With one seed only the
    patients vary; with few seeds the spread between seeds is understated by (n_seeds - 1) / n_seeds.

    Args:
        values: One row of replicates per seed.
        seed: Seed of the draw; equal for arms that are compared.

    Returns:
        Replicates of the mean over seeds.
    """
    count, replicates = values.shape
    drawn = np.random.default_rng(seed).integers(count, size=(count, replicates))
    return np.take_along_axis(values, drawn, axis=0).mean(0)


def p_value(differences: Float[np.ndarray, " replicate"]) -> float | None:
    """Two-sided bootstrap p value of "no difference": twice the share of replicates on the far side of 0.

    Args:
        differences: Replicates of a paired difference; NaN where undefined.

    Returns:
        A number in (0, 1], never below 2 / (replicates + 1); ``None`` when fewer than half are defined.

    Example:
        >>> p_value(np.array([0.1, 0.2, 0.3]))
        0.5
    """
    defined = _defined(differences)
    if defined is None:
        return None
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(defined) + 1))


def _defined(samples: np.ndarray) -> np.ndarray | None:
    defined = samples[~np.isnan(samples)]
    return defined if len(defined) and 2 * len(defined) >= len(samples) else None


def entry(samples: Float[np.ndarray, " replicate"] | None, reason: str | None) -> dict[str, Any]:
    """Write a value with its interval down, or why there is none.

    Args:
        samples: The value itself, then its bootstrap replicates; ``None`` with a reason.
        reason: Why there is no value.
    """
    if samples is None:
        return {"value": None, "ci_low": None, "ci_high": None, "reason": reason}
    low, high = interval(samples[1:]) or (None, None)
    few = "no interval: fewer than half of the bootstrap replicates are defined"
    return {"value": float(samples[0]), "ci_low": low, "ci_high": high, "reason": None if low is not None else few}
