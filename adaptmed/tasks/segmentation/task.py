"""From a run and masks to a decoder on the adaptor in a run folder, stopped and resumed at will."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import SPLITS, Division, Share, divide, require_apart
from adaptmed.cohort.rows import with_mask
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of
from adaptmed.heads.decoders import NEEDS, build_decoder
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.runs.folder import BEST, open_run, read_seen, write_seen
from adaptmed.runs.lineage import check_unlabelled
from adaptmed.runs.processes import Processes, join
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.tasks.segmentation.finetune_result import RESULT, result_of, save
from adaptmed.tasks.segmentation.masks import Masks, Progress, find_masks
from adaptmed.tasks.segmentation.model import Segmenter
from adaptmed.tasks.segmentation.reading import Examples, InOrder, Steps, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.tasks.segmentation.shapes import check_bank, shape_for, taps_of
from adaptmed.tasks.segmentation.training import SegmentationTask, channels_last, in_order, start, steps_of
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from adaptmed.training.trainable import trainable_fusion
from adaptmed.training.trainer import Length, fit_or_resume, run_trainer


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What is tuned for masks, and on what.

    Attributes:
        settings: How the decoder is trained.
        lora: Fresh LoRA inside the image encoder, which then runs in the loop on pictures that are changed at random
            with their masks; ``None`` leaves the encoder alone and reads the bank.
        train_fusion: Whether the fusion learns too.
        labels: Value → name of what may stand in masks; ``None`` takes all that stand in those of ``train``.
        fraction: Share of the training patients with masks, chosen as in a study.
        seed: Of the fraction, fresh weights, the order and random changes.
        allow_overlap: Go on although test patients were seen in pre-training; the results say so.
    """

    settings: SegmentationSettings
    lora: LoRA | None = None
    train_fusion: bool = False
    labels: Mapping[int, str] | None = None
    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False


def finetune_segmentation(
    bank: Bank,
    run: Path,
    out: Path,
    choices: Choices,
    *,
    device: str = "auto",
    checkpoint_every: int = 50,
    progress: bool = False,
    callbacks: tuple[Callback, ...] = (),
    reading: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Train a decoder on an adaptor's fused grid, judged in the geometry of the images.

    Masks of ``validate`` choose the round that is kept, by its loss; without them it is the last one. Masks of ``test``
    are judged once, at the end. Running it again with the same arguments goes on where it stopped, bit for bit on the
    CPU, or returns the result.

    Args:
        bank: Tokens of the adaptor's image encoder; its rows name masks.
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        out: Run folder to write.
        choices: What is tuned, and on what.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.
        checkpoint_every: Steps between two checkpoints.
        progress: Show a progress bar.
        callbacks: More of Lightning's callbacks.
        reading: Called while masks are opened.

    Returns:
        What ``out/metrics.json`` holds: under ``test`` the scores of the ``tuned`` decoder and of the ``empty``
        prediction, per metric and label with intervals over patients; ``None`` without test masks.

    Raises:
        InputError: There are no usable masks, the decoder does not fit the bank, the bank has Tokens of another
            encoder, labels outside the fraction have trained ``run``, or ``out`` holds another run.
        OverlapError: A patient stands in train and validate, or a test patient was seen.
        NonFiniteLossError: A loss becomes NaN; the last good checkpoint stays.
        TerminatedError: SIGTERM came; a checkpoint was written.
    """
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    _check(bank, adaptor, run, choices, device)
    train, validate, test = (with_mask(bank, split) for split in SPLITS)
    require_apart(bank, (train, validate, test), before=read_seen(run), allow_overlap=choices.allow_overlap)
    open_run(out, run_config(bank, run, choices))
    if (out / RESULT).exists():
        return json.loads((out / RESULT).read_text())
    masks = find_masks(bank, out / "masks", labels=choices.labels, progress=reading)
    rows = divide_masks(bank, masks, choices, read_seen(run))
    write_seen(out, rows.seen)
    model = channels_last(_model(bank, adaptor, masks, choices))
    task = SegmentationTask(model, choices.settings, seed=choices.seed)
    options = {"checkpoint_every": checkpoint_every, "progress": progress, "callbacks": callbacks}
    reader = WindowReader(bank, wanted_by(choices))
    _train(task, reader, masks, rows, choices, out, device=device, **options)
    result = result_of(model, reader, masks, rows, choices.settings, out, device=device)
    save(adaptor, model, masks, choices.settings, result, out)
    return result


def run_config(bank: Bank, run: Path, choices: Choices) -> dict[str, object]:
    """Everything that decides the result of a run, as JSON values."""
    images = bank.info.images
    labels = None if choices.labels is None else {str(value): name for value, name in choices.labels.items()}
    return {
        "command": "finetune",
        "task": "segmentation",
        "run": str(run.resolve()),
        "adaptor_sha256": sha256_of(find_adaptor(run) / TENSOR_FILE),
        "bank": str(bank.folder.resolve()),
        "image_token_key": None if images is None else images.token_key,
        "manifest_sha256": bank.info.manifest_sha256,
        "rows_sha256": bank.info.rows_file_sha256,
        **asdict(choices),
        "labels": labels,
    }


def divide_masks(bank: Bank, masks: Masks, choices: Choices, before: frozenset[str] | None) -> Division:
    """Take the fraction's patients from the train split as a study does, and everybody with a mask of the other two.

    Raises:
        InputError: No mask of the fraction holds a label.
        OverlapError: A patient stands in train and validate, or a test patient was seen.
    """
    train, validate, test = (masks.rows(split) for split in SPLITS)
    share = Share(fraction=choices.fraction, seed=choices.seed, allow_overlap=choices.allow_overlap)
    strata = masks.present(train).astype(float)
    rows = divide(bank, (train, validate, test), strata, share, before=before, judged=test)
    if not masks.present(rows.train).any():
        expected, got = "a mask that is not empty", f"none among {len(rows.train)} of the fraction {choices.fraction:g}"
        raise InputError(sentence("fraction", expected=expected, got=got, fix="Take a larger --fraction."))
    return rows


def wanted_by(choices: Choices) -> Wanted:
    """What the model reads: an encoder in the loop makes Tokens and taps itself, from pixels."""
    needs = NEEDS[choices.settings.decoder]
    if choices.lora is not None:
        return Wanted(tokens=False, taps=False, pixels=True)
    return Wanted(tokens=True, taps=needs.taps > 0, pixels=needs.pixels)


def _check(bank: Bank, adaptor: Adaptor, run: Path, choices: Choices, device: str) -> None:
    """Refuse what cannot be tuned together."""
    processes = join(device)
    if processes.world > 1:
        fix = "Start `adaptmed finetune` without torchrun."
        raise InputError(sentence("processes", expected="one", got=processes.world, fix=fix))
    check_tokens(bank, adaptor, run, texts=False)
    check_bank(bank, choices.settings.decoder)
    if choices.lora is not None and bank.holds_volumes:
        fix = "Leave --lora out, or embed the slices as pictures."
        raise InputError(sentence("lora", expected="a bank of pictures", got="volumes", fix=fix))
    if choices.lora is not None and adaptor.encoders.image_record.lora is not None:
        fix = "Leave --lora out: the bank already comes from the tuned encoder."
        raise InputError(sentence(str(run), expected="an image encoder without LoRA", got="LoRA inside it", fix=fix))
    check_unlabelled(run, choices.fraction)


def _model(bank: Bank, adaptor: Adaptor, masks: Masks, choices: Choices) -> Segmenter:
    """Put a fresh decoder on the adaptor's parts, of which those to be tuned can be trained."""
    settings = choices.settings
    if choices.train_fusion:
        example = bank.item_tokens(np.array([0]), dtype=torch.float32)
        adaptor.fusion = trainable_fusion(adaptor.fusion, example, fused=True)
    else:
        adaptor.fusion.requires_grad_(requires_grad=False)
    if choices.lora is not None:
        adaptor.encoders.load_image().attach_lora("image", choices.lora, seed=step_seed(choices.seed, -3))
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(choices.seed, -1))
        decoder = build_decoder(shape_for(bank, settings, fused_width=adaptor.fusion.width, classes=len(masks.labels)))
    encoder, taps = adaptor.encoders.image, taps_of(bank, settings)
    return Segmenter(decoder, fusion=adaptor.fusion, encoder=encoder, taps=taps, layout=bank.info.layout)


def _train(
    task: SegmentationTask,
    reader: WindowReader,
    masks: Masks,
    rows: Division,
    choices: Choices,
    out: Path,
    *,
    device: str,
    **options: Any,
) -> None:
    """Train from the last checkpoint, or from the start, and take up the round that is kept."""
    settings = choices.settings
    augment = choices.lora is not None
    examples = Examples(reader, masks, rows.train, settings.window_slices, choices.seed, augment=augment)
    judged = Examples(reader, masks, rows.validate, settings.window_slices, 0) if len(rows.validate) else None
    start(task.model, examples, settings)
    length = Length(
        epochs=settings.rounds,
        monitor=None if judged is None else "validate/loss",
        patience=settings.rounds,
        clip=settings.clip,
    )

    def loaders(trainer: lightning.Trainer) -> tuple[Steps, InOrder | None]:
        return steps_of(examples, settings, trainer), None if judged is None else in_order(judged, settings)

    trainer = run_trainer(out, length, Processes(), precision=settings.precision, device=device, **options)
    fit_or_resume(trainer, task.train(), loaders, out, Processes())
    task.cpu().eval()
    task.load_state_dict(SafetensorsCheckpointIO().load_checkpoint(out / BEST)["state_dict"], strict=False)
