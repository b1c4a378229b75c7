"""From a bank and a method to a trained adaptor in a run folder, stopped and resumed at will."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank import Bank, BankLoader
from adaptmed.cohort.division import seen_patients
from adaptmed.cohort.rows import rows_with_sides, training_rows
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of
from adaptmed.pretraining.choices import from_json, to_json
from adaptmed.pretraining.job import PretrainJob
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.module import Pretraining
from adaptmed.pretraining.pretext import save_pretext
from adaptmed.runs.folder import BEST, open_run, read_metrics, write_seen
from adaptmed.runs.lineage import Lineage
from adaptmed.runs.precision import Precision
from adaptmed.runs.processes import join
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.encoders import Online
from adaptmed.training.trainer import Length, RunOptions, fit_or_resume, run_trainer


def pretrain(
    bank: Bank,
    method: Method,
    out: Path,
    *,
    seed: int = 0,
    precision: Precision = "fp32",
    device: str = "auto",
    checkpoint_every: int = 50,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
    online: Online | None = None,
    start: Path | None = None,
    strategy: str = "ddp",
) -> Adaptor:
    """Train an adaptor on the ``train`` rows of a bank; ``validate`` decides when to stop and what to keep.

    Running it again with the same arguments goes on where it stopped, bit for bit on the CPU, or returns the
    finished adaptor. Started by torchrun, the processes share every batch: negatives come from all of it, and losses
    and gradients are those of one process (dropout inside layers aside, which every process draws for itself). A run
    may go on with another number of processes.

    Args:
        bank: Image-text pairs with a ``train`` split; images alone for a method whose terms read no texts, which
            trains an adaptor of an image encoder alone.
        method: Fusion, terms and optimiser settings.
        out: Run folder.
        seed: Of weights, order, dropout and mismatched texts.
        precision: Of the fusion's forward pass; weights stay in fp32.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.
        online: Train LoRA inside the encoders too: images are read again from the manifest and encoded in the loop.
        start: Run or saved adaptor whose fusion training starts from, instead of a fresh one: LoRA in the loop is
            costly, and a fusion that was trained from the bank needs few epochs of it.
        strategy: How Lightning lets several processes share the work. Only ``ddp`` is tested; ``fsdp`` is passed on.

    Returns:
        The adaptor at its best epoch, also saved to ``out/adaptor``; without ``online`` no encoder is in memory.

    Raises:
        InputError: If the bank has fewer than two training rows or lacks a side or labels that a term reads, ``out``
            holds another run, the batch size is no multiple of the number of processes, or ``start`` has another shape
            or other encoders.
        OverlapError: If a patient stands in two of the splits.
        NonFiniteLossError: If a loss becomes NaN; the last good checkpoint stays.
        TerminatedError: If SIGTERM came; a checkpoint was written.
        LostProcessError: If another process has ended.
    """
    bank = readable_bank(bank, method)
    train, validate = training_rows(bank), rows_with_sides(bank, "validate", texts=bank.holds_texts)
    job = PretrainJob(bank, method, train, validate, seed, online, start)
    config = run_config(bank, method, seed=seed, precision=precision, online=online, start=start)
    how: dict[str, Any] = {"precision": precision, "device": device, "strategy": strategy, "progress": progress}
    return run_job(job, out, config, checkpoint_every=checkpoint_every, callbacks=callbacks, **how)


def run_job(
    job: PretrainJob,
    out: Path,
    config: Mapping[str, Any],
    *,
    precision: Precision,
    device: str,
    strategy: str,
    progress: bool,
    checkpoint_every: int,
    callbacks: tuple[Callback, ...],
) -> Adaptor:
    """Train what a job says into a run folder, from the start or from where it was stopped; see :func:`pretrain`.

    Args:
        job: What is trained.
        out: Run folder.
        config: Everything that decides the result, as JSON values.
        precision: Of the forward pass.
        device: Lightning's accelerator.
        strategy: How several processes share the work.
        progress: Show a progress bar.
        checkpoint_every: Steps between two checkpoints.
        callbacks: More of Lightning's callbacks.
    """
    bank, train, validate = job.bank, job.train, job.validate
    processes = join(device)
    batch_size = processes.shared_batch(job.method.schedule.batch_size, len(train))
    before = Lineage.joined([Lineage.of_bank(bank.folder), *([] if job.start is None else [Lineage.of_run(job.start)])])
    seen = sorted({*seen_patients(bank, train, validate), *before.patients})
    labels = 1.0 if job.method.reads_labels else before.labels
    if processes.agreed(lambda: _is_finished(out, {**config, "labels_read": labels}, seen)):
        return Adaptor.from_pretrained(find_adaptor(out), load_encoders=False)
    per_epoch = len(train) // batch_size
    length = _length(job.method, per_epoch, judged=len(validate) >= 2, online=job.online)
    task = job.task(length.epochs * -(-per_epoch // length.accumulate))

    def loaders(trainer: lightning.Trainer) -> tuple[BankLoader, BankLoader | None]:
        def position() -> int:
            return _consumed(trainer.global_step, per_epoch, length.accumulate)

        trained, judged = job.batches(batch_size, processes.part, position)
        return trained, None if length.monitor is None else judged

    shown = RunOptions(
        device=device, strategy=strategy, progress=progress, checkpoint_every=checkpoint_every, callbacks=callbacks
    )
    trainer = run_trainer(out, length, processes, precision=precision, options=shown)
    fit_or_resume(trainer, task, loaders, out, processes)
    _keep_best(task, out)
    processes.agreed(lambda: _save(job, task, out))
    return job.adaptor


def _save(job: PretrainJob, task: Pretraining, out: Path) -> None:
    """Write the pretext modules, and last the adaptor, as the sign that all is whole."""
    if len(task.pretext):
        save_pretext(out, task.pretext, before=job.pretext)
    job.adaptor.eval().save_pretrained(out / "adaptor", metrics=_last_metrics(out), labels=job.bank.info.labels)


def _is_finished(out: Path, config: Mapping[str, object], seen: list[str]) -> bool:
    """Open the run folder, record whose data will be read, and tell whether its adaptor is there already."""
    open_run(out, config, upgrade=_with_terms)
    if (out / "adaptor").exists():
        return True
    write_seen(out, seen)
    return False


def _with_terms(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run with its method as it is written today."""
    return {**config, "method": to_json(from_json(config["method"]))} if "method" in config else dict(config)


def _length(method: Method, per_epoch: int, *, judged: bool, online: Online | None) -> Length:
    schedule = method.schedule
    epochs = schedule.epochs_of(per_epoch)
    return Length(
        epochs=epochs,
        monitor="validate/loss" if judged else None,
        patience=schedule.patience * max(1, epochs // schedule.epochs),  # short epochs say less each
        clip=schedule.clip,
        accumulate=1 if online is None else online.accumulate,
    )


def _consumed(steps: int, per_epoch: int, accumulate: int) -> int:
    """Batches behind a number of steps; an epoch's last step may have gathered fewer than the others.

    Example:
        >>> [_consumed(steps, 5, 2) for steps in (1, 2, 3, 4)]
        [2, 4, 5, 7]
    """
    epochs, steps = divmod(steps, -(-per_epoch // accumulate))
    return epochs * per_epoch + steps * accumulate


def run_config(
    bank: Bank,
    method: Method,
    *,
    seed: int,
    precision: Precision,
    online: Online | None = None,
    start: Path | None = None,
) -> dict[str, object]:
    """Everything that decides the result of a run, as JSON values."""
    images, texts = bank.info.images, bank.info.texts
    return {
        "command": "pretrain",
        "bank": str(bank.folder.resolve()),
        "image_token_key": None if images is None else images.token_key,
        "text_token_key": None if texts is None else texts.token_key,
        "manifest_sha256": bank.info.manifest_sha256,
        "method": to_json(method),
        "seed": seed,
        "precision": precision,
        "online": None if online is None else {k: v for k, v in asdict(online).items() if k != "workers"},
        "start_sha256": None if start is None else sha256_of(find_adaptor(start) / TENSOR_FILE),
    }


def readable_bank(bank: Bank, method: Method) -> Bank:
    """Return the bank with what the terms of a method read: without its texts where no term reads any.

    Raises:
        InputError: If the bank lacks texts or labels that a term reads.
    """
    if method.reads_labels:
        _require_labels(bank)
    if not method.reads_texts:
        return bank.of_images()
    if not bank.holds_texts:
        reading = [name for name, need in method.needs.items() if need.texts]
        expected, got = f"texts, which {', '.join(reading)} of the method {method.name} read", "images alone"
        fix = "Embed with --text-encoder, or leave these terms out: --set words.weight=0, --set patches.beside=none."
        raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))
    return bank


def _require_labels(bank: Bank) -> None:
    if not bank.info.labels and bank.info.class_column is None:
        expected = "labels or classes for matching.by_label"
        fix = "Embed with --labels or --class-column, or pass matching.by_label=false."
        raise InputError(sentence(str(bank.folder), expected=expected, got="neither", fix=fix))


def _keep_best(task: Pretraining, out: Path) -> None:
    state = SafetensorsCheckpointIO().load_checkpoint(out / BEST)["state_dict"]
    task.load_state_dict(state, strict=False)
    task.swap_average()


def _last_metrics(out: Path) -> dict[str, float | int]:
    """Metrics of the epoch that was kept: the best on ``validate``, or the last where there is none."""
    judged = [line for line in read_metrics(out) if "validate/loss" in line]
    best = min(judged, key=lambda line: line["validate/loss"]) if judged else read_metrics(out)[-1]
    return {name: value for name, value in best.items() if "/" in name or name in ("epoch", "step")}
