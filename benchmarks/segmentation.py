"""The headline of segmentation: Dice on positives at 1 % of the masks, beside a U-Net from scratch.

Run: python benchmarks/segmentation.py [--image-size-px 112] [--work runs/bench]
Phantom of 4,000 train / 500 validate / 1,500 test images split by patient; 3 seeds of the fraction. Every trained arm
gets the same number of optimiser steps and tries the same printed grid of learning rates, chosen between inside the
fraction; no validated mask is looked at and nothing is changed at random. Settings were fixed on another phantom seed.
Bar: default decoder on the adaptor - U-Net from scratch >= +0.15 with its interval above 0; adaptor - frozen encoder
with the same decoder is reported, whichever way it falls.
"""

import argparse
from pathlib import Path

from adaptmed import Bank, Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.bank.format import INFO
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.tasks.segmentation.settings import SegmentationSettings

SPLITS = {"train": 4000, "validate": 500, "test": 1500}
FRACTION, ARMS = 0.01, ("empty", "unet", "frozen", "adaptor")


def prepare(work: Path, seed: int, size_px: int) -> tuple[Bank, Path]:
    """Draw, embed and pre-train; every step goes on where it stopped."""
    manifest = Manifest.read(write_phantom(work / f"low-data-phantom-{seed}", splits=SPLITS, seed=seed))
    folder, run = work / f"masks-{size_px}-{seed}-bank", work / f"masks-{size_px}-{seed}-run"
    if not (folder / INFO).exists():
        image = load_image_encoder("bundled:dinov2-small", image_size_px=size_px)
        embed(manifest, image, load_text_encoder("bundled:minilm-l6"), folder, options=EmbedOptions(pixels=True))
    bank = Bank.open(folder)
    pretrain(bank, methods.adaptor(), run, precision="bf16", progress=True)
    return bank, run


def main() -> None:
    """Study one fraction and print what the bar asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size-px", type=int, default=112)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[1e-3, 3e-3])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    bank, run = prepare(arguments.work, arguments.seed, arguments.image_size_px)
    settings = SegmentationStudy(
        fractions=(FRACTION,),
        seeds=arguments.seeds,
        arms=ARMS,
        training=SegmentationSettings(steps=arguments.steps, validations=1, augment=False),
        learning_rates=tuple(arguments.learning_rates),
    )
    out = arguments.work / f"masks-{arguments.image_size_px}-{arguments.seed}-study"
    results = study_segmentation(
        [bank],
        [run],
        out,
        settings=settings,
        progress=lambda what, done, of: print(f"\r{done}/{of} {what:40s}", end=""),
    )
    report(results, arguments)


def report(results: dict, arguments: argparse.Namespace) -> None:
    """Print the grid, the means with their intervals, the seconds, and the paired differences."""
    steps, rates = arguments.steps, ", ".join(f"{rate:g}" for rate in arguments.learning_rates)
    print(f"\n\nDICE at {FRACTION:.0%} of the masks, {arguments.image_size_px} px, phantom seed {arguments.seed}")
    print(f"every trained arm: {steps} steps, learning rates tried: {rates}")
    for metric in ("dice_positives", "dice"):
        for row in results["summaries"]:
            if row["metric"] == metric and row["label"] == "macro":
                bounds = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
                cost = f"{row['trainable_parameters']:>9,} parameters, {row['seconds']:6.1f} s a cell"
                print(f"  {metric:15s} {row['arm']:8s} {row['value']:.3f} {bounds}  {cost}")
    for row in results["comparisons"]:
        if row["arm"] == "adaptor" and row["metric"] == "dice_positives" and row["label"] == "macro":
            bounds = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
            print(f"  adaptor - {row['baseline']}: {row['difference']:+.3f} {bounds}")


if __name__ == "__main__":
    main()
