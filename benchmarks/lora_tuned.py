"""What LoRA trained on the labels of a fraction adds to the frozen probe, without any report: the study's own arms.

Run: python benchmarks/lora_tuned.py [--image-size-px 112] [--seeds 3] [--seed 2024] [--work runs/bench]
DINOv2 ViT-S/14 at 112 px (8 x 8 patches), because its forward and backward pass run in every step; the bank is made at
the same size. Phantom of 4,000 / 500 / 1,500 images by patient. The settings are `LORA_TUNED`, fixed before the first
result. 3 seeds of the fraction; 95 % intervals over seeds and patients. No bar: reported whatever it is.
"""

import argparse
from pathlib import Path

from adaptmed import Manifest, load_image_encoder
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import embed
from adaptmed.runs.precision import usual_precision
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import study


def main() -> None:
    """Draw, embed, study; every step goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size-px", type=int, default=112)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    splits = {"train": 4000, "validate": 500, "test": 1500}
    drawn = write_phantom(arguments.work / f"low-data-phantom-{arguments.seed}", splits=splits, seed=arguments.seed)
    place = arguments.work / f"lora-tuned-{arguments.image_size_px}-{arguments.seed}"
    image = load_image_encoder("bundled:dinov2-small", image_size_px=arguments.image_size_px)
    bank = embed(Manifest.read(drawn), image, None, place / "bank")
    settings = StudySettings(
        fractions=tuple(arguments.fractions), seeds=arguments.seeds, precision=usual_precision("auto", place / "study")
    )
    results = study(
        [bank],
        [],
        place / "study",
        settings=settings,
        announce=lambda lines: print(*lines, sep="\n", flush=True),
        progress=lambda what, done, total: print(f"{done}/{total} {what}", flush=True),
    )
    print(f"\nmean AUROC, bundled:dinov2-small at {arguments.image_size_px} px, phantom seed {arguments.seed}")
    for row in results["summaries"]:
        if row["label"] == "macro" and row["metric"] == "auroc":
            cost = f"{row['trainable_parameters']:,} parameters, {row['seconds']:.0f} s"
            print(f"  {row['fraction']:5.0%} {row['arm']:10s} {_estimate(row, row['value'])}, {cost}")
    for gap in results["comparisons"]:
        if gap["label"] == "macro" and gap["metric"] == "auroc":
            print(
                f"  {gap['fraction']:5.0%} {gap['arm']} - {gap['baseline']}: {_estimate(gap, gap['difference'], '+')}"
            )


def _estimate(row, value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f} [{row['ci_low']:{sign}.3f}, {row['ci_high']:{sign}.3f}]"


if __name__ == "__main__":
    main()
