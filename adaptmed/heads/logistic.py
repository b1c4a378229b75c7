"""L2-penalised logistic regression along a path of strengths, with an optional prior score per output.

The features must be rotated to their principal axes: the penalty does not see a rotation, and on these axes the
Hessian is nearly diagonal, so that L-BFGS on rescaled coordinates needs some ten steps at every strength.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import Bounds, minimize
from scipy.special import expit, logsumexp, softmax

Fold = tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]
SCALE_VARIANCE = 100.0
"""Variance of the Gaussian prior of the scale of the prior scores: weak, it only keeps the scale finite."""

RISES = 2
"""Weaker penalties that may be worse than the best one before the rest is left out."""


@dataclass(frozen=True)
class Problem:
    """One logistic regression: ``logits = design @ coefficients.T + scale * scores``.

    Attributes:
        design: Centred features on their principal axes, and a last column of ones for the bias.
        targets: One column of 0 and 1 (sigmoid), or one column per class, one-hot (softmax).
        scores: What is known before training, for example zero-shot scores; zeros when nothing is.
    """

    design: Float[np.ndarray, "n axis"]
    targets: Float[np.ndarray, "n output"]
    scores: Float[np.ndarray, "n output"]

    def select(self, rows: Int[np.ndarray, " m"]) -> Self:
        """Return the same problem on some of its rows."""
        return replace(self, design=self.design[rows], targets=self.targets[rows], scores=self.scores[rows])


@dataclass(frozen=True)
class Solution:
    """Coefficients (the bias is the last column) and the scale of the prior scores, never negative."""

    coefficients: Float[np.ndarray, "output axis"]
    scale: float

    def losses(self, problem: Problem) -> Float[np.ndarray, " n"]:
        """Log-loss of every row of ``problem``, in nats."""
        logits = problem.design @ self.coefficients.T + self.scale * problem.scores
        return _log_losses(logits, problem.targets)


@dataclass(frozen=True)
class _Rescaled:
    """A problem on coordinates of about the same curvature.

    Attributes:
        problem: What is fitted.
        penalty: One over the strength for every coefficient, 0 for the bias.
        steps: A coefficient over its coordinate, the same for every output.
        scale_step: The scale over its coordinate.
    """

    problem: Problem
    penalty: Float[np.ndarray, " axis"]
    steps: Float[np.ndarray, "output axis"]
    scale_step: float

    @classmethod
    def of(cls, problem: Problem, strength: float) -> "_Rescaled":
        """Choose the coordinates."""
        outputs, axes = problem.targets.shape[1], problem.design.shape[1]
        penalty = np.append(np.full(axes - 1, 1 / strength), 0.0)
        steps, scale_step = _preconditioner(problem, penalty)
        return cls(problem, penalty, np.tile(steps, (outputs, 1)), scale_step)

    def parameters(self, solution: Solution) -> Float[np.ndarray, " parameter"]:
        """Return the coordinates of a solution in one vector, the scale last."""
        return np.append((solution.coefficients / self.steps).ravel(), solution.scale / self.scale_step)

    def solution(self, theta: Float[np.ndarray, " parameter"]) -> Solution:
        """Undo :meth:`parameters`."""
        return Solution(theta[:-1].reshape(self.steps.shape) * self.steps, float(theta[-1] * self.scale_step))

    def objective(self, theta: Float[np.ndarray, " parameter"]) -> tuple[float, Float[np.ndarray, " parameter"]]:
        """Return what is minimised, and its gradient."""
        problem = self.problem
        coefficients, scale = theta[:-1].reshape(self.steps.shape) * self.steps, theta[-1] * self.scale_step
        logits = problem.design @ coefficients.T + scale * problem.scores
        residual = (expit(logits) if logits.shape[1] == 1 else softmax(logits, axis=1)) - problem.targets
        loss = _log_losses(logits, problem.targets).sum()
        loss += ((self.penalty * coefficients**2).sum() + scale**2 / SCALE_VARIANCE) / 2
        gradient = (residual.T @ problem.design + self.penalty * coefficients) * self.steps
        scale_gradient = ((residual * problem.scores).sum() + scale / SCALE_VARIANCE) * self.scale_step
        return float(loss), np.append(gradient.ravel(), scale_gradient)


def solve(problem: Problem, *, strength: float, start: Solution | None = None, tolerance: float = 1e-6) -> Solution:
    """Minimise ``sum of log-losses + |coefficients|² / (2 strength) + scale² / (2 SCALE_VARIANCE)``, scale >= 0.

    The bias is not penalised; ``strength`` is scikit-learn's ``C``.

    Args:
        problem: What is fitted.
        strength: Above 0; the larger, the weaker the penalty.
        start: A solution to start from, of a neighbouring strength.
        tolerance: Largest entry of the gradient on the rescaled coordinates at which to stop.

    Returns:
        The minimum; its objective is too large by about half the squared norm of that gradient.
    """
    rescaled = _Rescaled.of(problem, strength)
    theta = rescaled.parameters(start or Solution(np.zeros_like(rescaled.steps), 0.0))
    lower = np.append(np.full(theta.size - 1, -np.inf), 0.0)
    options = {"maxiter": 1000, "maxfun": 2000, "maxcor": 20, "gtol": tolerance, "ftol": 1e-15}
    objective, bounds = rescaled.objective, Bounds(lower, np.inf)
    found = minimize(objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return rescaled.solution(found.x)


def choose_strength(problem: Problem, folds: Sequence[Fold], strengths: Sequence[float]) -> tuple[float, float]:
    """Choose the strength with the smallest log-loss on held-out rows, every row held out once.

    The walk from strong to weak penalties ends once ``RISES`` of them in a row were worse than the best: weaker ones
    overfit further, and they are the slow ones. A held-out row of a class that its training rows lack is not scored.

    Args:
        problem: All rows of the fraction.
        folds: Row numbers to train on and to score, at least one pair.
        strengths: Rising; each solution starts from the one before.

    Returns:
        The strength and its mean log-loss in nats; of equal ones the smallest strength.
    """
    parts = [_part(problem, *fold) for fold in folds]
    starts: list[Solution | None] = [None] * len(parts)
    best, least, rises = strengths[0], np.inf, 0
    for strength in strengths:
        solutions = [
            solve(training, strength=strength, start=start, tolerance=1e-3)
            for (training, _), start in zip(parts, starts, strict=True)
        ]
        starts = [*solutions]
        losses = [solution.losses(scored) for solution, (_, scored) in zip(solutions, parts, strict=True)]
        loss = float(np.concatenate(losses).mean())
        if loss < least:
            best, least, rises = strength, loss, 0
        else:
            rises += 1
        if rises == RISES:
            break
    return best, least


def _part(problem: Problem, train: Int[np.ndarray, " n"], held_out: Int[np.ndarray, " m"]) -> tuple[Problem, Problem]:
    """The rows to train on, and those to score."""
    training, scored = problem.select(train), problem.select(held_out)
    if training.targets.shape[1] > 1:
        known = scored.targets @ training.targets.any(axis=0) > 0
        scored = scored.select(np.flatnonzero(known))
    return training, scored


def _preconditioner(problem: Problem, penalty: Float[np.ndarray, " axis"]) -> tuple[Float[np.ndarray, " axis"], float]:
    """One over the root of the Hessian's diagonal at the mean prediction."""
    mean = problem.targets.mean(axis=0)
    spread = max(float((mean * (1 - mean)).mean()), 1e-3)
    steps = 1 / np.sqrt(spread * (problem.design**2).sum(axis=0) + penalty)
    return steps, float(1 / np.sqrt(spread * (problem.scores**2).sum() + 1 / SCALE_VARIANCE))


def _log_losses(
    logits: Float[np.ndarray, "n output"], targets: Float[np.ndarray, "n output"]
) -> Float[np.ndarray, " n"]:
    partition = np.logaddexp(0.0, logits[:, 0]) if logits.shape[1] == 1 else logsumexp(logits, axis=1)
    return partition - (targets * logits).sum(axis=1)
