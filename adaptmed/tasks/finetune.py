"""The one frame of fine-tuning: from a run and a bank to a tuned adaptor with its head, stopped and resumed at will."""

import json
from pathlib import Path
from typing import Any

import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of, write_text_whole
from adaptmed.runs.folder import open_run, read_seen, write_seen
from adaptmed.runs.lineage import check_unlabelled
from adaptmed.runs.processes import Processes, join
from adaptmed.runs.same_tokens import check_tokens, require_texts
from adaptmed.tasks.result import REJECTS, RESULT, result_of, save
from adaptmed.tasks.task import Before, Job, Reading, Task
from adaptmed.training.trainer import RunOptions
from adaptmed.training.work import train_in_run


def finetune(
    bank: Bank,
    run: Path,
    out: Path,
    task: Task,
    options: RunOptions | None = None,
    *,
    reading: Reading = lambda *_: None,
) -> dict[str, Any]:
    """Tune an adaptor for a task: a head, and what the task's choices train under it.

    The rows of ``validate`` choose the epoch that is kept, by its loss; without them it is the last one. The rows of
    ``test`` are judged once, at the end. Running it again with the same arguments continues where it stopped, bit for
    bit on the CPU, or returns the result. Started by torchrun, the processes share every batch of a task that allows
    it; the first one judges.

    Args:
        bank: Tokens of the adaptor's encoders, with what the task learns from.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        out: Run folder to write.
        task: What is learnt and how, for example ``Classification()`` or ``Pairs(task="answering")``.
        options: Device, checkpoints, progress.
        reading: Called while files are opened, for masks.

    Returns:
        What ``out/metrics.json`` holds: under ``test`` the scores of the tuned model and its baselines; ``None``
        without test rows.

    Raises:
        InputError: Nothing can be learnt from the fraction, the bank has Tokens of other encoders, the task reads texts
            and the adaptor does not, LoRA is inside an encoder already, labels outside the fraction have trained
            ``run``, ``out`` holds another run, or several processes were started for a task that one process does.
        OverlapError: A patient is in train and validate, or a test patient was seen.
        NonFiniteLossError: A loss or a gradient becomes NaN; the last good checkpoint stays.
        TerminatedError: SIGTERM came; a checkpoint was written.
        LostProcessError: Another process has ended.
    """
    options = options or RunOptions()
    processes = join(options.device)
    _require_one(task, processes)
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    if task.reads_texts:
        require_texts(adaptor, run)
    check_tokens(bank, adaptor, run, texts=task.reads_texts)
    _refuse_second_lora(task, adaptor, run)
    check_unlabelled(run, task.fraction)
    job = task.job(bank, adaptor, Before(seen=read_seen(run), world=processes.world))
    if processes.agreed(lambda: _is_finished(out, run_config(bank, run, task))):
        return json.loads((out / RESULT).read_text())
    processes.agreed(lambda: _open(job, out, reading))
    with torch.random.fork_rng():
        work = job.work(out if processes.first else None)
        if work is not None:
            train_in_run(work, out, processes, options)
        return processes.agreed(lambda: _finish(task, bank, job, out, options.device))


def run_config(bank: Bank, run: Path, task: Task) -> dict[str, object]:
    """Everything that decides the result of a run, as JSON values."""
    images, texts = bank.info.images, bank.info.texts
    keys = {"image_token_key": None if images is None else images.token_key}
    if task.reads_texts:
        keys["text_token_key"] = None if texts is None else texts.token_key
    return {
        "command": "finetune",
        "run": str(run.resolve()),
        "adaptor_sha256": sha256_of(find_adaptor(run) / TENSOR_FILE),
        "bank": str(bank.folder.resolve()),
        **keys,
        "manifest_sha256": bank.info.manifest_sha256,
        "rows_sha256": bank.info.rows_file_sha256,
        **task.config(),
    }


def _is_finished(out: Path, config: dict[str, object]) -> bool:
    open_run(out, config)
    return (out / RESULT).exists()


def _open(job: Job, out: Path, reading: Reading) -> None:
    """Find the rows, and record whose data will be read before it is read."""
    job.open(out, reading)
    write_seen(out, job.division().seen)
    if job.rejects is not None:
        write_text_whole(out / REJECTS, "".join(json.dumps(reject) + "\n" for reject in job.rejects))


def _finish(task: Task, bank: Bank, job: Job, out: Path, device: str) -> dict[str, Any]:
    result = result_of(task, bank, job, out, device=device)
    save(task, job, result, out)
    return result


def _require_one(task: Task, processes: Processes) -> None:
    if processes.world > 1 and not task.shares_batches:
        fix = "Start `adaptmed finetune` without torchrun."
        raise InputError(sentence("processes", expected="one", got=processes.world, fix=fix))


def _refuse_second_lora(task: Task, adaptor: Adaptor, run: Path) -> None:
    for option, (side, lora) in task.loras.items():
        if lora is not None and adaptor.encoders.record_of(side, option).lora is not None:
            expected = f"{'an image' if side == 'image' else 'a text'} encoder without LoRA"
            fix = f"Leave --{option} out: the bank already comes from the tuned encoder."
            raise InputError(sentence(str(run), expected=expected, got="LoRA inside it", fix=fix))
