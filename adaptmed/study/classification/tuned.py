"""The arms with LoRA: what tuned encoders are worth, on the same rows, fractions and seeds as the plain ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adaptmed.adaptor.features import adaptor_variants
from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.bank import Bank
from adaptmed.runs.folder import read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.study.checks import check_labels, check_tuned, identity_of, lora_parameters, weights_of
from adaptmed.study.classification.arms import Arm, best_probe, frozen_arm, probe_arm
from adaptmed.study.classification.rows import StudyRows


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The bank that tuned encoders wrote beside a plain one, and the adaptor of the run that was trained with them.

    LoRA is trained outside the study, with its encoder in the loop and without labels; a cell trains a probe alone.

    Attributes:
        bank: Tokens of the same rows.
        adaptor: Its adaptor, without encoders in memory.
        lora_parameters: LoRA parameters of the encoders.
        seen: Digests of the patients its run has read; ``None`` when its folder does not say.
        weights: sha256 of the adaptor's tensors.
    """

    bank: Bank
    adaptor: Adaptor
    lora_parameters: int
    seen: frozenset[str] | None
    weights: str

    @property
    def identity(self) -> str:
        """What no other bank, table or adaptor has: part of the place of its cells."""
        return identity_of(self.bank, self.weights)

    def arms(self, rows: StudyRows) -> dict[str, Callable[[], Arm]]:
        """The arms by name, each made when it is first needed: the frozen and the adaptor probe on the tuned bank."""
        fusion = self.adaptor.fusion

        def adaptor_arm() -> Arm:
            train, test = (adaptor_variants(fusion, self.bank, part) for part in (rows.train, rows.test))
            trained = trainable_parameters(fusion) + self.lora_parameters
            return probe_arm(best_probe(rows, train), test, pretrained=trained)

        return {
            "lora": lambda: frozen_arm(rows, self.bank, pretrained=self.lora_parameters),
            "adaptor+lora": adaptor_arm,
        }


def prepare_tuned(plain: Bank, bank: Bank, run: Path, fractions: Sequence[float]) -> Tuned:
    """Read a tuned run, and check that it belongs to its bank and that this bank belongs beside the plain one.

    Args:
        plain: The bank of the encoders without LoRA.
        bank: What ``adaptmed embed m.csv --adaptor RUN`` wrote.
        run: Run folder whose LoRA the bank's encoders have, or a saved adaptor.
        fractions: The study's.

    Raises:
        InputError: If one does not belong to the other, or labels outside a fraction were read.
    """
    check_tuned(plain, bank)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check_tokens(bank, adaptor, run)
    check_labels(run, fractions)
    return Tuned(
        bank=bank,
        adaptor=adaptor,
        lora_parameters=lora_parameters(adaptor),
        seen=read_seen(run),
        weights=weights_of(run),
    )


def facts_of(tuned: Tuned) -> dict[str, str]:
    """What the report says of the LoRA."""
    encoders = tuned.adaptor.encoders
    return {
        **{f"LoRA in the {side} encoder": record.lora or "none" for side, record in encoders.records.items()},
        "LoRA parameters": f"{tuned.lora_parameters:,}",
        "trainable parameters of the fusion beside LoRA": f"{trainable_parameters(tuned.adaptor.fusion):,}",
    }
