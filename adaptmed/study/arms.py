"""The contenders of a study: each turns a label fraction into probabilities for the test images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int

from adaptmed.bank import Bank
from adaptmed.fusion import Fusion
from adaptmed.heads.probe import Probe, fit_best_probe, fit_text_informed_probe
from adaptmed.study.rows import StudyRows
from adaptmed.tasks.classification import FinetuneSettings, finetune_head
from adaptmed.tasks.retrieval import embed_rows

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


def probe_arm(rows: StudyRows, train: Variants, test: Variants, *, pretrained: int = 0) -> Arm:
    """A linear probe on fixed features: of several variants the one with the best log-loss inside the fraction.

    The probe of a fraction depends on the fraction alone, so that seeds that choose the same rows (at 100 %) share it.

    Args:
        rows: The study's rows.
        train: Features of ``rows.train`` by variant.
        test: Features of ``rows.test`` by variant.
        pretrained: Parameters that were trained to make the features.
    """
    fitted: dict[bytes, Outcome] = {}

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        del seed
        key = places.tobytes()
        if key not in fitted:
            chosen = {name: features[places] for name, features in train.items()}
            probe, name = fit_best_probe(chosen, rows.labels[places], rows.patients[places], classes=rows.classes)
            fitted[key] = _outcome(probe, test[name], pretrained)
        return fitted[key]

    return arm


def text_informed_arm(
    rows: StudyRows,
    train: Float[np.ndarray, "n width"],
    test: Float[np.ndarray, "m width"],
    prior: Float[np.ndarray, "output width"],
    *,
    pretrained: int,
) -> Arm:
    """A linear probe on the adaptor's embedding, pulled towards the prompts' embeddings instead of towards 0."""
    fitted: dict[bytes, Outcome] = {}

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        del seed
        key = places.tobytes()
        if key not in fitted:
            probe = fit_text_informed_probe(train[places], rows.labels[places], rows.patients[places], prior)
            fitted[key] = _outcome(probe, test, pretrained)
        return fitted[key]

    return arm


def tuned_arm(
    rows: StudyRows, bank: Bank, fusion: Fusion, *, train_fusion: bool, hidden: int | None = None, pretrained: int = 0
) -> Arm:
    """A head tuned by gradient: with the fusion (``train_fusion``), or the paper's two-layer head on a frozen one."""

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        tuned = finetune_head(
            fusion,
            bank,
            rows.train[places],
            rows.labels[places],
            rows.patients[places],
            train_fusion=train_fusion,
            classes=rows.classes,
            seed=seed,
            settings=FinetuneSettings(hidden=hidden),
        )
        count = tuned.trainable_parameters + (0 if train_fusion else pretrained)
        return Outcome(tuned.predict(bank, rows.test).double().numpy(), tuned.reasons, count)

    return arm


def untrained_arm(rows: StudyRows, bank: Bank, fresh: Callable[[int], Fusion]) -> Arm:
    """The probe of the arm ``adaptor`` on a fusion that was never trained, with other weights for every seed."""
    made: dict[int, Arm] = {}

    def arm(places: Int[np.ndarray, " k"], seed: int) -> Outcome:
        if seed not in made:
            made[seed] = embedding_arm(rows, bank, fresh(seed))
        return made[seed](places, seed)

    return arm


def embedding_arm(rows: StudyRows, bank: Bank, fusion: Fusion, *, pretrained: int = 0) -> Arm:
    """A linear probe on a frozen fusion's embedding of the image alone, or on it and the tokens it was made from.

    The plain pooled path goes around the fusion: with many labels it holds what reports do not say. As for the frozen
    probe, which of the two it is gets chosen inside the fraction.
    """
    train, test = (adaptor_variants(fusion, bank, part) for part in (rows.train, rows.test))
    return probe_arm(rows, train, test, pretrained=pretrained)


def adaptor_variants(fusion: Fusion, bank: Bank, rows: Int[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """What an adaptor offers a probe: its embedding, and its embedding beside CLS and mean of the frozen tokens."""
    embedding, frozen = embed_images(fusion, bank, rows), frozen_variants(bank, rows)["CLS + mean"]
    return {"embedding": embedding, "embedding + CLS + mean": np.concatenate([embedding, frozen], axis=1)}


def embed_images(fusion: Fusion, bank: Bank, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n width"]:
    """Embeddings of images alone, as numpy."""
    return embed_rows(fusion, bank, rows, modality="image").numpy()


def frozen_variants(bank: Bank, rows: Int[np.ndarray, " n"]) -> dict[str, Float[np.ndarray, "n _"]]:
    """What a frozen encoder offers a probe: CLS (or the model's own pool), the mean of its grid, and both.

    Every variant exists in every layout; where two are the same (a CNN pools by the mean) the probe is unaffected.
    """
    cls, mean = [], []
    for part in np.array_split(rows, max(1, len(rows) // 512)):
        tokens = bank.image_tokens(part, dtype=torch.float32)
        cls.append(tokens.values[:, 0] if tokens.prefix else tokens.pooled)
        mean.append(tokens.values[:, tokens.prefix :].mean(dim=1))
    first, second = torch.cat(cls).numpy(), torch.cat(mean).numpy()
    return {"CLS": first, "mean": second, "CLS + mean": np.concatenate([first, second], axis=1)}


def frozen_arm(rows: StudyRows, bank: Bank) -> Arm:
    """The frozen probe: the best of CLS, mean and both, chosen inside the fraction."""
    return probe_arm(rows, frozen_variants(bank, rows.train), frozen_variants(bank, rows.test))


def adaptor_arms(
    rows: StudyRows,
    bank: Bank,
    fusion: Fusion,
    *,
    fresh: Callable[[int], Fusion],
    prior: Float[np.ndarray, "output width"] | None,
    trained: int,
) -> dict[str, Callable[[], Arm]]:
    """All arms by name, each made when it is first needed.

    Args:
        rows: The study's rows.
        bank: The Tokens.
        fusion: The pre-trained fusion.
        fresh: From a seed to an untrained fusion of the same shape.
        prior: Prompt directions in the embedding space; ``None`` leaves the text-informed probe out.
        trained: Parameters that pre-training has trained.
    """
    arms: dict[str, Callable[[], Arm]] = {
        "frozen": partial(frozen_arm, rows, bank),
        "adaptor-untrained": partial(untrained_arm, rows, bank, fresh),
        "adaptor": partial(embedding_arm, rows, bank, fusion, pretrained=trained),
        "adaptor-head": partial(tuned_arm, rows, bank, fusion, train_fusion=False, hidden=512, pretrained=trained),
        "adaptor-trained": partial(tuned_arm, rows, bank, fusion, train_fusion=True),
    }
    if prior is not None:

        def informed() -> Arm:
            train, test = (embed_images(fusion, bank, part) for part in (rows.train, rows.test))
            return text_informed_arm(rows, train, test, prior, pretrained=trained)

        arms["text-informed probe"] = informed
    return arms


def _outcome(probe: Probe, test: Float[np.ndarray, "m d"], pretrained: int) -> Outcome:
    return Outcome(probe.predict(test), probe.reasons, probe.parameters + pretrained)
