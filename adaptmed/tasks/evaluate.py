"""The one frame of judging: a finished run, scored again on the test split of any bank of the same encoders."""

from pathlib import Path
from typing import Any

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import require_unseen
from adaptmed.cohort.rows import with_image
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_json
from adaptmed.runs.folder import read_config, read_seen
from adaptmed.runs.same_tokens import check_tokens, require_texts
from adaptmed.tasks import TASKS, task_class
from adaptmed.tasks.result import RESULT, test_counts
from adaptmed.tasks.task import How

_FIXES = dict.fromkeys(("pretrain", "calibrate"), "Pass --task retrieval, or tune it first with `adaptmed finetune`.")


def evaluate(
    run: Path, bank: Bank, *, out: Path | None = None, how: How | None = None, allow_overlap: bool = False
) -> dict[str, Any]:
    """Judge a finished run of ``adaptmed finetune`` on the test split of a bank.

    Args:
        run: Run folder of a fine-tuning.
        bank: Tokens of the same encoders, with the columns the task needs.
        out: File to write; ``None`` is ``evaluation-<name of the bank>.json`` in the run folder.
        how: Device and precision.
        allow_overlap: Continue although test patients were seen; the result says so.

    Returns:
        What the file holds: ``task``, ``run``, ``bank`` and under ``test`` the scores of the ``tuned`` model; of pairs
        those with a ``shuffled_image``, of answers those of the ``majority`` answer, of masks those of the ``empty``
        prediction as well.

    Raises:
        InputError: The run is not a finished one, or the bank has Tokens of other encoders or no row to judge.
        OverlapError: Test patients were seen.
    """
    name = _task_of(run)
    task = task_class(name)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    if texts := bool(task.reads_texts):
        require_texts(adaptor, run)
    check_tokens(bank, adaptor, run, texts=texts)
    rows = task.test_rows(bank, name)
    if not len(rows):
        fix = "Give a bank whose table has a test split with what the task needs."
        raise InputError(sentence(str(bank.folder), expected="a test row to judge", got="none", fix=fix))
    seen = read_seen(run)
    overlap = require_unseen(bank, with_image(bank, "test"), seen or (), allow_overlap=allow_overlap)
    counts = test_counts(bank, rows, noun="images" if name == "segmentation" else "pairs", overlap=overlap)
    found = {
        "task": name,
        "run": str(run.resolve()),
        "bank": str(bank.folder.resolve()),
        "patient_column": bank.info.has_patients,
        "patients_of_pretraining_known": seen is not None,
        "test": counts | task.judge_run(run, adaptor, bank, rows, how or How()),
    }
    write_json(out or target_of(run, bank), found)
    return found


def target_of(run: Path, bank: Bank) -> Path:
    """The file an evaluation is written to when none was named."""
    return run / f"evaluation-{bank.folder.resolve().name}.json"


def _task_of(run: Path) -> str:
    config = read_config(run) or {}
    command = str(config.get("command", "none"))
    name = config.get("task", "none") if command == "finetune" else command
    if name not in TASKS or not (run / RESULT).exists():
        got = f"a run of `adaptmed {command}`" if config else "no run of adaptmed"
        if name in TASKS:
            got = "one that has not ended"
        expected = f"a finished run of `adaptmed finetune` for {', '.join(TASKS)}"
        raise InputError(
            sentence(str(run), expected=expected, got=got, fix=_FIXES.get(command, "Name its run folder."))
        )
    return str(name)
