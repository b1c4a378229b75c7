"""One bank under study: with the adaptor that was trained on its encoders' Tokens, or with its image encoder alone."""

from dataclasses import dataclass
from pathlib import Path

from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.records import records_of
from adaptmed.bank import Bank
from adaptmed.cohort.division import overlap_of
from adaptmed.errors import InputError, sentence
from adaptmed.runs.folder import read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.study.checks import check_labels, identity_of, weights_of
from adaptmed.study.classification.rows import StudyRows, study_rows
from adaptmed.study.classification.settings import TUNED_ARMS, StudySettings
from adaptmed.study.classification.tuned import Tuned, prepare_tuned
from adaptmed.study.classification.zero_shot import PromptEmbeddings, embed_prompts


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One bank with the adaptor that was trained on its encoders' Tokens, where there is one.

    Attributes:
        bank: Tokens, labels and splits.
        adaptor: Its pre-trained adaptor, without encoders in memory; ``None`` leaves its arms out.
        encoders: Those of the adaptor, or else the bank's image encoder alone; not in memory.
        rows: The labelled rows.
        prompts: Embeddings of the labels' prompts; ``None`` when the text encoder is not at hand, or there is none.
        without_prompts: Why there are none.
        overlap: Number of test patients that were seen in pre-training, the tuned run's included.
        seen_known: Whether the adaptor's folder says which patients it was trained on; without one there are none.
        weights: sha256 of the adaptor's tensors; empty without one.
        tuned: The same rows through tuned encoders; ``None`` leaves the arms with LoRA out.
    """

    bank: Bank
    adaptor: Adaptor | None
    encoders: FrozenEncoders
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


def prepare(
    bank: Bank, run: Path | None, settings: StudySettings, *, tuned: tuple[Bank, Path] | None = None
) -> Subject:
    """Read an adaptor, check that it belongs to the bank and that no test patient was seen, embed the prompts.

    Args:
        bank: The bank to judge on; it need not be the one that was trained on.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor; ``None`` leaves the arms that need one out.
        settings: The study's.
        tuned: The bank of the same rows that tuned encoders wrote, and the run that tuned them.

    Raises:
        InputError: If an adaptor was trained on Tokens of other encoders, the tuned bank differs from the plain one by
            more than LoRA, labels outside a fraction were read, or nothing is labelled; or if the bank's encoder is
            tuned and no run says on what.
        OverlapError: If test patients were seen by one of the runs.
    """
    adaptor = None if run is None else _adaptor(bank, run, settings)
    encoders = _image_encoder(bank) if adaptor is None else adaptor.encoders
    beside = None if tuned is None else prepare_tuned(bank, *tuned, settings.fractions)
    said = frozenset[str]() if run is None else read_seen(run)
    theirs = None if beside is None else beside.seen
    seen = (said or frozenset()) | (theirs or frozenset())
    rows = study_rows(bank, seen=seen, allow_overlap=settings.allow_overlap)
    prompts, reason = embed_prompts(adaptor, rows.truth, settings.prompts)
    return Subject(
        bank=bank,
        adaptor=adaptor,
        encoders=encoders,
        rows=rows,
        prompts=prompts,
        without_prompts=reason,
        overlap=overlap_of(bank, rows.judged, seen),
        seen_known=said is not None,
        weights="" if run is None else weights_of(run),
        tuned=beside,
    )


def _adaptor(bank: Bank, run: Path, settings: StudySettings) -> Adaptor:
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check_tokens(bank, adaptor, run)
    check_labels(run, settings.fractions)
    return adaptor


def _image_encoder(bank: Bank) -> FrozenEncoders:
    """The image encoder that a bank was made with, not in memory; what LoRA inside it has read only its run tells."""
    image, _ = records_of(bank)
    if image.lora is not None:
        expected, got = "Tokens of an encoder without LoRA, where there is no adaptor", f"LoRA {image.lora}"
        fix = "Pass its run as --adaptor, which says what labels and patients it has read, or embed without --adaptor."
        raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))
    return FrozenEncoders(image, None, bank.info.layout)
