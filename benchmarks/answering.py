"""What UMD's stages give in answering questions: all of them, each left out, M3AE, and a fusion that was not trained.

Run: python benchmarks/answering.py [--seeds 0 1 2] [--ablation-seeds 1] [--seed 2025] [--work runs/bench]
DINOv2 ViT-S/14 at 112 px in 4 x 4 cells with 4 masked views, MiniLM; fusions of three layers 128 wide instead of the
six of 256 of the size `light`, and few steps, so that two cores do it in an hour or two. Phantom of 4,000 / 500 /
1,500 images by patient: pre-training on its reports; calibration and tuning on the questions of 30 % of the train
patients; all questions of the test patients. Seeds are those of everything that is trained; arms other than `umd` have
the first of them alone unless more are asked for. Settings were chosen on phantom seed 2024.
Bar: accuracy of `umd` - the best of frozen features, question alone and another patient's image: interval above 0, over
seeds and patients. The ablation has no bar.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.bank import Bank, Layout
from adaptmed.cohort.rows import training_rows
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.metrics.uncertainty import hierarchical, interval, patient_weights
from adaptmed.pretraining.calibrate import calibrate, calibration_method
from adaptmed.pretraining.job import fresh_adaptor
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.tasks.finetune import finetune
from adaptmed.tasks.pairs.answers import normalise_answer
from adaptmed.tasks.pairs.settings import Coordination, PairChoices
from adaptmed.tasks.pairs.task import Pairs
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import RunOptions

SMALL: Any = {"width": 128, "layers": 3}
BASELINES = {"frozen": "frozen features", "question_only": "question alone", "shuffled_image": "another's image"}


@dataclass(frozen=True)
class Arm:
    """Stages of a line of the table: what is pre-trained, and whether it is calibrated and coordinated."""

    method: str | None
    calibrated: bool = False
    coordinated: bool = False


ARMS = {
    "umd": Arm("umd", calibrated=True, coordinated=True),
    "umd without TD-Calib": Arm("umd", coordinated=True),
    "umd without GM-Coord": Arm("umd", calibrated=True),
    "umd without feature reconstruction": Arm("umd-without-features", calibrated=True, coordinated=True),
    "m3ae": Arm("m3ae"),
    "no pre-training": Arm(None),
}


def main() -> None:
    """Draw, embed, pre-train, calibrate, tune, judge; every step goes on where it stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--ablation-seeds", type=int, default=1, help="how many of the seeds arms but `umd` have")
    parser.add_argument("--seed", type=int, default=2025, help="of the phantom")
    parser.add_argument("--epochs", type=int, default=6, help="of pre-training, with 32 pairs per step")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    arguments = parser.parse_args()
    reports, questions = _banks(arguments.work, arguments.seed)
    place = arguments.work / f"answering-{arguments.seed}"
    answers: dict[str, dict[int, pd.DataFrame]] = {}
    for seed in arguments.seeds:
        for name in arguments.arms:
            if name != "umd" and seed not in arguments.seeds[: arguments.ablation_seeds]:
                continue
            run = _prepared(ARMS[name], reports, questions, place, seed, arguments.epochs)
            coordination = Coordination() if ARMS[name].coordinated else None
            settings = FinetuneSettings(epochs=10)
            choices = PairChoices(task="answering", settings=settings, coordination=coordination, seed=seed)
            out = place / f"tuned-{name.replace(' ', '-')}-{seed}"
            found = finetune(questions, run, out, Pairs(choices), RunOptions(progress=True))
            answers.setdefault(name, {})[seed] = pd.read_csv(out / "answers.csv", keep_default_na=False)
            print(
                name, seed, {arm: found["test"][arm]["overall"]["value"] for arm in ("tuned", *BASELINES)}, flush=True
            )
    _print(answers, questions)


def _banks(work: Path, seed: int) -> tuple[Bank, Bank]:
    drawn = write_phantom(
        work / f"low-data-phantom-{seed}", splits={"train": 4000, "validate": 500, "test": 1500}, seed=seed
    )
    image, text = load_image_encoder("bundled:dinov2-small", image_size_px=112), load_text_encoder("bundled:minilm-l6")
    options = EmbedOptions(layout=Layout("grid", 4), masked_views=4, precision="bf16")
    place = work / f"answering-{seed}"
    tables = {"reports": drawn, "questions": _few_questions(drawn.parent)}
    banks = [embed(Manifest.read(path), image, text, place / name, options=options) for name, path in tables.items()]
    return banks[0], banks[1]


def _few_questions(phantom: Path) -> Path:
    """Write the questions of 30 % of the train patients and of all others."""
    table = pd.read_csv(phantom / "questions.csv")
    trained = table.loc[table["split"] == "train", "patient"].unique()
    kept = (table["split"] != "train") | table["patient"].isin(trained[: round(0.3 * len(trained))])
    table[kept].to_csv(phantom / "few-questions.csv", index=False)
    return phantom / "few-questions.csv"


def _prepared(arm: Arm, reports: Bank, questions: Bank, place: Path, seed: int, epochs: int) -> Path:
    """Pre-train and calibrate what an arm asks for, once for all arms that ask for it."""
    run = place / f"{arm.method or 'fresh'}-{seed}"
    if arm.method is None:
        if not run.exists():
            fresh_adaptor(
                questions, methods.changed(methods.umd(), {"fusion": SMALL}), training_rows(questions), seed=seed
            ).save_pretrained(run)
        return run
    options: dict[str, Any] = {"seed": seed, "precision": "bf16", "progress": True}
    pretrain(reports, _method(arm.method, epochs), run, **options)
    if not arm.calibrated:
        return run
    schedule = replace(calibration_method(run).schedule, epochs=1)
    calibrate(questions, run, place / f"{arm.method}-calibrated-{seed}", schedule=schedule, **options)
    return place / f"{arm.method}-calibrated-{seed}"


def _method(name: str, epochs: int) -> methods.Method:
    method = methods.m3ae() if name == "m3ae" else methods.umd()
    if name == "umd-without-features":
        method = methods.changed(method, {f"{side}_features": {"weight": 0.0} for side in ("text", "image")})
    return methods.changed(method, {"fusion": SMALL, "schedule": {"epochs": epochs, "batch_size": 32}})


def _print(answers: dict[str, dict[int, pd.DataFrame]], bank: Bank) -> None:
    patient_of = bank.rows.astype({"row": str}).set_index("row")["patient"].astype(str)
    whole, *_ = answers
    first = next(iter(answers[whole].values()))
    patients = patient_of.loc[first["row"].astype(str)].to_numpy()
    weights = np.vstack([np.ones((1, len(first))), patient_weights(patients)])
    lines = {name: _accuracies(tables, "predicted", weights) for name, tables in answers.items()}
    others = {text: _accuracies(answers[whole], arm, weights) for arm, text in BASELINES.items()}
    print(f"{len(first)} test questions of {len(set(patients))} patients")
    for name, found in (lines | others).items():
        gap = _said({seed: lines[whole][seed] - found[seed] for seed in found if seed in lines[whole]}, sign="+")
        print(f"  {name:36s} {len(found)} seeds {_said(found)}   {whole} - it {gap}")
    best = max(others, key=lambda name: float(np.mean([found[0] for found in others[name].values()])))
    gap = _said({seed: lines[whole][seed] - others[best][seed] for seed in others[best]}, sign="+")
    print(f"{whole} - {best}, the best of them: {gap}")


def _accuracies(tables: dict[int, pd.DataFrame], column: str, weights: np.ndarray) -> dict[int, np.ndarray]:
    """Of each seed the accuracy on all, then on each draw of patients."""
    found = {}
    for seed, table in tables.items():
        right = (table["answer"].map(normalise_answer) == table[column].astype(str)).to_numpy(float)
        found[seed] = (weights @ right) / weights.sum(1)
    return found


def _said(found: dict[int, np.ndarray], *, sign: str = "") -> str:
    values = np.stack(list(found.values()))
    low, high = interval(hierarchical(values[:, 1:])) or (float("nan"),) * 2
    return f"{values[:, 0].mean():{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


if __name__ == "__main__":
    main()
