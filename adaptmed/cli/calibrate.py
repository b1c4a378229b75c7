"""``adaptmed calibrate``: from a run of masked pre-training to one that knows a task's images and questions."""

from pathlib import Path
from typing import Any, Literal


def calibrate(
    run: Path,
    bank: Path | None = None,
    /,
    *,
    out: Path,
    config: Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    strategy: Literal["ddp", "fsdp"] = "ddp",
) -> None:
    """Go on with masked reconstruction on the images and texts of a task, without its labels (UMD's TD-Calib).

    Takes the fusion and the pretext modules of a run of `adaptmed pretrain --method umd` (or `m3ae`), hides words and
    patches of the task's `train` pairs, and rebuilds them; feature losses count 1e-5. Of a table for answering
    questions the questions are the texts; no label and no answer is read. `adaptmed finetune` goes on with the result.

    Writes a run folder as `adaptmed pretrain` does, and goes on where it stopped when the same command is run again;
    under torchrun its processes share every batch.

    Args:
        run: Run folder of `adaptmed pretrain` with a method that hides words and patches.
        bank: Bank of the task, made by the same encoders with the same layout; best with --masked-views.
        out: Run folder to write, or to go on with.
        config: Take what is left out from the config.json of another calibration, or a copy of it.
        epochs: Passes over the training pairs: 5 of the size light, 60 of the size paper.
        batch_size: Pairs per step, 64 or 32.
        learning_rate: Peak learning rate, 2e-4 or 2.5e-5.
        seed: Seed of order, dropout and what is hidden; 0 by default.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both. By default bf16 where the
            device computes in it, else fp32, which is then faster; a run that was begun goes on with its own.
        device: auto, cpu or cuda.
        strategy: How several processes share the work under torchrun; fsdp is handed to Lightning and is not tested.
    """
    from dataclasses import asdict, replace

    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.pretraining.calibrate import calibrate as train
    from adaptmed.pretraining.calibrate import calibration_method
    from adaptmed.pretraining.choices import from_json
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.processes import join
    from adaptmed.runs.settings import RunSettings, bank_of, read_settings

    asked: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    header, held = read_settings(config, "calibrate")
    precision = precision or held.get("precision") or usual_precision(device, out)
    shared = RunSettings.of(held, "method", "online", seed=seed, precision=precision)
    bank = bank_of(bank, header)
    schedule = calibration_method(run).schedule if "method" not in held else from_json(held["method"]).schedule
    schedule = replace(schedule, **{name: value for name, value in asked.items() if value is not None})
    console = Console(soft_wrap=True, quiet=not join(device).first)
    console.print(Text.assemble("Calibrating ", (str(run), "bold"), f", {schedule.epochs} epochs, seed {shared.seed}"))
    how: dict[str, Any] = {**asdict(shared), "device": device, "strategy": strategy, "progress": True}
    train(Bank.open(bank), run, out, schedule=schedule, **how)
    console.print(Text.assemble("Adaptor at its best epoch: ", (str(out / "adaptor"), "bold")))
    following = f"finetune {out} {bank} --task answering --coordinate-gradients --out {out}-tuned"
    console.print(Text(f"Next: adaptmed {following}"))
