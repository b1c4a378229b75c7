"""What LoRA inside the image encoder adds at 10 % of the labels: the tuned bank's arms beside those of the plain bank.

Run: python benchmarks/lora_gain.py [--image-size-px 112] [--epochs 4] [--seed 2024] [--work runs/bench]
DINOv2 ViT-S/14 at 112 px (8 x 8 patches), because its forward and backward pass run in every step; the plain bank is
made at the same size. Phantom of 4,000 / 500 / 1,500 images by patient. The plain run has the settings of
`methods.adaptor()`; the tuned one starts from its fusion and trains LoRA (rank 8, attention) with it for a few epochs.
5 seeds of the fraction. No bar: reported with its interval.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.adaptor.model import Adaptor
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import embed
from adaptmed.lora import LoRA
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import arms_of, cells_of_subject
from adaptmed.study.classification.subject import prepare
from adaptmed.study.statistics import judge
from adaptmed.training.encoders import Online

PAIRS = (("adaptor+lora", "adaptor"), ("lora", "frozen"), ("adaptor", "frozen"), ("adaptor+lora", "lora"))


def main() -> None:
    """Draw, embed, pre-train twice, embed through the tuned encoder, probe; every step goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size-px", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    splits = {"train": 4000, "validate": 500, "test": 1500}
    drawn = write_phantom(arguments.work / f"low-data-phantom-{arguments.seed}", splits=splits, seed=arguments.seed)
    place = arguments.work / f"lora-gain-{arguments.image_size_px}-{arguments.seed}"
    manifest = Manifest.read(drawn)
    image = load_image_encoder("bundled:dinov2-small", image_size_px=arguments.image_size_px)
    bank = embed(manifest, image, load_text_encoder("bundled:minilm-l6"), place / "bank")
    options = {"precision": "bf16", "progress": True}
    pretrain(bank, (method := methods.adaptor()), place / "run", **options)
    few = replace(method, schedule=replace(method.schedule, epochs=arguments.epochs, least_steps=0))
    lora = Online(image_lora=LoRA(rank=8))
    pretrain(bank, few, place / "tuned-run", online=lora, start=place / "run", checkpoint_every=5, **options)
    tuned = Adaptor.from_pretrained(place / "tuned-run").encoders
    tuned_bank = embed(manifest, tuned.image, tuned.text, place / "tuned-bank")
    settings = StudySettings(
        fractions=tuple(arguments.fractions), arms=("frozen", "lora", "adaptor", "adaptor+lora"), replicates=1000
    )
    subject = prepare(bank, place / "run", settings, tuned=(tuned_bank, place / "tuned-run"))
    arms = arms_of(subject, settings)
    cells = cells_of_subject(subject, settings, place / "study", arms, lambda *said: print(said, end="\r"))
    judged = judge(cells, subject.rows.truth, replicates=settings.replicates)
    for row in judged.summaries():
        if row["label"] == "macro" and row["metric"] == "auroc":
            interval = f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
            print(f"  {row['fraction']:5.0%} {row['arm']:14s} {row['value']:.3f} {interval}")
    for arm, baseline in PAIRS:
        for gap in judged.comparisons(baseline):
            if gap["arm"] == arm and gap["label"] == "macro" and gap["metric"] == "auroc":
                interval = f"[{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
                print(f"  {gap['fraction']:5.0%} {arm} - {baseline}: {gap['difference']:+.3f} {interval}")


if __name__ == "__main__":
    main()
