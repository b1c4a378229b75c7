"""``adaptmed finetune``: from a pre-trained adaptor and labels to a tuned adaptor with a head."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptmed.cli.options import LoraOptions, MaskOptions, OptimiserOptions, PairOptions
from adaptmed.errors import InputError, sentence

if TYPE_CHECKING:
    from adaptmed.tasks.task import Task

_MASKS, _ANSWERS, _CLASSES, _LABELS = "segmentation", "answering", "image-text-classification", "classification"
_PAIRS = (_ANSWERS, _CLASSES)
_BELONGS = {
    "decoder": (_MASKS,),
    "mask_labels": (_MASKS,),
    "steps": (_MASKS,),
    "minutes": (_MASKS,),
    "shown_px": (_MASKS,),
    "window_slices": (_MASKS,),
    "loss": (_MASKS, _ANSWERS),
    "text_lora": _PAIRS,
    "coordinate_gradients": _PAIRS,
    "gradient_noise": _PAIRS,
    "unimodal_scores": _PAIRS,
    "answers_from": (_ANSWERS,),
    "frozen_beside": _PAIRS,
    "class_weights": (_CLASSES,),
    "epochs": (_LABELS, *_PAIRS),
    "accumulate": (_LABELS, *_PAIRS),
    "checkpointing": (_LABELS, *_PAIRS),
}
"""Tasks that have an option; every task has those that are not here."""
_LOSSES = {_MASKS: ("dice-cross-entropy", "dice-focal", "paper"), _ANSWERS: ("binary", "cross-entropy")}

_NO_OPTIMISER, _NO_LORA, _NO_PAIRS, _NO_MASKS = OptimiserOptions(), LoraOptions(), PairOptions(), MaskOptions()


def finetune(
    run: Path,
    bank: Path | None = None,
    /,
    *,
    out: Path,
    task: str | None = None,
    config: Path | None = None,
    train_fusion: bool | None = None,
    loss: Literal["dice-cross-entropy", "dice-focal", "paper", "binary", "cross-entropy"] | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    allow_overlap: bool | None = None,
    optimiser: OptimiserOptions = _NO_OPTIMISER,
    lora: LoraOptions = _NO_LORA,
    pairs: PairOptions = _NO_PAIRS,
    masks: MaskOptions = _NO_MASKS,
) -> None:
    """Tune a pre-trained adaptor for labels, masks or questions of a bank: a head or a decoder, fusion, LoRA.

    Starts at the best linear probe on the labelled `train` images. The labelled `validate` images choose the epoch that
    is kept; `test` is read once, at the end, and refused when the run has seen its patients. Without --lora everything
    comes from the bank; with it images are read again from the table and encoded in every step, which takes the time of
    the encoder. Then `adaptmed embed m.csv --adaptor OUT` writes the tuned bank.

    With --task segmentation a decoder is trained on the fused grid from the masks of the table: PNG masks of pictures,
    or NIfTI masks of volumes. `metrics.json` then holds Dice (over all images, and over those that hold the label) and
    surface distances where spacing is known; `adaptmed predict` reads `decoder.safetensors`. Images are changed at
    random with their masks: with --lora before the encoder, from a bank behind it, where maps of features move along.

    With --task answering the texts of the bank are questions, and a head on the fused pair chooses among the answers of
    the training rows; with --task image-text-classification it reads image and text for labels or classes.
    `metrics.json` then holds the tuned model beside itself with the image of another patient, the same head on frozen
    features, and the same head on the text alone; `answers.csv` holds every answer. --coordinate-gradients (GM-Coord of
    UMD, for the fusion co) holds back the modality that answers better alone; `coordination.jsonl` says by how much in
    every step. Several processes under torchrun share the work of these two tasks.

    Writes a run folder: `metrics.json` (AUROC on `test`, beside the probe's), the tuned adaptor in `adaptor/`,
    `head.safetensors` with `head.json`, `config.json`, `metrics.jsonl` and `checkpoints/`. Run the same command again
    to go on where it stopped.

    Args:
        run: Run folder of `adaptmed pretrain`, or a saved adaptor.
        bank: Bank of the same encoders, with labels or a class column, masks, or questions and answers.
        out: Run folder to write, or to go on with.
        task: What is learnt: classification (the default, of labels or classes of images), segmentation (masks),
            answering (questions), or image-text-classification (labels or classes of images with their texts).
        config: Take what is left out from the config.json of another such run, or a copy of it.
        train_fusion: Train the fusion too; by default for all but masks. For labels of images --no-train-fusion
            without --lora leaves the probe as it is.
        loss: For masks: Dice with cross-entropy (the default), Dice with focal loss, or the Adaptor paper's 10 focal -
            log Dice. For answers: binary (of every answer on its own, the papers' and the default) or cross-entropy.
        fraction: Share of the labelled training patients, above 0 and at most 1, chosen as in a study; 1 by default.
        seed: Seed of the fraction, fresh weights, order, augmentation and dropout; 0 by default.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both. By default bf16 where the
            device computes in it, else fp32, which is then faster; a run that was begun goes on with its own.
        device: auto, cpu or cuda.
        allow_overlap: Judge although test patients were seen in pre-training; the results say so.
        optimiser: How long and how fast.
        lora: LoRA inside the encoders.
        pairs: Options of pairs.
        masks: Options of masks.
    """
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.settings import bank_of, check_names, read_settings, task_of

    header, held = read_settings(config, "finetune")
    asked = task_of(task, held, _LABELS)
    given = asdict(optimiser) | asdict(lora) | asdict(pairs) | asdict(masks) | {"loss": loss}
    given = {name: value for name, value in given.items() if value not in (None, ())}
    check_names("task", [asked], tuple(_CHOICES))
    _refuse_foreign(asked, given)
    shared = {"fraction": fraction, "seed": seed, "allow_overlap": allow_overlap, "train_fusion": train_fusion}
    held |= {name: value for name, value in shared.items() if value is not None}
    begun = dict(held.get("settings", {})).get("precision") or usual_precision(device, out)
    chosen = _CHOICES[asked](asked, {**given, "precision": precision or begun}, held)
    from rich.console import Console

    from adaptmed.bank import Bank
    from adaptmed.cli.show import print_scores
    from adaptmed.runs.processes import join
    from adaptmed.tasks.finetune import finetune as tune
    from adaptmed.training.trainer import RunOptions

    opened, options = Bank.open(bank_of(bank, header)), RunOptions(device=device, progress=True)
    with _mask_progress() as reading:
        result = tune(opened, run, out, chosen, options, reading=reading)
    if not join(device).first:
        return
    noun = chosen.noun
    trained = f"{result['trainable_parameters']:,} parameters on {result[f'train_{noun}']} {noun}"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"Trained {trained} of {result['train_patients']} patients.")
    print_scores(asked, result)
    console.print(f"Tuned adaptor and head: {out}")
    following = {_LABELS: None, _MASKS: f"predict {out} images... --out masks"}
    named = following.get(asked, f"evaluate {out} another-bank")
    if asked == _LABELS and lora.lora is not None:
        named = f"embed {opened.info.manifest} --adaptor {out} --out {out}-bank"
    if named is not None:
        console.print(f"Next: adaptmed {named}")


def _refuse_foreign(task: str, given: Mapping[str, object]) -> None:
    """Refuse options that another task has, and those that say how to do what was not asked for."""
    for name, value in given.items():
        if task not in _BELONGS.get(name, (task,)):
            fix = f"Leave it out; it belongs to --task {' and '.join(_BELONGS[name])}."
            raise InputError(sentence(name, expected=f"an option that --task {task} has", got=value, fix=fix))
    loss = given.get("loss")
    if loss is not None and loss not in _LOSSES.get(task, ()):
        expected, fix = f"one of {', '.join(_LOSSES.get(task, ()))}", "Choose one, or leave it out."
        raise InputError(sentence("loss", expected=expected, got=loss, fix=fix))
    if {"gradient_noise", "unimodal_scores"} & set(given) and not given.get("coordinate_gradients"):
        fix = "Pass it, or leave --gradient-noise and --unimodal-scores out."
        expected = "--coordinate-gradients beside its options"
        raise InputError(sentence("coordinate_gradients", expected=expected, got="none", fix=fix))
    if {"checkpointing", "lora_learning_rate"} & set(given) and not {"lora", "text_lora"} & set(given):
        got, fix = "none", "Pass for example --lora rank=8, or leave --checkpointing and --lora-learning-rate out."
        raise InputError(sentence("lora", expected="what is trained inside the encoder", got=got, fix=fix))


def _settings(given: Mapping[str, Any], held: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Settings of training by the names of their dataclass: what was given, and else what a configuration holds."""
    rates = ("batch_size", "learning_rate", "fusion_learning_rate", "precision")
    found = {name: given[name] for name in (*rates, *names) if name in given}
    if "lora_learning_rate" in given:
        found["encoder_learning_rate"] = given["lora_learning_rate"]
    return {**held.get("settings", {}), **found}


def _loras(given: Mapping[str, Any], sides: Mapping[str, str]) -> dict[str, Any]:
    """What was said of LoRA, by the names of the choices."""
    from adaptmed.lora import LoRA

    return {choice: LoRA.parse(given[option]) for option, choice in sides.items() if option in given}


def _labels(_: str, given: Mapping[str, Any], held: Mapping[str, Any]) -> "Task":
    from adaptmed.runs.settings import build_settings
    from adaptmed.tasks.classification.task import Classification

    settings = _settings(given, held, "epochs", "accumulate", "augment", "checkpointing")
    return build_settings(Classification, "config", {**held, **_loras(given, {"lora": "lora"}), "settings": settings})


def _pairs(task: str, given: Mapping[str, Any], held: Mapping[str, Any]) -> "Task":
    from adaptmed.runs.settings import build_settings
    from adaptmed.tasks.pairs.settings import EPOCHS, PairChoices
    from adaptmed.tasks.pairs.task import Pairs

    settings = {"epochs": EPOCHS} | _settings(given, held, "epochs", "accumulate", "augment", "checkpointing")
    own = {name: given[name] for name in ("loss", "answers_from", "frozen_beside", "class_weights") if name in given}
    own |= _loras(given, {"lora": "image_lora", "text_lora": "text_lora"})
    if "coordinate_gradients" in given:
        how = {"gradient_noise": "noise", "unimodal_scores": "scores"}
        how = {field: given[name] for name, field in how.items() if name in given}
        own["coordination"] = how if given["coordinate_gradients"] else None
    return Pairs(build_settings(PairChoices, "config", {**held, "task": task, **own, "settings": settings}))


def _masks(_: str, given: Mapping[str, Any], held: Mapping[str, Any]) -> "Task":
    from adaptmed.data.mask_labels import parse_labels
    from adaptmed.runs.settings import build_settings
    from adaptmed.tasks.segmentation.settings import MaskChoices
    from adaptmed.tasks.segmentation.task import Segmentation

    settings = _settings(given, held, "decoder", "loss", "steps", "minutes", "shown_px", "window_slices", "augment")
    own = _loras(given, {"lora": "lora"})
    if "mask_labels" in given:
        own["labels"] = parse_labels(given["mask_labels"])
    return Segmentation(build_settings(MaskChoices, "config", {**held, **own, "settings": settings}))


_CHOICES = {_LABELS: _labels, _MASKS: _masks, _ANSWERS: _pairs, _CLASSES: _pairs}


@contextmanager
def _mask_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while masks are opened; it vanishes when they are, because the bar of training follows."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(soft_wrap=True, highlight=False, markup=False)
    bar = Progress(TextColumn("masks"), BarColumn(), MofNCompleteColumn(), console=console, transient=True)
    task = bar.add_task("", total=None)

    def show(_: str, done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    try:
        yield show
    finally:
        bar.stop()
