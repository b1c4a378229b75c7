"""The contenders of a study: each turns a label fraction into probabilities for the test images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from adaptmed.adaptor.features import adaptor_variants, frozen_variants
from adaptmed.adaptor.fresh import fresh_fusion
from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides
from adaptmed.fusion import Fusion
from adaptmed.heads.probe import Probe, fit_best_probe
from adaptmed.runs.precision import Precision
from adaptmed.study.classification.rows import StudyRows
from adaptmed.tasks.classification.head import finetune_head
from adaptmed.training.settings import FinetuneSettings

Variants = Mapping[str, np.ndarray]
"""Features of the same rows, ``(n, width)`` each, by the name of the variant."""


@dataclass(frozen=True)
class Outcome:
    """What an arm gives at one fraction.

    Attributes:
        probabilities: Of the test images.
        reasons: Number of a label or class -> why it is undefined.
        trainable_parameters: Everything trained for this arm, pre-training included.
    """

    probabilities: Float[np.ndarray, "m output"]
    reasons: Mapping[int, str]
    trainable_parameters: int


Arm = Callable[[Int[np.ndarray, " k"], int], Outcome]
"""From places in ``StudyRows.train`` and a seed to an outcome."""


ProbeOf = Callable[[Int[np.ndarray, " k"]], tuple[Probe, str]]
"""From places in ``StudyRows.train`` to a probe and the variant of the features it reads."""


def best_probe(rows: StudyRows, train: Variants, *, prior: Float[np.ndarray, "output _"] | None = None) -> ProbeOf:
    """The linear probe of any fraction: of several variants the one with the best log-loss inside the fraction.

    It depends on the fraction alone, so that seeds that choose the same rows (at 100 %) and arms that start from the
    same probe share it; every probe is fitted once.

    Args:
        rows: The study's rows.
        train: Features of ``rows.train`` by variant.
        prior: Weights that the probe is pulled towards instead of 0, as in ``fit_best_probe``.
    """
    fitted: dict[bytes, tuple[Probe, str]] = {}

    def probe(places: Int[np.ndarray, " k"]) -> tuple[Probe, str]:
        key = places.tobytes()
        if key not in fitted:
            chosen = {name: features[places] for name, features in train.items()}
            labels, patients = rows.labels[places], rows.patients[places]
            fitted[key] = fit_best_probe(chosen, labels, patients, classes=rows.classes, prior=prior)
        return fitted[key]

    return probe


def probe_arm(probe_of: ProbeOf, test: Variants, *, pretrained: int = 0) -> Arm:
    """A linear probe on fixed features.

    Args:
        probe_of: Fits it.
        test: Features of the study's test rows by variant.
        pretrained: Parameters that were trained to make the features.
    """

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        del seed
        probe, name = probe_of(places)
        return Outcome(probe.predict(test[name]), probe.reasons, probe.parameters + pretrained)

    return arm


def trained_arm(rows: StudyRows, bank: Bank, fusion: Fusion, probe_of: ProbeOf, *, precision: Precision) -> Arm:
    """The probe of the arm ``adaptor`` and the fusion under it, tuned together."""
    settings = FinetuneSettings(precision=precision)

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        options: dict[str, Any] = {"start": probe_of(places), "settings": settings}
        return _tune(rows, bank, fusion, places, seed, train_fusion=True, **options)

    return arm


def head_arm(rows: StudyRows, bank: Bank, fusion: Fusion, *, pretrained: int, precision: Precision) -> Arm:
    """The paper's two-layer head on a frozen fusion."""
    settings = FinetuneSettings(hidden=512, precision=precision)

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        outcome = _tune(rows, bank, fusion, places, seed, train_fusion=False, settings=settings)
        return replace(outcome, trainable_parameters=outcome.trainable_parameters + pretrained)

    return arm


def untrained_arm(rows: StudyRows, bank: Bank, fresh: Callable[[int], Fusion]) -> Arm:
    """The probe of the arm ``adaptor`` on a fusion that was never trained, with other weights for every seed."""
    made: dict[int, Arm] = {}

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        if seed not in made:
            fusion = fresh(seed)
            train, test = (adaptor_variants(fusion, bank, part) for part in (rows.train, rows.test))
            made[seed] = probe_arm(best_probe(rows, train), test)
        return made[seed](places, seed)

    return arm


def untrained_fusion(adaptor: Adaptor, bank: Bank, seed: int) -> Fusion:
    """An untrained fusion of the adaptor's shape, its input statistics fitted on the same training rows."""
    rows = rows_with_sides(bank, "train", texts=adaptor.fusion.reads_texts)
    return fresh_fusion(adaptor, bank, rows, seed=seed)


def frozen_arm(rows: StudyRows, bank: Bank, *, pretrained: int = 0) -> Arm:
    """The frozen probe: the best of CLS, mean and both, chosen inside the fraction."""
    train, test = (frozen_variants(bank, part) for part in (rows.train, rows.test))
    return probe_arm(best_probe(rows, train), test, pretrained=pretrained)


def adaptor_arms(
    rows: StudyRows,
    bank: Bank,
    adaptor: Adaptor,
    *,
    prior: Float[np.ndarray, "output width"] | None,
    precision: Precision,
) -> dict[str, Callable[[], Arm]]:
    """The arms that stand on an adaptor by name, each made when it is first needed.

    Args:
        rows: The study's rows.
        bank: The Tokens.
        adaptor: With the pre-trained fusion.
        prior: Prompt directions in the embedding space; ``None`` leaves the text-informed probe out.
        precision: Of arms that train.
    """
    fusion, trained = adaptor.fusion, trainable_parameters(adaptor.fusion)

    @cache
    def variants() -> tuple[Variants, Variants]:
        return adaptor_variants(fusion, bank, rows.train), adaptor_variants(fusion, bank, rows.test)

    @cache
    def probe_of() -> ProbeOf:
        return best_probe(rows, variants()[0])

    arms: dict[str, Callable[[], Arm]] = {
        "adaptor-untrained": lambda: untrained_arm(rows, bank, lambda seed: untrained_fusion(adaptor, bank, seed)),
        "adaptor": lambda: probe_arm(probe_of(), variants()[1], pretrained=trained),
        "adaptor-head": lambda: head_arm(rows, bank, fusion, pretrained=trained, precision=precision),
        "adaptor-trained": lambda: trained_arm(rows, bank, fusion, probe_of(), precision=precision),
    }
    if prior is not None:
        arms["text-informed probe"] = lambda: probe_arm(
            best_probe(rows, variants()[0], prior=prior), variants()[1], pretrained=trained
        )
    return arms


def _tune(
    rows: StudyRows, bank: Bank, fusion: Fusion, places: Int[np.ndarray, " k"], seed: int, **options: Any
) -> Outcome:
    train, labels, patients = rows.train[places], rows.labels[places], rows.patients[places]
    tuned = finetune_head(fusion, bank, train, labels, patients, classes=rows.classes, seed=seed, **options)
    return Outcome(tuned.predict(bank, rows.test).double().numpy(), tuned.outputs.reasons, tuned.trainable_parameters)
