"""What stands behind a run or a tuned bank: LoRA takes along whose patients and which labels it was trained on."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole
from adaptmed.runs.folder import read_config, read_seen

TUNED_BY = "tuned_by.json"


@dataclass(frozen=True)
class Lineage:
    """What training has read.

    Attributes:
        patients: Digests of the patients; empty where nobody knows.
        labels: Largest fraction of labels that was read, or ``None`` for none.
    """

    patients: tuple[str, ...] = ()
    labels: float | None = None

    @classmethod
    def of_run(cls, run: Path) -> "Lineage":
        """What a run folder or a saved adaptor says of itself."""
        config = read_config(run) or {}
        labels = config.get("fraction", 0.0) if config.get("command") == "finetune" else config.get("labels_read")
        return cls(tuple(sorted(read_seen(run) or ())), labels)

    @classmethod
    def of_bank(cls, folder: Path) -> "Lineage":
        """What was kept beside a bank of tuned encoders; nothing beside any other."""
        path = folder / TUNED_BY
        if not path.exists():
            return cls()
        found = json.loads(path.read_text())
        return cls(tuple(found["patients"]), found["labels"])

    def keep(self, folder: Path) -> None:
        """Write it beside the bank that tuned encoders have written."""
        write_text_whole(folder / TUNED_BY, json.dumps(asdict(self)) + "\n")

    @classmethod
    def joined(cls, parts: Iterable["Lineage"]) -> "Lineage":
        """Everything that any of them has read.

        Example:
            >>> Lineage.joined([Lineage(("b",)), Lineage(("a", "b"), 0.1)])
            Lineage(patients=('a', 'b'), labels=0.1)
        """
        every = list(parts)
        patients = {patient for part in every for patient in part.patients}
        return cls(tuple(sorted(patients)), max((p.labels for p in every if p.labels is not None), default=None))


def check_unlabelled(run: Path, fraction: float) -> None:
    """Check that tuning on a part of the labels starts from a run that has read none of the others.

    Args:
        run: Run folder or saved adaptor that tuning starts from.
        fraction: Of the labels that it is tuned on.

    Raises:
        InputError: If labels outside the fraction may have trained ``run``.
    """
    read = Lineage.of_run(run).labels
    if fraction < 1 and read is not None:
        expected, got = "a run that no label has trained", f"one that has read labels at fraction {read}"
        fix = "Start from the pre-trained run, or take all labels: --fraction 1."
        raise InputError(sentence(str(run), expected=expected, got=got, fix=fix))
