"""What a report must say of patients, overlap, intervals and versions, whatever was studied."""

from typing import Any, Protocol, runtime_checkable

from adaptmed.adaptor.saving import library_versions
from adaptmed.bank import Bank


@runtime_checkable
class Judged(Protocol):
    """A subject of a study, as far as its patients go."""

    @property
    def bank(self) -> Bank:
        """Tokens and splits."""
        ...

    @property
    def overlap(self) -> int:
        """Number of test patients that were seen in training."""
        ...

    @property
    def seen_known(self) -> bool:
        """Whether the run says which patients it was trained on."""
        ...


def patient_cautions(subject: Judged, encoder: str) -> list[str]:
    """What must be said of the patients of a subject.

    Args:
        subject: With its bank.
        encoder: Name that every caution begins with.
    """
    cautions = []
    if subject.overlap:
        cautions.append(f"{encoder}: {subject.overlap} test patients were seen in training; the numbers are too good.")
    if not subject.seen_known:
        cautions.append(
            f"{encoder}: which patients the adaptor was trained on is not known, because it is not in its run folder; "
            "nobody checked that no test patient is among them."
        )
    if not subject.bank.info.has_patients:
        cautions.append(f"{encoder}: the table has no patient column, every row is taken as its own patient.")
    return cautions


def shared_facts(replicates: int) -> dict[str, Any]:
    """How intervals were made, and the versions of the libraries."""
    method = "95 %, hierarchical bootstrap: seeds outside, patients inside; differences are paired"
    return {"intervals": {"method": method, "replicates": replicates}, "versions": library_versions()}
