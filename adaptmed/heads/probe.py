"""Linear probes on frozen features, every choice made by cross-validation inside the labelled fraction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.special import expit, softmax
from sklearn.decomposition import PCA

from adaptmed.errors import InputError, sentence
from adaptmed.heads.fraction import Axes, Block, Fraction, blocks, grouped_folds
from adaptmed.heads.logistic import Problem, choose_strength, solve

STRENGTHS = tuple(float(strength) for strength in np.logspace(-3, 3, 7))
"""Candidates for scikit-learn's ``C``, times the feature width: standardised rows have a squared norm near it."""
DEFAULT_STRENGTH = 1.0
"""Taken (divided by the width like the others) where the fraction allows fewer than two folds."""


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe, in the space of the features as they were given.

    Attributes:
        weight: One row per label or class; NaN where there is a reason (multi-label), 0 for a missing class.
        bias: One number per label or class; NaN where there is a reason (multi-label), -inf for a missing class.
        multiclass: Whether the outputs are classes that exclude each other.
        reasons: Why a label has no prediction, or a class the probability 0, by its index.
        strengths: The chosen inverse penalties (scikit-learn's ``C``), one per fitted label, or one for all classes.
        loss: Cross-validated log-loss inside the fraction, the mean over the labels that allow folds; NaN without.

    Example:
        >>> features = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> probe = fit_probe(features, np.array([[0.0], [0.0], [1.0], [1.0]]), np.arange(4))
        >>> probe.predict(features).round().ravel().tolist(), probe.parameters
        ([0.0, 0.0, 1.0, 1.0], 2)
    """

    weight: Float[np.ndarray, "output d"]
    bias: Float[np.ndarray, " output"]
    multiclass: bool
    reasons: Mapping[int, str]
    strengths: tuple[float, ...]
    loss: float

    def predict(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n output"]:
        """Return probabilities: NaN for labels with a reason, 0 for classes missing in the fraction."""
        logits = np.asarray(features, dtype=np.float64) @ self.weight.T + self.bias
        return softmax(logits, axis=1) if self.multiclass else expit(logits)

    def linear(self) -> tuple[Float[np.ndarray, "output d"], Float[np.ndarray, " output"]]:
        """Return weight and bias, as a linear head wants them; see the attributes for labels that have none."""
        return self.weight, self.bias

    @property
    def parameters(self) -> int:
        """How many numbers were fitted; labels and classes with a reason have none."""
        return (self.weight.shape[0] - len(self.reasons)) * (self.weight.shape[1] + 1)


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Shaped[np.ndarray, "n *label"],
    groups: Shaped[np.ndarray, " n"],
    *,
    classes: int | None = None,
    prior: Float[np.ndarray, "output _"] | None = None,
    seed: int = 0,
) -> Probe:
    """Fit logistic regressions with an L2 penalty whose strength is cross-validated inside the fraction.

    Multi-label and binary: one regression per label, on the rows that have it. Multi-class: one softmax regression.
    Features are standardised on the rows given. The strength has the smallest log-loss over stratified folds that
    keep a patient together: 5 (3 above 1,000 rows), fewer when a class has fewer patients. The order of the rows does
    not matter, and the folds depend on labels, groups and seed alone, so that every arm is cut the same way.

    With ``prior`` the probe is text-informed: the penalty is on ``weight - scale * prior`` (in standardised features),
    with one scale >= 0 per label, or one for all classes, fitted with the weights. A strong penalty leaves the
    zero-shot ranking ``features @ prior`` with a fitted scale and bias, a weak one the plain probe. A prior that ranks
    backwards gets the scale 0. The idea is that of LP++ (arXiv 2404.02285) and SS-Text (arXiv 2506.17500); unlike
    them the scale has no closed form and the strength is cross-validated.

    Args:
        features: The fraction's features, finite.
        labels: ``(n, label)`` of 0, 1 and NaN (not labelled), or ``(n,)`` integer classes with -1 (not labelled).
        groups: The patient of each row.
        classes: Number of classes; without it the largest class present + 1. Multi-class only.
        prior: Per label the positive minus the negative prompt embedding, or per class its prompt embedding, in the
            space of the first features; what the features have beyond its width is pulled towards 0.
        seed: Seed of the folds.

    Returns:
        The probe. A label without a positive or without a negative gets a reason and predicts NaN; a class that is
        missing gets a reason and the probability 0; with fewer than two classes every class has a reason and is NaN.

    Raises:
        InputError: Lengths differ, a feature is not finite, a label is none of the values above, or the prior's shape
            does not fit.
    """
    fraction = Fraction.of(features, labels, groups)
    outputs = _classes(fraction, classes) if fraction.labels.ndim == 1 else fraction.labels.shape[1]
    directions = np.zeros((outputs, fraction.features.shape[1]))
    if prior is not None:
        if np.ndim(prior) != 2 or len(prior) != outputs or prior.shape[1] > directions.shape[1]:
            expected = f"one row per label or class ({outputs}) of width {directions.shape[1]} or less"
            fix = "Embed one prompt set per output."
            raise InputError(sentence("prior", expected=expected, got=np.shape(prior), fix=fix))
        directions[:, : prior.shape[1]] = prior
    return _fit(fraction, directions, seed)


def fit_best_probe(
    variants: Mapping[str, Float[np.ndarray, "n _"]],
    labels: Shaped[np.ndarray, "n *label"],
    groups: Shaped[np.ndarray, " n"],
    *,
    classes: int | None = None,
    prior: Float[np.ndarray, "output _"] | None = None,
    seed: int = 0,
) -> tuple[Probe, str]:
    """Fit one probe per variant of the features and keep the one with the smallest cross-validated log-loss.

    Args:
        variants: Features by name, for example of CLS, mean and both; the same rows in each.
        labels: As in ``fit_probe``.
        groups: The patient of each row.
        classes: As in ``fit_probe``.
        prior: As in ``fit_probe``, in the space of the features that every variant begins with.
        seed: Seed of the folds, which are the same for every variant.

    Returns:
        The probe and the name of its variant, chosen once for all labels; the first where no label allows folds.

    Raises:
        InputError: As ``fit_probe``, or there is no variant.
    """
    if not variants:
        raise InputError(sentence("variants", expected="one or more", got="none", fix="Pass for example {'mean': x}."))
    probes = {
        name: fit_probe(features, labels, groups, classes=classes, prior=prior, seed=seed)
        for name, features in variants.items()
    }
    name = min(probes, key=lambda name: np.nan_to_num(probes[name].loss, nan=np.inf))
    return probes[name], name


def pca_whitened(
    train_features: Float[np.ndarray, "n d"], features: Float[np.ndarray, "m d"], components: int
) -> Float[np.ndarray, "m components"]:
    """Project features on the principal axes of the training images and scale each to unit variance; needs no labels.

    Args:
        train_features: Features of all images of the train split.
        features: Features to transform.
        components: How many axes, at most ``min(n, d)``.

    Raises:
        InputError: More components than the training features allow.
    """
    limit = min(train_features.shape)
    if not 1 <= components <= limit:
        fix = "Ask for fewer, or give more training images."
        raise InputError(sentence("components", expected=f"1 to {limit}", got=components, fix=fix))
    whitening = PCA(components, whiten=True, svd_solver="full").fit(np.asarray(train_features, dtype=np.float64))
    return whitening.transform(np.asarray(features, dtype=np.float64))


def _fit(fraction: Fraction, directions: Float[np.ndarray, "output d"], seed: int) -> Probe:
    multiclass, outputs = fraction.labels.ndim == 1, len(directions)
    weight, bias = np.full((outputs, fraction.features.shape[1]), np.nan), np.full(outputs, np.nan)
    axes, fitted, reasons = Axes.of(fraction.features), [], {}
    for block in blocks(fraction.labels):
        if multiclass:
            absent = np.setdiff1d(np.arange(outputs), block.outputs)
            reasons = {int(index): "no row of this class in the fraction" for index in absent}
            if len(block.outputs) > 1:
                weight[absent], bias[absent] = 0.0, -np.inf
            else:
                reasons = dict.fromkeys(range(outputs), "fewer than two classes in the fraction")
                continue
        elif len(np.unique(block.codes)) < 2:
            reasons[int(block.outputs[0])] = _reason(block)
            continue
        weight[block.outputs], bias[block.outputs], choice = _fit_block(
            fraction, axes, block, directions[block.outputs], seed
        )
        fitted.append(choice)
    losses = [loss for _, loss in fitted if not np.isnan(loss)]
    loss = float(np.mean(losses)) if losses else float("nan")
    return Probe(weight, bias, multiclass, reasons, tuple(strength for strength, _ in fitted), loss)


def _fit_block(
    fraction: Fraction, axes: Axes, block: Block, direction: Float[np.ndarray, "m d"], seed: int
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"], tuple[float, float]]:
    """Return weight and bias of a block's outputs, and the chosen strength with its loss."""
    width = fraction.features.shape[1]
    scores = (fraction.features[block.rows] - axes.mean) @ direction.T
    size = float(scores.std(axis=0).mean()) or 1.0
    problem = Problem(axes.design[block.rows], block.targets, scores / size)
    folds = grouped_folds(block.codes, fraction.groups[block.rows], seed=seed)
    choice = (DEFAULT_STRENGTH / width, float("nan"))
    if folds:
        choice = choose_strength(problem, folds, [strength / width for strength in STRENGTHS])
    solution = solve(problem, strength=choice[0])
    weight, bias = axes.original(solution.coefficients)
    informed = solution.scale / size * direction
    return weight + informed, bias - informed @ axes.mean, choice


def _classes(fraction: Fraction, classes: int | None) -> int:
    present = int(fraction.labels.max()) + 1
    if classes is not None and classes < present:
        fix = "Give the number of all classes, or renumber them from 0."
        raise InputError(sentence("classes", expected=f"{present} or more", got=classes, fix=fix))
    return present if classes is None else classes


def _reason(block: Block) -> str:
    if not len(block.rows):
        return "no row of the fraction has this label"
    return "no positive in the fraction" if block.codes[0] == 0 else "no negative in the fraction"
