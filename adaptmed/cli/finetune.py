"""``adaptmed finetune``: from a pre-trained adaptor and labels to a tuned adaptor with a head."""

from pathlib import Path
from typing import Any, Literal

from adaptmed.cli.study import estimate
from adaptmed.errors import InputError, sentence


def finetune(
    run: Path,
    bank: Path,
    /,
    *,
    out: Path,
    task: Literal["classification"] = "classification",
    lora: str | None = None,
    train_fusion: bool = True,
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
) -> None:
    """Tune a pre-trained adaptor for the labels of a bank: a linear head, the fusion, LoRA inside the image encoder.

    Starts at the best linear probe on the labelled `train` images. The labelled `validate` images choose the epoch that
    is kept; `test` is read once, at the end, and refused when the run has seen its patients. Without --lora everything
    comes from the bank; with it images are read again from the table and encoded in every step, which takes the time of
    the encoder. Then `adaptmed embed m.csv --adaptor OUT` writes the tuned bank.

    Writes a run folder: `metrics.json` (AUROC on `test`, beside the probe's), the tuned adaptor in `adaptor/`,
    `head.safetensors` with `head.json`, `config.json`, `metrics.jsonl` and `checkpoints/`. Run the same command again
    to go on where it stopped.

    Args:
        run: Run folder of `adaptmed pretrain`, or a saved adaptor.
        bank: Bank with labels or a class column, of the same image encoder.
        out: Run folder to write, or to go on with.
        task: What is learnt.
        lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        train_fusion: Train the fusion too. --no-train-fusion without --lora leaves the probe as it is.
        fraction: Share of the labelled training patients, above 0 and at most 1, chosen as in a study.
        seed: Seed of the fraction, fresh weights, order, augmentation and dropout.
        epochs: Passes over the fraction; 4 by default.
        batch_size: Images per batch; 32 by default. Few images make one larger batch.
        learning_rate: Peak learning rate of the head.
        fusion_learning_rate: Peak learning rate of the fusion.
        lora_learning_rate: Peak learning rate of LoRA; 3e-4 by default.
        augment: With --lora, change training images at random: small turns, shifts, scales, contrast, never a flip.
        checkpointing: With --lora, compute activations again in the backward pass: less memory, more time.
        accumulate: Batches whose gradients make one step.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both.
        device: auto, cpu or cuda.
        allow_overlap: Judge although test patients were seen in pre-training; the results say so.
    """
    if lora is None and (checkpointing or lora_learning_rate is not None):
        got, fix = "none", "Pass for example --lora rank=8, or leave --checkpointing and --lora-learning-rate out."
        raise InputError(sentence("lora", expected="what is trained inside the encoder", got=got, fix=fix))
    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.lora import LoRA
    from adaptmed.tasks.finetune import finetune as tune
    from adaptmed.tasks.finetuning import FinetuneSettings

    asked: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    asked |= {"fusion_learning_rate": fusion_learning_rate, "encoder_learning_rate": lora_learning_rate}
    settings = FinetuneSettings(
        **{name: value for name, value in asked.items() if value is not None},
        augment=augment,
        checkpointing=checkpointing,
        accumulate=accumulate,
        precision=precision,
    )
    result = tune(
        Bank.open(bank),
        run,
        out,
        task=task,
        settings=settings,
        lora=None if lora is None else LoRA.parse(lora),
        train_fusion=train_fusion,
        fraction=fraction,
        seed=seed,
        device=device,
        allow_overlap=allow_overlap,
        progress=True,
    )
    print_result(result)
    console = Console(soft_wrap=True)
    console.print(Text.assemble("Tuned adaptor and head: ", (str(out), "bold")))
    if lora is not None:
        console.print(Text(f"Next: adaptmed embed {Bank.open(bank).info.manifest} --adaptor {out} --out {out}-bank"))


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
