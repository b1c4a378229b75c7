"""A study: arms × label fractions × seeds on one or several banks, resumable cell by cell."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion, build_fusion
from adaptmed.heads.prompts import Prompts
from adaptmed.model import Adaptor, trainable_parameters
from adaptmed.study.arms import Arm, adaptor_arms
from adaptmed.study.cells import cell_path, read_cell, write_cell
from adaptmed.study.rows import StudyRows, overlap_of, study_rows
from adaptmed.study.statistics import Cell, judge
from adaptmed.study.zero_shot import PromptEmbeddings, embed_prompts, retrieval_of, zero_shot_cell
from adaptmed.tasks.pretrain import pairs_of
from adaptmed.tasks.pretraining import step_seed
from adaptmed.tasks.run_folder import read_seen

ARMS = ("frozen", "adaptor-untrained", "text-informed probe", "adaptor", "adaptor-trained")
BASELINES = ("frozen", "adaptor-untrained")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study runs over.

    Attributes:
        fractions: Shares of the labelled training patients, in (0, 1].
        seeds: Number of seeds: 0, 1, ...; each chooses its own fraction.
        arms: Names among ``ARMS`` and ``adaptor-head`` (the paper's two-layer head).
        prompts: Replace the generic zero-shot prompts.
        replicates: Bootstrap replicates.
        allow_overlap: Go on although test patients were seen in pre-training.
    """

    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: int = 5
    arms: tuple[str, ...] = ARMS
    prompts: Prompts | None = None
    replicates: int = 1000
    allow_overlap: bool = False


@dataclass(frozen=True)
class Subject:
    """One bank with the adaptor that was trained on its encoders' Tokens.

    Attributes:
        bank: Tokens, labels and splits.
        adaptor: Its pre-trained adaptor, without encoders in memory.
        rows: The labelled rows.
        prompts: Embeddings of the labels' prompts; ``None`` when the text encoder is not at hand.
        without_prompts: Why there are none.
        overlap: Number of test patients that were seen in pre-training.
    """

    bank: Bank
    adaptor: Adaptor
    rows: StudyRows
    prompts: PromptEmbeddings | None
    without_prompts: str | None
    overlap: int


def prepare(bank: Bank, run: Path, settings: StudySettings) -> Subject:
    """Read an adaptor, check that it belongs to the bank and that no test patient was seen, embed the prompts.

    Args:
        bank: The bank to judge on; it need not be the one that was trained on.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        settings: The study's.

    Raises:
        InputError: If the adaptor was trained on Tokens of other encoders, or nothing is labelled.
        OverlapError: If test patients were seen.
    """
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    _check_tokens(bank, adaptor, run)
    seen = read_seen(run) | read_seen(run.parent)
    rows = study_rows(bank, seen=seen, allow_overlap=settings.allow_overlap)
    prompts, reason = embed_prompts(adaptor, rows.truth, settings.prompts)
    return Subject(bank, adaptor, rows, prompts, reason, overlap_of(bank, rows.test, seen))


def run_cells(subject: Subject, settings: StudySettings, out: Path, progress: Progress) -> list[Cell]:
    """Compute every cell that is not on disk yet, and return all of them.

    Args:
        subject: Bank and adaptor.
        settings: What to run over.
        out: Study folder.
        progress: Called with what is done, its number and the number of all cells.
    """
    return cells_of(subject, settings, out, _arms(subject, settings), progress)


def cells_of(
    subject: Subject, settings: StudySettings, out: Path, makers: Mapping[str, Callable[[], Arm]], progress: Progress
) -> list[Cell]:
    """Compute the cells of any arms, each made when it is first needed; what is on disk is not computed again."""
    rows, names = subject.rows, subject.rows.truth.names
    made: dict[str, Arm] = {}
    cells: list[Cell] = []
    wanted = [(arm, f, s) for f in sorted(settings.fractions) for s in range(settings.seeds) for arm in makers]
    for number, (arm, fraction, seed) in enumerate(wanted):
        progress(f"{arm}, {fraction:g}, seed {seed}", number, len(wanted))
        path = cell_path(out, rows.truth.encoder, arm, fraction, seed)
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
                probabilities=outcome.probabilities.astype(np.float64),
                reasons={names[index]: reason for index, reason in outcome.reasons.items()},
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
    truth = subject.rows.truth
    judged = judge(cells, truth, replicates=settings.replicates)
    baselines = [arm for arm in BASELINES if arm in settings.arms]
    zero_shot: list[dict[str, Any]] = []
    if subject.prompts is not None:
        cell = zero_shot_cell(subject.adaptor.fusion, subject.bank, subject.rows, subject.prompts)
        zero_shot = judge([cell], truth, replicates=settings.replicates).records()
    fusions = {"adaptor": subject.adaptor.fusion, "adaptor-untrained": fresh_fusion(subject, 0)}
    return {
        "records": judged.records(),
        "summaries": judged.summaries(),
        "comparisons": [row for baseline in baselines for row in judged.comparisons(baseline)],
        "retrieval": retrieval_of(fusions, subject.bank, subject.rows, replicates=settings.replicates),
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


def _arms(subject: Subject, settings: StudySettings) -> dict[str, Callable[[], Arm]]:
    fusion = subject.adaptor.fusion
    arms = adaptor_arms(
        subject.rows,
        subject.bank,
        fusion,
        fresh=lambda seed: fresh_fusion(subject, seed),
        prior=None if subject.prompts is None else subject.prompts.directions.numpy(),
        trained=trainable_parameters(fusion),
    )
    unknown = [name for name in settings.arms if name not in {*arms, *ARMS}]
    if unknown:
        expected = f"names among {', '.join([*ARMS, 'adaptor-head'])}"
        raise InputError(sentence("arms", expected=expected, got=", ".join(unknown), fix="Check the spelling."))
    return {name: arms[name] for name in settings.arms if name in arms}


def _check_tokens(bank: Bank, adaptor: Adaptor, run: Path) -> None:
    info = bank.info
    for stored, record in ((info.images, adaptor.encoders.image_record), (info.texts, adaptor.encoders.text_record)):
        if stored is None or stored.fingerprint != record.fingerprint:
            got = "none" if stored is None else f"Tokens of {stored.name} ({stored.fingerprint})"
            raise InputError(
                sentence(
                    str(bank.folder),
                    expected=f"Tokens of {record.name} ({record.fingerprint}), which {run} was trained on",
                    got=got,
                    fix="Give every bank the run that was trained on it, in the same order.",
                )
            )
    if info.layout != adaptor.encoders.layout:
        expected = f"the layout {adaptor.encoders.layout}, which {run} was trained on"
        fix = "Embed with the same --layout and --grid."
        raise InputError(sentence(str(bank.folder), expected=expected, got=info.layout, fix=fix))
