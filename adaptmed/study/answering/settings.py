"""What a study of answers runs over."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices

BLIND = ("majority", "lookup", "question")
"""Arms that never see an image: what is known of the answers, of the same question, of all questions."""
FROZEN, FRESH = "frozen", "no pre-training"
WITHOUT_ADAPTOR = (*BLIND, FROZEN)
COORDINATED = "+gm-coord"
"""Ends the name of an arm whose gradients of image and text wait for each other."""
BASELINES = ("question", FROZEN, FRESH)


@dataclass(frozen=True, kw_only=True)
class AnsweringStudy:
    """What a study of answers runs over.

    Attributes:
        fractions: Shares of the training patients (of VQA-RAD: pictures), in (0, 1].
        seeds: Number of seeds: 0, 1, ...; each chooses its own fraction and its own fresh weights.
        arms: Names of arms; ``None`` is all that can run.
        training: How every trained arm is trained; its fraction, seed and coordination come from the cell. No row of
            ``validate`` is read, since nothing may be chosen on answers outside the fraction.
        replicates: Bootstrap replicates.
        allow_overlap: Go on although test patients were seen, as in splits by question.

    Raises:
        InputError: A value is none of these.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 5
    arms: tuple[str, ...] | None = None
    training: PairChoices = field(default_factory=lambda: PairChoices(task=ANSWERING))
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
        if self.training.task != ANSWERING or self.training.tunes_encoders:
            got = self.training.task if self.training.task != ANSWERING else "LoRA inside an encoder"
            fix = "Tune encoders with `adaptmed finetune --task answering --lora ...`."
            raise InputError(sentence("training", expected="answers on a bank's Tokens", got=got, fix=fix))

    def chosen(self, able: tuple[str, ...]) -> tuple[str, ...]:
        """The arms that run.

        Args:
            able: Those that the given runs allow, in their order.

        Raises:
            InputError: Another one was asked for, or one twice.
        """
        if self.arms is None:
            return able
        unknown = [name for name in self.arms if name not in able]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            expected, got = f"distinct names among {', '.join(able)}", ", ".join(unknown or self.arms) or "none"
            fix = "Pass --adaptor RUN for the arms of a pre-training; gm-coord needs the fusion co."
            raise InputError(sentence("arms", expected=expected, got=got, fix=fix))
        return self.arms

    def as_json(self) -> dict[str, Any]:
        """Everything that decides a cell, as JSON values."""
        facts = {name: value for name, value in asdict(self).items() if name not in ("seeds", "fractions")}
        for name in ("fraction", "seed", "coordination"):
            del facts["training"][name]
        return json.loads(json.dumps(facts))
