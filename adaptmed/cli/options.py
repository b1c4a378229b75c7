"""Groups of command line options, each a dataclass that the help shows in a panel of its own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from adaptmed.errors import InputError, sentence

_Words = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
_MaskLabels = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]


def _panel(title: str, order: int) -> Parameter:
    """Flatten a dataclass of options into its command, under one heading."""
    return Parameter(name="*", group=Group(title, sort_key=order))


@_panel("Encoders", 1)
@dataclass(frozen=True)
class EncoderOptions:
    """Which frozen encoders read the table, and how an image or a text is made to fit them."""

    image_encoder: str | None = None
    """For example bundled:dinov2-small or timm:vit_small_patch14_dinov2.lvd142m. Without it no image tokens are
    stored."""

    text_encoder: str | None = None
    """For example bundled:minilm-l6 or hf:emilyalsentzer/Bio_ClinicalBERT. Without it no text tokens are stored."""

    adaptor: Path | None = None
    """Run folder or saved adaptor: take its encoders with the LoRA inside, instead of naming them, and its fit, longest
    text and layout where they are not given here."""

    image_size_px: int | None = None
    """Side of the encoder's input in pixels; the encoder's own by default."""

    fit: Literal["crop", "pad", "squash"] | None = None
    """How an image becomes square: crop its longer side, pad its shorter side, or squash; the encoder's own way by
    default, but volumes are padded instead of cropped."""

    max_tokens: int | None = None
    """Where texts are cut; the encoder's limit or 256 by default, whichever is smaller."""


@_panel("Stored tokens", 2)
@dataclass(frozen=True)
class StoredOptions:
    """What of each image and text a bank keeps."""

    layout: Literal["grid", "all", "pooled"] | None = None
    """Which image tokens are kept: a small grid of means and the prefix tokens (the default), all of them, or only the
    pooled vector (of texts too)."""

    grid: int | None = None
    """Side of that small grid, 8 by default. An encoder with a smaller grid keeps its own. With --masked-views the
    default is the largest side up to 8 whose cells are whole blocks of the encoder's patches: 7 of a grid of 14, 8 of
    16 and of 24."""

    dtype: Literal["float16", "bfloat16", "float32", "int8", "int4"] = "float16"
    """Number format on disk. int8 takes half of float16 and int4 about a quarter: whole numbers, and of every picture,
    slice or text one scale per channel; not with --layout pooled."""

    shard_size: int | None = None
    """Images or texts per file; what an interruption can lose at most. 256 by default, or 4 volumes."""

    taps: int = 0
    """Feature maps for the decoders of segmentation: 4 stores the three shallow ones, at their full resolution; the
    fused grid takes the place of the deepest. 0 stores none."""

    pixels: bool | None = None
    """Store what the encoder sees of each image in 8 bits, for decoders that read it and for masked pre-training that
    predicts it; by default of volumes, whose slices are kept at their own size, and with --masked-views, not of other
    pictures."""

    masked_views: int = 0
    """For masked pre-training: passes of every picture of which the encoder sees a part only; 4 stores four, each with
    other cells hidden. Vision transformers can do so, CNNs cannot."""

    mask_ratio: float = 0.75
    """Share of the cells that a masked view hides."""


@_panel("Volumes", 3)
@dataclass(frozen=True)
class VolumeOptions:
    """How volumes become slices."""

    plane: Literal["axial", "coronal", "sagittal", "three"] = "axial"
    """Of the slices that are encoded of volumes; three encodes all of them, for decoders of axial slices."""

    window: tuple[float, float] | None = None
    """Level and width that volumes are shown with, in their own units: 40 400 shows soft tissue of CT, -600 1500 the
    lung. By default from the 0.5th to the 99.5th percentile of each volume."""


@_panel("Columns", 4)
@dataclass(frozen=True)
class ColumnOptions:
    """Which columns of the table are read, and how."""

    labels: _Words = ()
    """Label columns; by default all columns with only 0, 1 and blank."""

    class_column: str | None = None
    """Column whose values are class names."""

    uncertain: Literal["ignore", "zero", "one"] | None = None
    """What a -1 in a label column means: ignore it, or read it as zero or one."""

    text_column: Literal["text", "question"] | None = None
    """What the text encoder reads: the text, or the question of a table for answering questions. By default the text
    where the table has one."""


@_panel("LoRA", 1)
@dataclass(frozen=True)
class TunedOptions:
    """Banks of encoders with LoRA, and the runs that tuned them."""

    tuned_bank: list[Path] | None = None
    """For the arms with LoRA: what `adaptmed embed m.csv --adaptor RUN` wrote of the same table; repeat it once per
    bank, in the same order."""

    tuned_adaptor: list[Path] | None = None
    """The run of each tuned bank, in the same order."""

    def pairs(self) -> list[tuple[Path, Path]]:
        """Pair tuned banks with their runs.

        Raises:
            InputError: There are more of one than of the other.
        """
        banks, runs = self.tuned_bank or [], self.tuned_adaptor or []
        if len(banks) != len(runs):
            expected, got = "one --tuned-adaptor per --tuned-bank", f"{len(banks)} banks and {len(runs)} runs"
            fix = "Name what `adaptmed embed m.csv --adaptor RUN` wrote, and RUN."
            raise InputError(sentence("tuned-bank", expected=expected, got=got, fix=fix))
        return list(zip(banks, runs, strict=True))


@_panel("Masks", 2)
@dataclass(frozen=True)
class MaskStudyOptions:
    """How the arms of a study of masks are trained; with --task segmentation only."""

    decoder: Literal["image-concat", "dpt", "unetr", "unet"] | None = None
    """For segmentation: image-concat (the default) reads any bank; dpt and unetr (transformers) and unet (CNNs) read
    one that was embedded with --taps 4."""

    mask_labels: _MaskLabels = ()
    """Names of mask values, for example 1=effusion 2=nodule; by default the values in the masks of `train`. 0 is
    background."""

    steps: int | None = None
    """Most steps of every trained arm, 600 by default; a validated Dice that has ceased to rise ends it before."""

    minutes: float | None = None
    """For segmentation: most minutes of a training; no bound by default."""

    shown_px: int | None = None
    """For segmentation: side that decoders see images at; the encoder's, or of small volumes about their own."""

    augment: bool | None = None
    """For segmentation: change images, maps of features and masks together at random; on by default."""

    learning_rates: Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True)] = None
    """Rates that every trained arm tries, chosen between inside the fraction; 0.003 by default."""

    device: str | None = None
    """For segmentation: auto (the default), cpu or cuda."""


@_panel("Answers", 3)
@dataclass(frozen=True)
class AnswerStudyOptions:
    """How the arms of a study of answers are trained; with --task answering only."""

    epochs: int | None = None
    """For answers: passes over the fraction of every trained arm; 20 by default."""

    answers_by_kind: bool | None = None
    """For answers: give only answers that a question of its kind (open, closed) had in the fraction; on by default."""


@Parameter(name="*", group=Group("Optimiser", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """How long and how fast it is trained.

    Attributes:
        epochs: Passes over the fraction; 4 by default, for pairs 20. Masks are trained for --steps instead.
        batch_size: Images or pairs per batch; 32 by default, for masks 8 pictures, or of volumes the slices of
            two windows. Few images make one larger batch.
        learning_rate: Peak learning rate of the head (1e-3 by default) or decoder (3e-3).
        fusion_learning_rate: Peak learning rate of the fusion.
        lora_learning_rate: Peak learning rate of LoRA; 3e-4 by default.
        accumulate: Batches whose gradients make one step; 1 by default.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    fusion_learning_rate: float | None = None
    lora_learning_rate: float | None = None
    accumulate: int | None = None


@Parameter(name="*", group=Group("LoRA inside the encoders", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What is trained inside the encoders, which then run in every step.

    Attributes:
        lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        text_lora: For pairs: the same inside the text encoder.
        augment: Change training images at random: small turns, shifts, scales, contrast, never a flip; on by default.
            Masks and, from a bank, maps of features move with them.
        checkpointing: Compute activations again in the backward pass: less memory, more time; off by default.
    """

    lora: str | None = None
    text_lora: str | None = None
    augment: bool | None = None
    checkpointing: bool | None = None


@Parameter(name="*", group=Group("Pairs: answers, labels of images with texts", sort_key=3))
@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Options of tasks that read both sides.

    Attributes:
        coordinate_gradients: Slow down the modality that already predicts well on its own (GM-Coord).
        gradient_noise: With --coordinate-gradients: add noise to the gradients of both, as published; on by default.
        unimodal_scores: With --coordinate-gradients: score a modality by the whole head (the default), or by its last
            layer alone, as the released code does.
        answers_from: For answers: choose among those of the training rows (the default), or of all splits, as the
            papers do, which tells what is answered in the test split.
        frozen_beside: Also feed the head the encoders' pooled image and text features, next to the fused vector; on by
            default, off in the papers.
        class_weights: For classes: balanced weighs them by the inverse of how often they come.
    """

    coordinate_gradients: bool | None = None
    gradient_noise: bool | None = None
    unimodal_scores: Literal["head", "last-linear"] | None = None
    answers_from: Literal["train", "all"] | None = None
    frozen_beside: bool | None = None
    class_weights: Literal["none", "balanced"] | None = None


@Parameter(name="*", group=Group("Masks", sort_key=4))
@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Options of segmentation.

    Attributes:
        decoder: image-concat (the default) reads any bank; dpt and unetr (transformers) and unet (CNNs) read one that
            was embedded with --taps 4.
        mask_labels: Names of mask values, for example 1=effusion 2=nodule; by default the values in the masks of
            `train`. 0 is background.
        steps: Most optimiser steps, 600 by default; a validated Dice that has ceased to rise ends training before.
        minutes: Most minutes of training; no bound by default.
        shown_px: Side that the decoder sees images at; the encoder's, or of small volumes about their own.
        window_slices: Of volumes: slices per window; 16 by default.
    """

    decoder: Literal["image-concat", "dpt", "unetr", "unet"] | None = None
    mask_labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = ()
    steps: int | None = None
    minutes: float | None = None
    shown_px: int | None = None
    window_slices: int | None = None
