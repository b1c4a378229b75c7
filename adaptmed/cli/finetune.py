"""``adaptmed finetune``: from a pre-trained adaptor and labels to a tuned adaptor with a head."""

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from adaptmed.cli.finetune_masks import finetune_masks
from adaptmed.cli.finetune_options import refuse_foreign, require_coordination
from adaptmed.cli.finetune_pairs import finetune_pairs
from adaptmed.cli.show import estimate
from adaptmed.errors import InputError, sentence


def finetune(
    run: Path,
    bank: Path,
    /,
    *,
    out: Path,
    task: Literal["classification", "segmentation", "answering", "image-text-classification"] = "classification",
    lora: str | None = None,
    text_lora: str | None = None,
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
    decoder: Literal["image-concat", "dpt", "unetr", "unet"] | None = None,
    mask_labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    loss: Literal["dice-cross-entropy", "dice-focal", "paper", "binary", "cross-entropy"] | None = None,
    steps: int | None = None,
    window_slices: int | None = None,
    coordinate_gradients: bool = False,
    gradient_noise: bool | None = None,
    unimodal_scores: Literal["head", "last-linear"] | None = None,
    answers_from: Literal["train", "all"] | None = None,
    frozen_beside: bool | None = None,
    class_weights: Literal["none", "balanced"] | None = None,
) -> None:
    """Tune a pre-trained adaptor for labels, masks or questions of a bank: a head or a decoder, fusion, LoRA.

    Starts at the best linear probe on the labelled `train` images. The labelled `validate` images choose the epoch that
    is kept; `test` is read once, at the end, and refused when the run has seen its patients. Without --lora everything
    comes from the bank; with it images are read again from the table and encoded in every step, which takes the time of
    the encoder. Then `adaptmed embed m.csv --adaptor OUT` writes the tuned bank.

    With --task segmentation a decoder is trained on the fused grid from the masks of the table: PNG masks of pictures,
    or NIfTI masks of volumes. `metrics.json` then holds Dice (over all images, and over those that hold the label) and
    surface distances where spacing is known; `adaptmed predict` reads `decoder.safetensors`. From a bank images cannot
    be changed at random, because their tokens could not follow; with --lora they are, and masks with them.

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
        task: What is learnt: labels (or classes) of images, masks, answers to questions, or labels (or classes) of
            images with their texts.
        lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        text_lora: For pairs: the same inside the text encoder.
        train_fusion: Train the fusion too; by default for all but masks. For labels of images --no-train-fusion
            without --lora leaves the probe as it is.
        fraction: Share of the labelled training patients, above 0 and at most 1, chosen as in a study.
        seed: Seed of the fraction, fresh weights, order, augmentation and dropout.
        epochs: Passes over the fraction; 4 by default, for pairs 20. Masks are trained for --steps instead.
        batch_size: Images or pairs per batch; 32 by default, for masks 8 pictures or slices. Few images make one larger
            batch.
        learning_rate: Peak learning rate of the head (1e-3 by default) or decoder (3e-3).
        fusion_learning_rate: Peak learning rate of the fusion.
        lora_learning_rate: Peak learning rate of LoRA; 3e-4 by default.
        augment: With --lora, change training images at random: small turns, shifts, scales, contrast, never a flip.
        checkpointing: With --lora, compute activations again in the backward pass: less memory, more time.
        accumulate: Batches whose gradients make one step.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both.
        device: auto, cpu or cuda.
        allow_overlap: Judge although test patients were seen in pre-training; the results say so.
        decoder: For masks: image-concat (the default) reads any bank; dpt and unetr (transformers) and unet (CNNs) read
            one that was embedded with --taps 4.
        mask_labels: Names of mask values, for example 1=effusion 2=nodule; by default the values in the masks of
            `train`. 0 is background.
        loss: For masks: Dice with cross-entropy (the default), Dice with focal loss, or the Adaptor paper's 10 focal -
            log Dice. For answers: binary (of every answer on its own, the papers' and the default) or cross-entropy.
        steps: For masks: optimiser steps; 300 by default.
        window_slices: For masks of volumes: slices per window; 8 by default.
        coordinate_gradients: For pairs: hold the gradients of the modality back that answers better alone (GM-Coord).
        gradient_noise: With --coordinate-gradients: add noise to the gradients of both, as published; on by default.
        unimodal_scores: With --coordinate-gradients: score a modality by the whole head (the default), or by its last
            layer alone, as the released code does.
        answers_from: For answers: choose among those of the training rows (the default), or of all splits, as the
            papers do, which tells what is answered in the test split.
        frozen_beside: For pairs: show the head also what the encoders say of the whole image and text; on by default,
            off in the papers.
        class_weights: For classes of pairs: balanced weighs them by the inverse of how often they come.
    """
    pairs = {"loss": loss, "answers_from": answers_from, "class_weights": class_weights, "frozen_beside": frozen_beside}
    coordination = {"noise": gradient_noise, "scores": unimodal_scores}
    refuse_foreign(
        task,
        {"coordinate_gradients": coordinate_gradients or None, "text_lora": text_lora, "decoder": decoder, **pairs}
        | {"gradient_noise": gradient_noise, "unimodal_scores": unimodal_scores, "mask_labels": mask_labels or None}
        | {"steps": steps, "window_slices": window_slices},
    )
    if gradient_noise is not None or unimodal_scores is not None:
        require_coordination(coordinate_gradients)
    if lora is None and text_lora is None and (checkpointing or lora_learning_rate is not None):
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
    asked |= {"epochs": epochs, "augment": augment, "checkpointing": checkpointing, "accumulate": accumulate}
    asked |= {"precision": precision}
    if task != "classification":
        shared |= {"task": task, "image_lora": lora, "text_lora": text_lora, "train_fusion": train_fusion} | pairs
        finetune_pairs(run, bank, out, asked, shared, coordination if coordinate_gradients else None, device=device)
        return
    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.lora import LoRA
    from adaptmed.tasks.finetune import finetune as tune
    from adaptmed.training.settings import FinetuneSettings

    result = tune(
        Bank.open(bank),
        run,
        out,
        settings=FinetuneSettings(**{name: value for name, value in asked.items() if value is not None}),
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
