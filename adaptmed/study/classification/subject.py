"""One bank under study, with the adaptor that was trained on its encoders' Tokens."""

from dataclasses import dataclass
from pathlib import Path

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import overlap_of
from adaptmed.runs.folder import read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.study.checks import check_labels, identity_of, weights_of
from adaptmed.study.classification.rows import StudyRows, study_rows
from adaptmed.study.classification.settings import TUNED_ARMS, StudySettings
from adaptmed.study.classification.tuned import Tuned, prepare_tuned
from adaptmed.study.classification.zero_shot import PromptEmbeddings, embed_prompts


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One bank with the adaptor that was trained on its encoders' Tokens.

    Attributes:
        bank: Tokens, labels and splits.
        adaptor: Its pre-trained adaptor, without encoders in memory.
        rows: The labelled rows.
        prompts: Embeddings of the labels' prompts; ``None`` when the text encoder is not at hand, or there is none.
        without_prompts: Why there are none.
        overlap: Number of test patients that were seen in pre-training, the tuned run's included.
        seen_known: Whether the adaptor's folder says which patients it was trained on.
        weights: sha256 of the adaptor's tensors.
        tuned: The same rows through tuned encoders; ``None`` leaves the arms with LoRA out.
    """

    bank: Bank
    adaptor: Adaptor
    rows: StudyRows
    prompts: PromptEmbeddings | None
    without_prompts: str | None
    overlap: int
    seen_known: bool
    weights: str
    tuned: Tuned | None = None

    @property
    def identity(self) -> str:
        """What no other bank, table or adaptor has: part of the place of its cells."""
        return identity_of(self.bank, self.weights)

    def identity_for(self, arm: str) -> str:
        """The identity of the bank and the adaptor that an arm stands on."""
        return self.tuned.identity if self.tuned is not None and arm in TUNED_ARMS else self.identity


def prepare(bank: Bank, run: Path, settings: StudySettings, *, tuned: tuple[Bank, Path] | None = None) -> Subject:
    """Read an adaptor, check that it belongs to the bank and that no test patient was seen, embed the prompts.

    Args:
        bank: The bank to judge on; it need not be the one that was trained on.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        settings: The study's.
        tuned: The bank of the same rows that tuned encoders wrote, and the run that tuned them.

    Raises:
        InputError: If an adaptor was trained on Tokens of other encoders, the tuned bank differs from the plain one by
            more than LoRA, labels outside a fraction were read, or nothing is labelled.
        OverlapError: If test patients were seen by one of the runs.
    """
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check_tokens(bank, adaptor, run)
    check_labels(run, settings.fractions)
    beside = None if tuned is None else prepare_tuned(bank, *tuned, settings.fractions)
    said, theirs = read_seen(run), None if beside is None else beside.seen
    seen = (said or frozenset()) | (theirs or frozenset())
    rows = study_rows(bank, seen=seen, allow_overlap=settings.allow_overlap)
    prompts, reason = embed_prompts(adaptor, rows.truth, settings.prompts)
    return Subject(
        bank=bank,
        adaptor=adaptor,
        rows=rows,
        prompts=prompts,
        without_prompts=reason,
        overlap=overlap_of(bank, rows.judged, seen),
        seen_known=said is not None,
        weights=weights_of(run),
        tuned=beside,
    )
