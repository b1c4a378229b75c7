"""A study: arms × label fractions × seeds on one or several banks, resumable cell by cell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.division import overlap_of
from adaptmed.cohort.rows import pairs_of
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion, build_fusion
from adaptmed.heads.prompts import Prompts
from adaptmed.layers.draws import step_seed
from adaptmed.runs.folder import read_seen
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.study.arms import Arm, Outcome, adaptor_arms
from adaptmed.study.cells import cell_path, read_cell, write_cell
from adaptmed.study.checks import check_labels
from adaptmed.study.full import full_arm
from adaptmed.study.rows import StudyRows, study_rows
from adaptmed.study.statistics import Cell, Truth, judge
from adaptmed.study.tuned import TUNED_ARMS, Tuned, identity_of, prepare_tuned, weights_of
from adaptmed.study.zero_shot import PromptEmbeddings, embed_prompts, retrieval_of, zero_shot_cell

ARMS = ("frozen", "adaptor-untrained", "text-informed probe", "adaptor", "adaptor-trained")
KNOWN = (*ARMS, *TUNED_ARMS, "adaptor-head", "full")
BASELINES = ("frozen", "adaptor-untrained")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study runs over.

    Attributes:
        fractions: Shares of the labelled training patients, in (0, 1].
        seeds: Number of seeds: 0, 1, ...; each chooses its own fraction.
        arms: Names among ``KNOWN``; ``None`` is ``ARMS``, and ``TUNED_ARMS`` too where there is a tuned bank. On
            request alone: ``adaptor-head`` (the paper's two-layer head) and ``full`` (a copy of the whole image encoder
            is tuned in every cell: the costly reference).
        prompts: Replace the generic zero-shot prompts.
        replicates: Bootstrap replicates.
        allow_overlap: Go on although test patients were seen in pre-training.

    Raises:
        InputError: If a value is none of these.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 5
    arms: tuple[str, ...] | None = None
    prompts: Prompts | None = None
    replicates: int = 1000
    allow_overlap: bool = False

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

    def chosen(self, *, tuned: bool) -> tuple[str, ...]:
        """The arms that run with or without a tuned bank.

        Raises:
            InputError: If an arm was asked for that needs one, and there is none.
        """
        if self.arms is None:
            return (*ARMS, *TUNED_ARMS) if tuned else ARMS
        lacking = [name for name in self.arms if name in TUNED_ARMS and not tuned]
        if lacking:
            got = f"{', '.join(lacking)} without a tuned bank"
            fix = "Pass --tuned-bank and --tuned-adaptor: what `adaptmed embed m.csv --adaptor RUN` wrote, and RUN."
            raise InputError(sentence("arms", expected="arms that the banks can serve", got=got, fix=fix))
        return self.arms


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One bank with the adaptor that was trained on its encoders' Tokens.

    Attributes:
        bank: Tokens, labels and splits.
        adaptor: Its pre-trained adaptor, without encoders in memory.
        rows: The labelled rows.
        prompts: Embeddings of the labels' prompts; ``None`` when the text encoder is not at hand.
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


def cells_of(
    subject: Subject, settings: StudySettings, out: Path, makers: Mapping[str, Callable[[], Arm]], progress: Progress
) -> list[Cell]:
    """Compute the cells of arms; what is on disk is not computed again.

    Args:
        subject: Bank and adaptor.
        settings: What to run over.
        out: Study folder.
        makers: Arms by name, each made when it is first needed.
        progress: Called with what is done, its number and the number of all cells.
    """
    rows = subject.rows
    made: dict[str, Arm] = {}
    cells: list[Cell] = []
    wanted = [(arm, f, s) for f in sorted(settings.fractions) for s in range(settings.seeds) for arm in makers]
    for number, (arm, fraction, seed) in enumerate(wanted):
        progress(f"{arm}, {fraction:g}, seed {seed}", number, len(wanted))
        path = cell_path(out, subject.identity_for(arm), arm, fraction, seed)
        cell = read_cell(path)
        if cell is None:
            if arm not in made:
                made[arm] = makers[arm]()
            started = time.monotonic()
            places = rows.fraction(fraction, seed)
            outcome = made[arm](places, seed)
            cell = Cell(
                arm=arm,
                fraction=fraction,
                seed=seed,
                values=outcome.probabilities.astype(np.float64),
                reasons=_reasons(rows.truth, outcome),
                n_train=len(places),
                n_positive=rows.positives(places),
                trainable_parameters=outcome.trainable_parameters,
                seconds=round(time.monotonic() - started, 3),
            )
            write_cell(path, cell)
        cells.append(cell)
    progress("all cells", len(wanted), len(wanted))
    return cells


def results_of(subject: Subject, cells: Sequence[Cell], settings: StudySettings) -> dict[str, Any]:
    """Judge the cells, and the adaptor's zero-shot classification and retrieval, on the test split."""
    truth, arms = subject.rows.truth, {cell.arm for cell in cells}
    judged = judge(cells, truth, replicates=settings.replicates)
    comparisons = [row for arm in BASELINES if arm in arms for row in judged.comparisons(arm)]
    if {"adaptor", "adaptor+lora"} <= arms:
        comparisons += [row for row in judged.comparisons("adaptor") if row["arm"] in TUNED_ARMS]
    zero_shot: list[dict[str, Any]] = []
    if subject.prompts is not None:
        cell = zero_shot_cell(subject.adaptor.fusion, subject.bank, subject.rows, subject.prompts)
        zero_shot = judge([cell], truth, replicates=settings.replicates).records()
    fusions = {"adaptor": subject.adaptor.fusion, "adaptor-untrained": fresh_fusion(subject, 0)}
    retrieval = retrieval_of(fusions, subject.bank, subject.rows, replicates=settings.replicates)
    if subject.tuned is not None and "adaptor+lora" in arms:
        tuned = {"adaptor+lora": subject.tuned.adaptor.fusion}
        retrieval += retrieval_of(tuned, subject.tuned.bank, subject.rows, replicates=settings.replicates)
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": comparisons,
        "retrieval": retrieval,
        "zero_shot": zero_shot,
    }


def fresh_fusion(subject: Subject, seed: int) -> Fusion:
    """An untrained fusion of the adaptor's shape, with its input statistics fitted on the same training pairs."""
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        fusion = build_fusion(subject.adaptor.fusion.config)
    fresh = Adaptor(fusion, subject.adaptor.encoders)
    fresh.standardise(subject.bank, pairs_of(subject.bank, "train"))
    return fusion.eval()


def arms_of(subject: Subject, settings: StudySettings) -> dict[str, Callable[[], Arm]]:
    """The arms of the settings that can run on a subject, each made when it is first needed.

    Raises:
        InputError: If none is left, or one needs a tuned bank.
    """
    names = settings.chosen(tuned=subject.tuned is not None)
    fusion = subject.adaptor.fusion
    arms = adaptor_arms(
        subject.rows,
        subject.bank,
        fusion,
        fresh=lambda seed: fresh_fusion(subject, seed),
        prior=None if subject.prompts is None else subject.prompts.directions.numpy(),
        trained=trainable_parameters(fusion),
    )
    arms["full"] = lambda: _full_arm(subject)
    if subject.tuned is not None:
        arms |= subject.tuned.arms(subject.rows)
    chosen = {name: arms[name] for name in names if name in arms}
    if not chosen:
        got, fix = "only arms that need prompts", f"There are none, because {subject.without_prompts}"
        raise InputError(sentence("arms", expected="an arm that can run", got=got, fix=fix))
    return chosen


def _full_arm(subject: Subject) -> Arm:
    encoder = subject.adaptor.encoders.load_image().image
    assert encoder is not None  # it was just loaded
    return full_arm(subject.rows, subject.bank, encoder)


def _reasons(truth: Truth, outcome: Outcome) -> dict[str, str]:
    """Reasons by label; where no class can be told from another, one reason for the whole cell."""
    reasons = {truth.names[index]: reason for index, reason in outcome.reasons.items()}
    if truth.kind == "multiclass" and len(reasons) == len(truth.names):
        return {"all": next(iter(reasons.values()))}
    return reasons
