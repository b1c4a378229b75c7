"""``adaptmed finetune``: from a pre-trained adaptor and labels to a tuned adaptor with a head."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from adaptmed.cli.finetune_masks import finetune_masks
from adaptmed.cli.study import estimate
from adaptmed.errors import InputError, sentence


def finetune(
    run: Path,
    bank: Path,
    /,
    *,
    out: Path,
    task: Literal["classification", "segmentation"] = "classification",
    lora: str | None = None,
    train_fusion: bool | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    fusion_learning_rate: float | None = None,
    lora_learning_rate: float | None = None,
    augment: bool = True,
    checkpointing: bool = False,
    accumulate: int = 1,
    precision: Literal["fp32", "bf16"] = "bf16",
    device: str = "auto",
    allow_overlap: bool = False,
    decoder: Literal["image-concat", "dpt", "unetr", "unet"] = "image-concat",
    mask_labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    loss: Literal["dice-cross-entropy", "dice-focal", "paper"] = "dice-cross-entropy",
    steps: int | None = None,
    window_slices: int | None = None,
) -> None:
    """Tune a pre-trained adaptor for the labels or the masks of a bank: a head or a decoder, fusion, LoRA.

    Starts at the best linear probe on the labelled `train` images. The labelled `validate` images choose the epoch that
    is kept; `test` is read once, at the end, and refused when the run has seen its patients. Without --lora everything
    comes from the bank; with it images are read again from the table and encoded in every step, which takes the time of
    the encoder. Then `adaptmed embed m.csv --adaptor OUT` writes the tuned bank.

    With --task segmentation a decoder is trained on the fused grid from the masks of the table: PNG masks of pictures,
    or NIfTI masks of volumes. `metrics.json` then holds Dice (over all images, and over those that hold the label) and
    surface distances where spacing is known; `adaptmed predict` reads `decoder.safetensors`. From a bank images cannot
    be changed at random, because their tokens could not follow; with --lora they are, and masks with them.

    Writes a run folder: `metrics.json` (AUROC on `test`, beside the probe's), the tuned adaptor in `adaptor/`,
    `head.safetensors` with `head.json`, `config.json`, `metrics.jsonl` and `checkpoints/`. Run the same command again
    to go on where it stopped.

    Args:
        run: Run folder of `adaptmed pretrain`, or a saved adaptor.
        bank: Bank with labels or a class column, of the same image encoder.
        out: Run folder to write, or to go on with.
        task: What is learnt: labels (or classes), or masks.
        lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        train_fusion: Train the fusion too; by default for labels and not for masks. For labels --no-train-fusion
            without --lora leaves the probe as it is.
        fraction: Share of the labelled training patients, above 0 and at most 1, chosen as in a study.
        seed: Seed of the fraction, fresh weights, order, augmentation and dropout.
        epochs: Passes over the fraction; 4 by default. Masks are trained for --steps instead.
        batch_size: Images per batch; 32 by default, for masks 8 pictures or slices. Few images make one larger batch.
        learning_rate: Peak learning rate of the head (1e-3 by default) or decoder (3e-3).
        fusion_learning_rate: Peak learning rate of the fusion.
        lora_learning_rate: Peak learning rate of LoRA; 3e-4 by default.
        augment: With --lora, change training images at random: small turns, shifts, scales, contrast, never a flip.
        checkpointing: With --lora, compute activations again in the backward pass: less memory, more time.
        accumulate: Batches whose gradients make one step.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both.
        device: auto, cpu or cuda.
        allow_overlap: Judge although test patients were seen in pre-training; the results say so.
        decoder: For masks: image-concat reads any bank; dpt and unetr (transformers) and unet (CNNs) read one that was
            embedded with --taps 4.
        mask_labels: Names of mask values, for example 1=effusion 2=nodule; by default the values in the masks of
            `train`. 0 is background.
        loss: For masks: Dice with cross-entropy, Dice with focal loss, or the Adaptor paper's 10 focal - log Dice.
        steps: For masks: optimiser steps; 300 by default.
        window_slices: For masks of volumes: slices per window; 8 by default.
    """
    if lora is None and (checkpointing or lora_learning_rate is not None):
        got, fix = "none", "Pass for example --lora rank=8, or leave --checkpointing and --lora-learning-rate out."
        raise InputError(sentence("lora", expected="what is trained inside the encoder", got=got, fix=fix))
    asked: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
    asked |= {"fusion_learning_rate": fusion_learning_rate, "encoder_learning_rate": lora_learning_rate}
    shared: dict[str, Any] = {"fraction": fraction, "seed": seed, "allow_overlap": allow_overlap}
    if task == "segmentation":
        _refuse_for_masks(epochs=epochs, accumulate=accumulate, checkpointing=checkpointing, augment=augment)
        asked |= {"decoder": decoder, "loss": loss, "steps": steps, "window_slices": window_slices}
        shared |= {"train_fusion": bool(train_fusion), "mask_labels": mask_labels, "lora": lora}
        finetune_masks(run, bank, out, asked | {"precision": precision}, shared, device=device)
        return
    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.lora import LoRA
    from adaptmed.tasks.finetune import finetune as tune
    from adaptmed.tasks.finetuning import FinetuneSettings

    settings = FinetuneSettings(
        **{name: value for name, value in ({"epochs": epochs} | asked).items() if value is not None},
        augment=augment,
        checkpointing=checkpointing,
        accumulate=accumulate,
        precision=precision,
    )
    result = tune(
        Bank.open(bank),
        run,
        out,
        settings=settings,
        lora=None if lora is None else LoRA.parse(lora),
        train_fusion=train_fusion is not False,
        device=device,
        progress=True,
        **shared,
    )
    print_result(result)
    console = Console(soft_wrap=True)
    console.print(Text.assemble("Tuned adaptor and head: ", (str(out), "bold")))
    if lora is not None:
        console.print(Text(f"Next: adaptmed embed {Bank.open(bank).info.manifest} --adaptor {out} --out {out}-bank"))


def _refuse_for_masks(**options: object) -> None:
    """Refuse options that say nothing where masks are learnt."""
    usual = {"epochs": None, "accumulate": 1, "checkpointing": False, "augment": True}
    for name, value in options.items():
        if value != usual[name]:
            fix = "Leave it out; --steps and --batch-size say how long and on how much."
            raise InputError(sentence(name, expected="nothing beside --task segmentation", got=value, fix=fix))


def print_result(result: dict[str, Any]) -> None:
    """Print what was trained and the AUROC on the test images, tuned and before, with what must be said about them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    trained = f"{result['trainable_parameters']:,} parameters on {result['train_images']} images"
    console.print(Text(f"Trained {trained} of {result['train_patients']} patients."))
    for caution in _cautions(result):
        console.print(Text(caution))
    test = result["test"]
    if test is None:
        return
    tuned, probe = (test[arm]["auroc"] for arm in ("tuned", "probe"))
    title = Text(f"AUROC on {test['images']} test images of {test['patients']} patients", style="table.title")
    table = Table("label", "tuned", "probe it started at", title=title)
    for name in tuned["labels"]:
        table.add_row(Text(name), estimate(tuned["labels"][name]), estimate(probe["labels"][name]))
    table.add_row("mean", estimate(tuned["macro"]), estimate(probe["macro"]))
    Console().print(table)


def _cautions(result: dict[str, Any]) -> list[str]:
    found = []
    if result["test"] is None:
        found.append("There is no labelled test image: nothing was judged.")
    elif result["test"]["patients_seen_in_training"]:
        count = result["test"]["patients_seen_in_training"]
        found.append(f"{count} test patients were seen in training; the numbers are too good.")
    if not result["patients_of_pretraining_known"]:
        found.append("Which patients the adaptor was pre-trained on is not known: nobody checked them.")
    if not result["patient_column"]:
        found.append("The table has no patient column: every row is taken as its own patient.")
    return found
