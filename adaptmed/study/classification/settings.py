"""What a study of labels or classes runs over."""

from dataclasses import dataclass

from adaptmed.errors import InputError, sentence
from adaptmed.heads.prompts import Prompts
from adaptmed.runs.precision import Precision

ARMS = ("frozen", "adaptor-untrained", "text-informed probe", "adaptor", "adaptor-trained")
WITHOUT_ADAPTOR = ("frozen", "lora-tuned")
TUNED_ARMS = ("lora", "adaptor+lora")
KNOWN = (*ARMS, *TUNED_ARMS, "adaptor-head", "lora-tuned", "full")
NEED_ADAPTOR = (*ARMS[1:], "adaptor-head")
BASELINES = ("frozen", "adaptor-untrained")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study runs over.

    Attributes:
        fractions: Shares of the labelled training patients, in (0, 1].
        seeds: Number of seeds: 0, 1, ...; each chooses its own fraction.
        arms: Names among ``KNOWN``; ``None`` is ``ARMS`` where there is an adaptor and ``WITHOUT_ADAPTOR`` where there
            is none, and ``TUNED_ARMS`` too where there is a tuned bank. On request alone: ``adaptor-head`` (the paper's
            two-layer head) and ``full`` (a copy of the whole image encoder is tuned in every cell: the costly
            reference). ``lora-tuned`` beside an adaptor comes on request too: all other arms of such a study read the
            bank, and nobody should pay an encoder's time in every cell who did not ask for it; without an adaptor it is
            what the study is for.
        prompts: Replace the generic zero-shot prompts.
        replicates: Bootstrap replicates.
        allow_overlap: Go on although test patients were seen in pre-training.
        precision: Of the forward passes of arms that train.

    Raises:
        InputError: If a value is none of these.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 5
    arms: tuple[str, ...] | None = None
    prompts: Prompts | None = None
    replicates: int = 1000
    allow_overlap: bool = False
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        shares = set(self.fractions)
        if not shares or len(shares) < len(self.fractions) or min(shares) <= 0 or max(shares) > 1:
            expected, fix = "distinct shares in (0, 1]", "Try 0.01 0.1 1."
            raise InputError(sentence("fractions", expected=expected, got=self.fractions, fix=fix))
        for name, value in (("seeds", self.seeds), ("replicates", self.replicates)):
            if value < 1:
                raise InputError(sentence(name, expected="at least 1", got=value, fix="Raise it."))
        arms = ARMS if self.arms is None else self.arms
        unknown = [name for name in arms if name not in KNOWN]
        if unknown or not arms or len(set(arms)) < len(arms):
            expected, got = f"distinct names among {', '.join(KNOWN)}", ", ".join(unknown or arms) or "none"
            raise InputError(sentence("arms", expected=expected, got=got, fix="Check the spelling."))

    def chosen(self, *, adaptor: bool, tuned: bool) -> tuple[str, ...]:
        """The arms that run with or without an adaptor and a tuned bank.

        Raises:
            InputError: If an arm was asked for that needs one, and there is none.
        """
        if self.arms is None:
            return (*(ARMS if adaptor else WITHOUT_ADAPTOR), *(TUNED_ARMS if tuned else ()))
        if not adaptor:
            fix = "Pass --adaptor RUN, which `adaptmed pretrain` wrote, or ask for frozen, lora-tuned and full."
            self._refuse(NEED_ADAPTOR, "an adaptor", fix)
        if not tuned:
            fix = "Pass --tuned-bank and --tuned-adaptor: what `adaptmed embed m.csv --adaptor RUN` wrote, and RUN."
            self._refuse(TUNED_ARMS, "a tuned bank", fix)
        return self.arms

    def _refuse(self, needing: tuple[str, ...], lacking: str, fix: str) -> None:
        asked = [name for name in self.arms or () if name in needing]
        if asked:
            got = f"{', '.join(asked)} without {lacking}"
            raise InputError(sentence("arms", expected="arms that the banks can serve", got=got, fix=fix))
