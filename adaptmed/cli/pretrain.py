"""``adaptmed pretrain``: from a bank to a trained adaptor."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adaptmed.errors import InputError, sentence

if TYPE_CHECKING:
    from adaptmed.methods import Masking, Method
    from adaptmed.training.encoders import Online


def pretrain(
    source: Path,
    /,
    *,
    out: Path,
    image_encoder: str | None = None,
    text_encoder: str | None = None,
    method: Literal["adaptor", "m3ae", "umd"] = "adaptor",
    size: Literal["light", "paper"] = "light",
    faithful: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    ema: float | None = None,
    weight_image_to_text: float | None = None,
    positives: Literal["identical-text", "pair"] | None = None,
    mask_ratio: float | None = None,
    word_share: float | None = None,
    whole_words: bool | None = None,
    patch_layer: int | None = None,
    joint_masking: bool | None = None,
    feature_weight: float | None = None,
    negatives: Literal["random", "hard"] | None = None,
    negatives_by_label: bool = False,
    start: Path | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "bf16",
    device: str = "auto",
    image_lora: str | None = None,
    text_lora: str | None = None,
    augment: bool = True,
    checkpointing: bool = False,
    accumulate: int = 1,
    strategy: Literal["ddp", "fsdp"] = "ddp",
) -> None:
    """Train the fusion between two frozen encoders on the image-text pairs of a bank or a table.

    `--method adaptor` contrasts images with texts. `--method m3ae` and `--method umd` hide words and patches before the
    encoders and rebuild them through a fusion of its own layers for each modality; the text encoder runs in every step,
    the image encoder only when the bank has no `--masked-views`. A run of `umd` goes on with `adaptmed calibrate`.

    With --image-lora or --text-lora, LoRA inside that encoder is trained too: its images are read again and encoded in
    every step, which takes the time of the encoder. Then `adaptmed embed m.csv --adaptor RUN` writes the tuned bank.

    Reads the `train` split only; `validate` decides when to stop and which epoch to keep; `test` is never read.
    Writes a run folder: `config.json`, `metrics.jsonl` (one line per epoch), `checkpoints/`, and the trained adaptor in
    `adaptor/`. Run the same command again to go on where it stopped, also after SIGTERM. Under
    `torchrun --nproc-per-node 2 -m adaptmed pretrain ...` the processes share every batch, and its result is that of
    one process.

    Args:
        source: Bank that `adaptmed embed` wrote; or a table, which is embedded into a bank beside the run folder first.
        out: Run folder to write, or to go on with.
        image_encoder: With a table: its image encoder, as of `adaptmed embed`.
        text_encoder: With a table: its text encoder.
        method: Which paper's way of training.
        size: `light` is 256 wide: two million parameters of `adaptor`, thirteen of `m3ae` and `umd`; `paper` is 768
            wide: twelve, and a hundred and sixteen.
        faithful: Arrange everything as the paper's released code does, its faults in attention included.
        epochs: Passes over the training pairs, instead of the method's.
        batch_size: Pairs per step, instead of the method's; contrastive learning needs many.
        learning_rate: Peak learning rate, instead of the method's.
        ema: Keep the exponential moving average of the weights with this decay per step, for example 0.99.
        weight_image_to_text: Share of the image-to-text term in the contrastive loss, from 0 to 1.
        positives: Whether identical reports in a batch count as positives of each other or as negatives.
        mask_ratio: For m3ae and umd: share of an image's patches that are hidden, 0.75 by default.
        word_share: For m3ae and umd: share of a text's words that are hidden, 0.15 by default.
        whole_words: For m3ae and umd: hide all pieces of a word together, the default, or each piece by itself.
        patch_layer: For m3ae and umd: layer of the fusion that pixels are predicted from; 3 of m3ae, the last of umd.
        joint_masking: For m3ae: hide words and patches in one pass, as umd does, instead of two.
        feature_weight: For umd: weight of both feature losses, 0.5 by default; 0 leaves out the teacher.
        negatives: Whether the texts of mismatched pairs are drawn evenly, or rather similar ones; random by default.
        negatives_by_label: Mismatched pairs differ in a label too, where labels are known. Then pre-training has read
            all labels, and low-data studies on this run are refused.
        start: Run or saved adaptor to take the trained fusion of, for example before a few epochs with --image-lora.
        seed: Seed of weights, order, dropout and mismatched texts.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both.
        device: auto, cpu or cuda.
        image_lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        text_lora: The same inside the text encoder.
        augment: Change training images at random: small turns, shifts, scales and contrast, never a flip.
        checkpointing: Compute activations again in the backward pass: less memory, more time.
        accumulate: Batches whose gradients make one step; negatives come from one batch.
        strategy: How several processes share the work under torchrun; fsdp is handed to Lightning and is not tested.
    """
    bank = _bank_of(source, image_encoder, text_encoder, Path(f"{out}-bank"), precision=precision, device=device)
    from dataclasses import replace

    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.pretraining.pretrain import pretrain as train
    from adaptmed.runs.processes import join

    chosen = _preset(method, size, faithful=faithful)
    asked: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    asked |= {"ema": ema}
    asked |= {"least_steps": 0 if epochs is not None else None}
    schedule = replace(chosen.schedule, **{name: value for name, value in asked.items() if value is not None})
    masked = {"patch_ratio": mask_ratio, "word_share": word_share, "whole_words": whole_words}
    masked |= {"patch_layer": patch_layer, "joint": joint_masking}
    masked |= {"weight_text_features": feature_weight, "weight_image_features": feature_weight}
    asked = {"weight_image_to_text": weight_image_to_text, "positives": positives, "negatives": negatives}
    asked |= {"schedule": schedule, "negatives_by_label": negatives_by_label, "masking": _masking(chosen, masked)}
    chosen = replace(chosen, **{name: value for name, value in asked.items() if value is not None})

    first = join(device).first
    console = Console(soft_wrap=True, quiet=not first)
    how = f" ({size}), at least {schedule.epochs} epochs, seed {seed}, into {out}"
    console.print(Text.assemble("Method ", (method, "bold"), how))
    options: dict[str, Any] = {"seed": seed, "precision": precision, "device": device, "progress": True}
    options |= {"start": start, "strategy": strategy}
    if image_lora is not None or text_lora is not None:
        options["online"] = _online(image_lora, text_lora, augment, checkpointing, accumulate)
    opened = Bank.open(bank)
    adaptor = train(opened, chosen, out, **options)
    if first:
        adaptor.print_trainable_parameters()
    console.print(Text.assemble("Adaptor at its best epoch: ", (str(out / "adaptor"), "bold")))
    following = f"study {bank} --adaptor {out} --out {out}-study"
    if chosen.masking is not None:
        following = f"calibrate {out} BANK-OF-THE-TASK --out {out}-calibrated"
    if "online" in options:
        following = f"embed {opened.info.manifest} --adaptor {out} --out {bank}-tuned"
    console.print(Text(f"Next: adaptmed {following}"))


def _bank_of(
    source: Path,
    image_encoder: str | None,
    text_encoder: str | None,
    out: Path,
    *,
    precision: Literal["fp32", "bf16"],
    device: str,
) -> Path:
    """Return the bank to train on: the one that was named, or the one that a table is embedded into."""
    named = [name for name in (image_encoder, text_encoder) if name is not None]
    if source.is_dir():
        if named:
            fix = "Leave --image-encoder and --text-encoder out: the bank knows its encoders."
            raise InputError(sentence(str(source), expected="no encoder beside a bank", got=", ".join(named), fix=fix))
        return source
    if not source.exists() and not named:
        return source  # opening it says that there is none
    if len(named) < 2:
        expected = "--image-encoder and --text-encoder beside a table"
        fix = "Name both, or pass a bank that `adaptmed embed` wrote."
        raise InputError(sentence(str(source), expected=expected, got=", ".join(named) or "neither", fix=fix))
    from adaptmed.cli.embed import embed
    from adaptmed.cli.options import EncoderOptions

    encoders = EncoderOptions(image_encoder=image_encoder, text_encoder=text_encoder)
    embed(source, out=out, encoders=encoders, precision=precision, device=device)
    return out


def _preset(name: str, size: Literal["light", "paper"], *, faithful: bool) -> "Method":
    from adaptmed import methods

    if name == "m3ae":
        if faithful:
            fix = "Leave --faithful out, or choose --method umd or adaptor."
            raise InputError(sentence("faithful", expected="nothing beside --method m3ae", got=True, fix=fix))
        return methods.m3ae(size=size)
    return (methods.umd if name == "umd" else methods.adaptor)(size=size, faithful=faithful)


def _masking(method: "Method", asked: dict[str, Any]) -> "Masking | None":
    """Return what a method hides, changed as asked; options of masking beside a method without it are refused."""
    from dataclasses import replace

    given = {name: value for name, value in asked.items() if value is not None}
    if method.masking is None:
        if given:
            fix = "Leave it out, or choose --method m3ae or umd."
            raise InputError(sentence(next(iter(given)), expected="a method that hides something", got="none", fix=fix))
        return None
    return replace(method.masking, **given)


def _online(
    image_lora: str | None, text_lora: str | None, augment: bool, checkpointing: bool, accumulate: int
) -> "Online":
    from adaptmed.lora import LoRA
    from adaptmed.training.encoders import Online

    image, text = (None if said is None else LoRA.parse(said) for said in (image_lora, text_lora))
    return Online(image_lora=image, text_lora=text, augment=augment, checkpointing=checkpointing, accumulate=accumulate)
