"""The bank of a study of answers with its pre-trained runs, and what every arm is judged by."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import overlap_of, require_unseen
from adaptmed.cohort.rows import patients_of
from adaptmed.errors import InputError, sentence
from adaptmed.runs.folder import read_config, read_seen
from adaptmed.runs.same_tokens import check_tokens, require_texts
from adaptmed.study.answering.settings import AnsweringStudy
from adaptmed.study.checks import check_labels, identity_of, place_of, weights_of
from adaptmed.study.statistics import Truth
from adaptmed.tasks.pairs.answers import answering_rows, closed_of, kinds_of

WHOLE = "all"
_LEAST = 10
"""Test questions of a kind below which it has no row of its own."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is studied.

    Attributes:
        bank: With questions, answers and images.
        runs: Adaptors by the names of their arms.
        test: Row numbers of the test questions.
        truth: Which kinds each of them is of.
        identity: What no other bank, table or set of runs has.
        overlap: Number of test patients that training has seen.
        seen: Digests of the patients that pre-training has read.
        seen_known: Whether every run says whom it was trained on.
    """

    bank: Bank
    runs: dict[str, Adaptor]
    test: Int[np.ndarray, " n"]
    truth: Truth
    identity: str
    overlap: int
    seen: frozenset[str]
    seen_known: bool


def open_subject(bank: Bank, runs: Sequence[Path], settings: AnsweringStudy) -> Subject:
    """Check that runs and bank belong together and that no test patient was seen; nothing is written.

    Args:
        bank: With questions and answers.
        runs: Run folders of ``adaptmed pretrain``, or saved adaptors; each is an arm, named by its method.
        settings: The study's.

    Raises:
        InputError: There is no test question, a run was trained on Tokens of other encoders, reads no texts, or has
            read labels, or two runs are of one method.
        OverlapError: A test patient stands in another split or was seen by a run.
    """
    test, _ = answering_rows(bank, "test")
    if not len(test):
        fix = "Check the split column with `adaptmed check`."
        raise InputError(sentence(str(bank.folder), expected="questions in the split test", got="none", fix=fix))
    adaptors = _adaptors(bank, runs, settings)
    said = [read_seen(run) for run in runs]
    seen = frozenset().union(*(digests or () for digests in said))
    require_unseen(bank, test, seen, allow_overlap=settings.allow_overlap)
    return Subject(
        bank=bank,
        runs=adaptors,
        test=test,
        truth=_truth(bank, test),
        identity=identity_of(bank, " ".join(weights_of(run) for run in runs)),
        overlap=overlap_of(bank, test, seen),
        seen=seen,
        seen_known=all(digests is not None for digests in said),
    )


def _adaptors(bank: Bank, runs: Sequence[Path], settings: AnsweringStudy) -> dict[str, Adaptor]:
    found: dict[str, Adaptor] = {}
    for run in runs:
        adaptor = Adaptor.from_pretrained(run, load_encoders=False)
        require_texts(adaptor, run)
        check_tokens(bank, adaptor, run, texts=True)
        check_labels(run, settings.fractions)
        name = _method_of(run)
        if name in found:
            got, fix = f"{name} twice", "Study the second one into another --out folder."
            raise InputError(sentence("adaptor", expected="runs of other methods each", got=got, fix=fix))
        found[name] = adaptor
    return found


def _method_of(run: Path) -> str:
    """The method of a run; a saved adaptor without its run is ``adaptor``."""
    config = read_config(run) or {}
    method = config.get("method", "adaptor")
    return str(method["name"] if isinstance(method, dict) else method)


def _truth(bank: Bank, test: Int[np.ndarray, " n"]) -> Truth:
    closed, kinds = closed_of(bank, test), kinds_of(bank, test)
    members = {WHOLE: np.ones(len(test), dtype=bool), "open": ~closed, "closed": closed}
    members |= {kind: kinds == kind for kind in sorted(set(kinds) - {""}) if (kinds == kind).sum() >= _LEAST}
    dataset, encoder = place_of(bank)
    return Truth(
        kind="answering",
        names=tuple(members),
        labels=np.where(np.stack(list(members.values()), axis=1), 1.0, np.nan),
        patients=patients_of(bank, test),
        dataset=dataset,
        encoder=encoder,
    )
