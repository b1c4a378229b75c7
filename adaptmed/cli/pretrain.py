"""``adaptmed pretrain``: from a bank to a trained adaptor."""

from pathlib import Path
from typing import Any, Literal


def pretrain(
    bank: Path,
    /,
    *,
    out: Path,
    method: Literal["adaptor"] = "adaptor",
    size: Literal["light", "paper"] = "light",
    faithful: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_image_to_text: float | None = None,
    positives: Literal["identical-text", "pair"] | None = None,
    seed: int = 0,
    precision: Literal["fp32", "bf16"] = "bf16",
    device: str = "auto",
) -> None:
    """Train the fusion between two frozen encoders on the image-text pairs of a bank.

    Reads the `train` split only; `validate` decides when to stop and which epoch to keep; `test` is never read.
    Writes a run folder: `config.json`, `metrics.jsonl` (one line per epoch), `checkpoints/`, and the trained adaptor in
    `adaptor/`. Run the same command again to go on where it stopped.

    Args:
        bank: Folder that `adaptmed embed` wrote.
        out: Run folder to write, or to go on with.
        method: Which paper's way of training.
        size: `light` trains about two million parameters, `paper` the paper's twelve million.
        faithful: Arrange everything as the paper's released code does, its faults in attention included.
        epochs: Passes over the training pairs, instead of the method's.
        batch_size: Pairs per step, instead of the method's; contrastive learning needs many.
        learning_rate: Peak learning rate, instead of the method's.
        weight_image_to_text: Share of the image-to-text term in the contrastive loss, from 0 to 1.
        positives: Whether identical reports in a batch count as positives of each other or as negatives.
        seed: Seed of weights, order, dropout and mismatched texts.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both.
        device: auto, cpu or cuda.
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.text import Text

    from adaptmed import methods
    from adaptmed.bank import Bank
    from adaptmed.tasks.pretrain import pretrain as train

    chosen = methods.adaptor(size=size, faithful=faithful)
    asked: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    asked |= {"least_steps": 0 if epochs is not None else None}
    schedule = replace(chosen.schedule, **{name: value for name, value in asked.items() if value is not None})
    asked = {"weight_image_to_text": weight_image_to_text, "positives": positives, "schedule": schedule}
    chosen = replace(chosen, **{name: value for name, value in asked.items() if value is not None})

    console = Console(soft_wrap=True)
    how = f" ({size}), at least {schedule.epochs} epochs, seed {seed}, into {out}"
    console.print(Text.assemble("Method ", (method, "bold"), how))
    adaptor = train(Bank.open(bank), chosen, out, seed=seed, precision=precision, device=device, progress=True)
    adaptor.print_trainable_parameters()
    console.print(Text.assemble("Adaptor at its best epoch: ", (str(out / "adaptor"), "bold")))
    console.print(Text(f"Next: adaptmed study {bank} --adaptor {out} --out {out}-study"))
