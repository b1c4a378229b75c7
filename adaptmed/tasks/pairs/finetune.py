"""From a run and pairs to a tuned adaptor with its head in a run folder, stopped and resumed at will."""

import json
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole
from adaptmed.layers.draws import step_seed
from adaptmed.runs.folder import BEST, open_run, read_seen, write_seen
from adaptmed.runs.processes import Processes, join
from adaptmed.tasks.pairs.goal import goal_of
from adaptmed.tasks.pairs.result import REJECTS, RESULT, result_of, save
from adaptmed.tasks.pairs.settings import PairChoices, run_config
from adaptmed.tasks.pairs.task import PairJob, check
from adaptmed.tasks.pairs.training import PairTuning, in_order, shuffled
from adaptmed.training.batches import Batches
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.trainer import Length, fit_or_resume, run_trainer


def finetune_pairs(
    bank: Bank,
    run: Path,
    out: Path,
    choices: PairChoices,
    *,
    device: str = "auto",
    checkpoint_every: int = 50,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Tune an adaptor for what needs both sides of a pair: a head, the fusion under it, LoRA inside its encoders.

    The pairs of ``validate`` choose the epoch that is kept, by its loss; without them it is the last one. Those of
    ``test`` are read once, at the end. Running it again with the same arguments goes on where it stopped, bit for bit
    on the CPU, or returns the result. Started by torchrun, the processes share every batch; the first one judges.

    Args:
        bank: Questions and answers, or labels or a class column, and Tokens of both of the adaptor's encoders.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        out: Run folder to write.
        choices: What is tuned, and on what.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.

    Returns:
        What ``out/metrics.json`` holds: under ``test`` the scores of the ``tuned`` model, of the same with a
        ``shuffled_image``, of heads on ``frozen`` features of both sides and on the text alone (``question_only`` or
        ``text_only``), and of always giving the ``majority`` answer; ``None`` without test pairs.

    Raises:
        InputError: Nothing can be learnt from the fraction, the bank has Tokens of other encoders, gradients of a
            fusion with shared layers were to be coordinated, labels outside the fraction have trained ``run``, ``out``
            holds another run, or a batch has fewer pairs than there are processes.
        OverlapError: A patient stands in train and validate, or a test patient was seen.
        NonFiniteLossError: A loss becomes NaN; the last good checkpoint stays.
        TerminatedError: SIGTERM came; a checkpoint was written.
        LostProcessError: Another process has ended.
    """
    processes = join(device)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    check(bank, adaptor, run, choices)
    job = PairJob(bank, adaptor, goal_of(bank, choices, before=read_seen(run)), choices)
    _require_shares(job, processes)
    if processes.agreed(lambda: _is_finished(job, run, out)):
        return json.loads((out / RESULT).read_text())
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(choices.seed, -2))
        tuning = job.tuning(out if processes.first else None)
        options = {"checkpoint_every": checkpoint_every, "progress": progress, "callbacks": callbacks}
        _train(job, tuning, out, processes, device=device, **options)
        return processes.agreed(lambda: _finish(job, tuning, out, device))


def _is_finished(job: PairJob, run: Path, out: Path) -> bool:
    """Open the run folder, record whose data will be read, and tell whether its result is there already."""
    open_run(out, run_config(job.bank, run, job.choices))
    if (out / RESULT).exists():
        return True
    write_seen(out, job.goal.rows.seen)
    write_text_whole(out / REJECTS, "".join(json.dumps(reject) + "\n" for reject in job.goal.rejects))
    return False


def _train(job: PairJob, tuning: PairTuning, out: Path, processes: Processes, *, device: str, **options: Any) -> None:
    """Train from the last checkpoint, or from the start, and take up the epoch that is kept."""
    settings, judged = job.choices.settings, job.judged
    length = Length(
        epochs=settings.epochs,
        monitor=None if judged is None else "validate/loss",
        patience=settings.epochs,
        clip=settings.clip,
        accumulate=settings.accumulate,
    )

    def loaders(trainer: lightning.Trainer) -> tuple[Batches, Batches | None]:
        train = shuffled(tuning, job.train, trainer, part=processes.part)
        return train, None if judged is None else in_order(tuning, judged, part=processes.part)

    trainer = run_trainer(out, length, processes, precision=settings.precision, device=device, **options)
    fit_or_resume(trainer, tuning.train(), loaders, out, processes)
    tuning.cpu().eval()
    tuning.load_state_dict(SafetensorsCheckpointIO().load_checkpoint(out / BEST)["state_dict"], strict=False)


def _finish(job: PairJob, tuning: PairTuning, out: Path, device: str) -> dict[str, Any]:
    result = result_of(job, tuning, out, device=device)
    save(job, tuning, result, out)
    return result


def _require_shares(job: PairJob, processes: Processes) -> None:
    """Every process must have a pair of every batch."""
    settings, train, judged = job.choices.settings, len(job.goal.rows.train), job.judged
    smallest = train // settings.batches_of(train)
    if judged is not None:
        smallest = min(smallest, judged.count // -(-judged.count // settings.batch_size))
    if smallest < processes.world:
        fix = "Start fewer processes, or pass a larger --batch-size."
        expected = f"a pair in every batch for each of the {processes.world} processes"
        raise InputError(sentence("batch_size", expected=expected, got=smallest, fix=fix))
