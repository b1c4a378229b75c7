"""From a run and labels to a tuned adaptor with its head in a run folder, stopped and resumed at will."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import Share, divide_labelled
from adaptmed.cohort.rows import labels_of
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of
from adaptmed.heads.outputs import Outputs
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.runs.folder import BEST, open_run, read_seen, write_seen
from adaptmed.runs.lineage import check_unlabelled
from adaptmed.runs.processes import Processes, join
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.tasks.classification.task import Job
from adaptmed.tasks.finetune_result import RESULT, result_of, save
from adaptmed.tasks.finetuning import Finetuning, in_order, predict, shuffled
from adaptmed.training.batches import Batches
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import Length, fit_or_resume, run_trainer


def finetune(
    bank: Bank,
    run: Path,
    out: Path,
    *,
    task: Literal["classification"] = "classification",
    settings: FinetuneSettings | None = None,
    lora: LoRA | None = None,
    train_fusion: bool = True,
    fraction: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    allow_overlap: bool = False,
    checkpoint_every: int = 50,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
) -> dict[str, Any]:
    """Tune an adaptor for the labels of a bank: a head, the fusion under it, and LoRA inside its image encoder.

    Everything starts at the best linear probe on the adaptor's features, as in ``finetune_head``; a linear head alone
    stays the probe. The labelled images of ``validate`` choose the epoch that is kept, by its loss; without them it is
    the last one. The images of ``test`` are read once, at the end. With LoRA, images are read again from the manifest,
    changed at random and encoded in every step; without it everything comes from the bank.

    Running it again with the same arguments goes on where it stopped, bit for bit on the CPU, or returns the result.

    Args:
        bank: Labels, and Tokens of the adaptor's image encoder.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        out: Run folder to write.
        task: What is learnt.
        settings: How to tune.
        lora: Fresh LoRA inside the image encoder; ``None`` leaves the encoder alone.
        train_fusion: Whether the fusion learns too.
        fraction: Share of the labelled training patients, chosen as in a study.
        seed: Of the fraction, fresh weights, the order, augmentation and dropout.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        allow_overlap: Go on although test patients were seen in pre-training; the results say so.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.

    Returns:
        What ``out/metrics.json`` holds: under ``test`` the AUROC of what was ``tuned`` and of the ``probe`` it
        started at, for each label and their mean; ``None`` without labelled test images.

    Raises:
        InputError: If nothing can be learnt from the fraction, the bank has Tokens of another encoder, LoRA is in the
            image encoder already, labels outside the fraction have trained ``run``, ``out`` holds another run, or
            several processes were started.
        OverlapError: If a patient stands in train and validate, or a test patient was seen.
        NonFiniteLossError: If a loss becomes NaN; the last good checkpoint stays.
        TerminatedError: If SIGTERM came; a checkpoint was written.
    """
    settings = settings or FinetuneSettings()
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    _check(bank, adaptor, run, lora, fraction, device)
    share = Share(fraction=fraction, seed=seed, allow_overlap=allow_overlap)
    rows = divide_labelled(bank, share, before=read_seen(run))
    choices = {"train_fusion": train_fusion, "fraction": fraction, "seed": seed, "allow_overlap": allow_overlap}
    open_run(out, run_config(bank, run, settings, lora, task=task, **choices))
    if (out / RESULT).exists():
        return json.loads((out / RESULT).read_text())
    write_seen(out, rows.seen)
    job = Job(bank, adaptor, rows, settings, lora, train_fusion, seed)
    start = job.start()
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        tuning = Finetuning(job.model(start), settings, seed=seed, images=len(rows.train))
        if lora is not None or train_fusion or settings.hidden is not None:
            options = {"checkpoint_every": checkpoint_every, "progress": progress, "callbacks": callbacks}
            _train(job, tuning, start.outputs, out, device=device, **options)
        logits = predict(tuning, job.images(rows.test), device)
    result = result_of(job, start, tuning.model, logits, out)
    save(job, start, tuning.model, result, out)
    return result


def run_config(
    bank: Bank, run: Path, settings: FinetuneSettings, lora: LoRA | None, **choices: object
) -> dict[str, object]:
    """Everything that decides the result of a run, as JSON values."""
    images = bank.info.images
    return {
        "command": "finetune",
        "run": str(run.resolve()),
        "adaptor_sha256": sha256_of(find_adaptor(run) / TENSOR_FILE),
        "bank": str(bank.folder.resolve()),
        "image_token_key": None if images is None else images.token_key,
        "manifest_sha256": bank.info.manifest_sha256,
        "rows_sha256": bank.info.rows_file_sha256,
        "settings": asdict(settings),
        "lora": None if lora is None else asdict(lora),
        **choices,
    }


def _train(job: Job, tuning: Finetuning, outputs: Outputs, out: Path, *, device: str, **options: Any) -> None:
    """Train from the last checkpoint, or from the start, and take up the epoch that is kept."""
    settings, rows = tuning.settings, job.rows
    draws = job.seed if settings.augment else None
    train = job.images(rows.train, outputs.targets(labels_of(job.bank, rows.train)), seed=draws)
    targets = outputs.targets(labels_of(job.bank, rows.validate))
    known = targets >= 0 if outputs.multiclass else (targets >= 0).any(dim=1)  # NaN compares as False
    judged = job.images(rows.validate[known.numpy()], targets[known]) if known.any() else None
    length = Length(
        epochs=settings.epochs,
        monitor=None if judged is None else "validate/loss",
        patience=settings.epochs,
        clip=settings.clip,
        accumulate=settings.accumulate,
    )

    def loaders(trainer: lightning.Trainer) -> tuple[Batches, Batches | None]:
        return shuffled(tuning, train, trainer), None if judged is None else in_order(tuning, judged)

    trainer = run_trainer(out, length, Processes(), precision=settings.precision, device=device, **options)
    fit_or_resume(trainer, tuning.train(), loaders, out, Processes())
    tuning.cpu().eval()
    tuning.load_state_dict(SafetensorsCheckpointIO().load_checkpoint(out / BEST)["state_dict"], strict=False)


def _check(bank: Bank, adaptor: Adaptor, run: Path, lora: LoRA | None, fraction: float, device: str) -> None:
    """Refuse what cannot be tuned together."""
    processes = join(device)
    if processes.world > 1:
        fix = "Start `adaptmed finetune` without torchrun."
        raise InputError(sentence("processes", expected="one", got=processes.world, fix=fix))
    check_tokens(bank, adaptor, run, texts=False)
    if lora is not None and adaptor.encoders.image_record.lora is not None:
        fix = "Leave --lora out: the bank already comes from the tuned encoder."
        raise InputError(sentence(str(run), expected="an image encoder without LoRA", got="LoRA inside it", fix=fix))
    check_unlabelled(run, fraction)
