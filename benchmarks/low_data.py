"""The headline: mean AUROC at 1 %, 10 % and 100 % of the labels, the adaptor beside its strongest honest baselines.

Run: python benchmarks/low_data.py [--image-encoder bundled:dinov2-small] [--seed 2024] [--work runs/bench]
Phantom of 4,000 train / 500 validate / 1,500 test images split by patient; 5 seeds of the fraction; the settings are
those of `methods.adaptor()`, fixed before the first result on this seed.
Bars: at 1 % adaptor - best of (frozen, adaptor-untrained, PCA-whitened mean tokens) >= +0.05 with its interval above 0
(for bundled:efficientnet-lite0: interval above 0); at 100 % not below -0.01.
"""

import argparse
import json
from pathlib import Path

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.adaptor.features import frozen_variants
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import embed
from adaptmed.files import write_json
from adaptmed.heads.probe import pca_whitened
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.classification.arms import best_probe, probe_arm
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import arms_of, cells_of_subject
from adaptmed.study.classification.subject import Subject, prepare
from adaptmed.study.statistics import judge

PCA, COMPONENTS = "PCA-whitened mean tokens", 64
BASELINES = ("frozen", "adaptor-untrained", PCA)


def whitened_arm(subject: Subject):
    """A probe on the mean token, whitened by the principal axes of all training images."""
    train, test = (frozen_variants(subject.bank, part)["mean"] for part in (subject.rows.train, subject.rows.test))
    white_train, white_test = ({"whitened": pca_whitened(train, part, COMPONENTS)} for part in (train, test))
    return probe_arm(best_probe(subject.rows, white_train), white_test)


def main() -> None:
    """Draw, embed, pre-train, probe; every step goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-encoder", default="bundled:dinov2-small")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    name = f"low-data-{arguments.image_encoder.split(':')[-1]}-{arguments.seed}"
    splits = {"train": 4000, "validate": 500, "test": 1500}
    manifest = Manifest.read(
        write_phantom(arguments.work / f"low-data-phantom-{arguments.seed}", splits=splits, seed=arguments.seed)
    )
    image, text = load_image_encoder(arguments.image_encoder), load_text_encoder("bundled:minilm-l6")
    bank = embed(manifest, image, text, arguments.work / f"{name}-bank")
    run, out = arguments.work / f"{name}-run", arguments.work / f"{name}-study"
    pretrain(bank, methods.adaptor(), run, precision=arguments.precision, progress=True)
    settings = StudySettings(
        fractions=tuple(arguments.fractions), seeds=arguments.seeds, arms=("frozen", "adaptor-untrained", "adaptor")
    )
    subject = prepare(bank, run, settings)
    arms = arms_of(subject, settings) | {PCA: lambda: whitened_arm(subject)}
    cells = cells_of_subject(
        subject, settings, out, arms, lambda what, done, total: print(f"\r{done}/{total} {what:50s}", end="")
    )
    judged = judge(cells, subject.rows.truth, replicates=settings.replicates)
    summaries = [row for row in judged.summaries() if row["label"] == "macro" and row["metric"] == "auroc"]
    print(f"\n\nmean AUROC, {subject.rows.truth.encoder}, phantom seed {arguments.seed}")
    for row in summaries:
        print(
            f"  {row['fraction']:5.0%} {row['arm']:26s} {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
        )
    gaps = [gap for baseline in BASELINES for gap in judged.comparisons(baseline)]
    gaps = [gap for gap in gaps if gap["arm"] == "adaptor" and gap["label"] == "macro" and gap["metric"] == "auroc"]
    for fraction in settings.fractions:
        best = max(
            (r for r in summaries if r["fraction"] == fraction and r["arm"] in BASELINES), key=lambda r: r["value"]
        )
        gap = next(g for g in gaps if g["fraction"] == fraction and g["baseline"] == best["arm"])
        interval = f"[{gap['ci_low']:+.3f}, {gap['ci_high']:+.3f}]"
        print(f"  {fraction:5.0%} adaptor - {best['arm']} (the best baseline): {gap['difference']:+.3f} {interval}")
    write_json(arguments.work / f"{name}.json", json.loads(json.dumps({"summaries": summaries, "comparisons": gaps})))


if __name__ == "__main__":
    main()
