"""TD-Calib: masked reconstruction goes on with the downstream training split, without its labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides, training_rows
from adaptmed.errors import InputError, sentence
from adaptmed.pretraining.choices import from_json
from adaptmed.pretraining.job import PretrainJob
from adaptmed.pretraining.method import Method, Term
from adaptmed.pretraining.pretext import PRETEXT
from adaptmed.pretraining.pretrain import readable_bank, run_config, run_job
from adaptmed.runs.folder import read_config
from adaptmed.runs.precision import Precision
from adaptmed.training.settings import Schedule

FEATURES = 1e-5
"""Weight of both feature losses, as released: beside it the reconstruction of words and patches decides."""


def calibrate(
    bank: Bank,
    run: Path,
    out: Path,
    *,
    schedule: Schedule | None = None,
    seed: int = 0,
    precision: Precision = "fp32",
    device: str = "auto",
    checkpoint_every: int = 50,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
    strategy: str = "ddp",
) -> Adaptor:
    """Calibrate a run of masked pre-training to the texts and images of a task.

    Task-oriented distribution calibration of UMD (arXiv:2404.06057): words + patches + 1e-5 (text features + image
    features), no matching, on the ``train`` pairs of the task's bank; of questions the question alone is the text. No
    label and no answer is read. The teacher is a fresh copy of what pre-training left. The fusion is trained; what
    only matching has trained (the poolers, the matching head) stays as it came, and LoRA inside the encoders too.

    It stops, resumes and shares its work as :func:`adaptmed.pretraining.pretrain.pretrain` does. Deviations:
    ``validate`` keeps the epoch of the lowest loss, where the released code takes word accuracy less the losses; the
    teacher is a copy of the student, where the released code makes one anew.

    Args:
        bank: The task's image-text pairs, embedded by the run's encoders.
        run: Run folder of ``adaptmed pretrain`` with a method that hides words and patches, or of a calibration.
        out: Run folder to write.
        schedule: Optimiser settings; by default :func:`calibration_schedule` of the run's method.
        seed: Of order, dropout and what is hidden.
        precision: Of the fusion's forward pass.
        device: Lightning's accelerator.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.
        strategy: How several processes share the work.

    Returns:
        The adaptor at its best epoch, also saved to ``out/adaptor``.

    Raises:
        InputError: If the run hid nothing or is no run folder, or as of ``pretrain``.
        OverlapError: If a patient stands in two of the splits.
    """
    method = calibration_method(run, schedule)
    bank = readable_bank(bank, method)
    rows = training_rows(bank), rows_with_sides(bank, "validate", texts=bank.holds_texts)
    job = PretrainJob(bank, method, *rows, seed, start=run, pretext=run)
    config = run_config(bank, method, seed=seed, precision=precision, start=run) | {"command": "calibrate"}
    how: dict[str, Any] = {"precision": precision, "device": device, "strategy": strategy, "progress": progress}
    return run_job(job, out, config, checkpoint_every=checkpoint_every, callbacks=callbacks, **how)


def calibration_method(run: Path, schedule: Schedule | None = None) -> Method:
    """The method of a run, with the weights and the schedule of calibration: without what reads whole pairs.

    Raises:
        InputError: If the run hid nothing, or is no run folder with its pretext modules.
    """
    config = read_config(run) or {}
    method = from_json(config["method"]) if "method" in config else None
    if method is None or not method.hidden or not (run / PRETEXT).exists():
        got = "none" if method is None else f"a run of the method {method.name}"
        expected = "a finished run folder of `adaptmed pretrain` with --method umd or m3ae"
        fix = "Pre-train with one of these, and name its run folder, not the adaptor inside."
        raise InputError(sentence(str(run), expected=expected, got=got, fix=fix))
    needs = method.needs
    terms: list[Term] = [
        replace(term, weight=1.0 if needs[term.name].teacher_decay is None else FEATURES)
        for term in method.terms
        if not needs[term.name].embeddings
    ]
    return replace(method, terms=tuple(terms), schedule=schedule or calibration_schedule(method))


def calibration_schedule(method: Method) -> Schedule:
    """How long a method is calibrated by default: ``paper`` as the released code is on VQA-RAD, ``light`` our own.

    The released rate of 5e-6 is that of the encoders; the fusion, which alone is trained here, has five times that.
    """
    if method.size == "paper":
        return Schedule(epochs=60, batch_size=32, learning_rate=2.5e-5, weight_decay=0.01)
    return Schedule(epochs=5, batch_size=64, learning_rate=2e-4, weight_decay=0.01)
