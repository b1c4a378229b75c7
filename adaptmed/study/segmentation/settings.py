"""What a study of segmentation runs over."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.tasks.segmentation.settings import SegmentationSettings

ARMS = ("empty", "unet", "frozen", "adaptor", "adaptor-trained")
WITHOUT_ADAPTOR = ("empty", "unet", "frozen")
TUNED = "adaptor+lora"
KNOWN = (*ARMS, "adaptor-untrained", TUNED)
BASELINES = ("frozen", "unet", "empty")


@dataclass(frozen=True, kw_only=True)
class SegmentationStudy:
    """What a study of segmentation runs over.

    Attributes:
        fractions: Shares of the training patients with masks, in (0, 1].
        seeds: Number of seeds: 0, 1, ...; each chooses its own fraction and its own fresh weights.
        arms: Names among ``KNOWN``; ``None`` is all that can run but ``adaptor-untrained``.
        training: How every arm is trained.
        learning_rates: Rates that every trained arm tries, equally many trials each. With several, a third of the
            fraction's patients is held out, the rate with the best Dice on positives there is taken, and the arm is
            trained again on the whole fraction.
        labels: Value → name of what may stand in masks; ``None`` takes all that stand in those of ``train``.
        replicates: Bootstrap replicates.
        allow_overlap: Go on although test patients were seen in pre-training.

    Raises:
        InputError: A value is none of these.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 3
    arms: tuple[str, ...] | None = None
    training: SegmentationSettings = field(default_factory=SegmentationSettings)
    learning_rates: tuple[float, ...] = (1e-3,)
    labels: Mapping[int, str] | None = None
    replicates: int = 1000
    allow_overlap: bool = False

    def __post_init__(self) -> None:
        shares = set(self.fractions)
        if not shares or len(shares) < len(self.fractions) or min(shares) <= 0 or max(shares) > 1:
            expected, fix = "distinct shares in (0, 1]", "Try 0.01 0.1 1."
            raise InputError(sentence("fractions", expected=expected, got=self.fractions, fix=fix))
        for name in ("seeds", "replicates"):
            if getattr(self, name) < 1:
                raise InputError(sentence(name, expected="at least 1", got=getattr(self, name), fix="Raise it."))
        rates = set(self.learning_rates)
        if not rates or len(rates) < len(self.learning_rates) or not min(rates) > 0:
            expected, fix = "distinct rates above 0", "Try 1e-3."
            raise InputError(sentence("learning_rates", expected=expected, got=self.learning_rates, fix=fix))
        arms = self.arms
        unknown = [name for name in arms or () if name not in KNOWN]
        if arms is not None and (unknown or not arms or len(set(arms)) != len(arms)):
            expected, got = f"distinct names among {', '.join(KNOWN)}", ", ".join(unknown or arms) or "none"
            raise InputError(sentence("arms", expected=expected, got=got, fix="Check the spelling."))

    def chosen(self, *, adaptor: bool, tuned: bool) -> tuple[str, ...]:
        """The arms that run with or without an adaptor and a tuned bank.

        Raises:
            InputError: An arm was asked for that needs one, and there is none.
        """
        able = {*WITHOUT_ADAPTOR, *((*ARMS, "adaptor-untrained") if adaptor else ()), *((TUNED,) if tuned else ())}
        if self.arms is None:
            return tuple(name for name in (*ARMS, TUNED) if name in able)
        lacking = [name for name in self.arms if name not in able]
        if lacking:
            got = f"{', '.join(lacking)} without {'a tuned bank' if adaptor else 'an adaptor'}"
            fix = "Pass --adaptor RUN" + (
                ", and --tuned-bank and --tuned-adaptor for adaptor+lora." if adaptor else "."
            )
            raise InputError(sentence("arms", expected="arms that can run", got=got, fix=fix))
        return self.arms

    def as_json(self) -> dict[str, Any]:
        """Everything that decides a cell, as JSON values; of the rates these are ``learning_rates`` alone."""
        named = None if self.labels is None else {str(value): name for value, name in self.labels.items()}
        facts = {name: value for name, value in asdict(self).items() if name not in ("seeds", "fractions")}
        del facts["training"]["learning_rate"]
        return json.loads(json.dumps(facts | {"labels": named}))
