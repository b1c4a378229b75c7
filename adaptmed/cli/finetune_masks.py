"""The part of ``adaptmed finetune`` that learns masks."""

from pathlib import Path
from typing import Any


def finetune_masks(
    run: Path, bank: Path, out: Path, asked: dict[str, Any], shared: dict[str, Any], *, device: str
) -> None:
    """Train a decoder, and print how good its masks are.

    Args:
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        bank: Bank whose rows name masks.
        out: Run folder to write.
        asked: Settings of training; ``None`` leaves the default.
        shared: What is tuned, and on what.
        device: Lightning's accelerator.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from adaptmed.bank import Bank
    from adaptmed.data.mask_labels import parse_labels
    from adaptmed.lora import LoRA
    from adaptmed.tasks.segmentation.settings import SegmentationSettings
    from adaptmed.tasks.segmentation.task import Choices, finetune_segmentation

    mask_labels, lora = shared.pop("mask_labels"), shared.pop("lora")
    choices = Choices(
        settings=SegmentationSettings(**{name: value for name, value in asked.items() if value is not None}),
        lora=None if lora is None else LoRA.parse(lora),
        labels=parse_labels(mask_labels) if mask_labels else None,
        **shared,
    )
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with Progress(TextColumn("masks"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(_: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if done == total:
                bar.stop()  # the bar of training follows

        result = finetune_segmentation(Bank.open(bank), run, out, choices, device=device, progress=True, reading=show)
    print_masks(result)
    console.print(f"Decoder and adaptor: {out}\nNext: adaptmed predict {out} images... --out masks")


def print_masks(result: dict[str, Any]) -> None:
    """Print what was trained and the scores of the test masks, beside those of predicting nothing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.cli.show import estimate
    from adaptmed.study.report.tables import NAMES

    console = Console(soft_wrap=True, highlight=False, markup=False)
    trained = f"{result['trainable_parameters']:,} parameters on {result['train_images']} images"
    console.print(f"Trained {trained} of {result['train_patients']} patients.")
    for caution in _cautions(result):
        console.print(caution)
    test = result["test"]
    if test is None:
        return
    title = f"{test['images']} test images of {test['patients']} patients"
    table = Table("", "label", "tuned", "predicting nothing", title=Text(title, style="table.title"))
    for tuned, empty in zip(test["tuned"], test["empty"], strict=True):
        if tuned["value"] is not None:
            label = {"macro": "mean"}.get(tuned["label"], tuned["label"])
            table.add_row(Text(NAMES[tuned["metric"]]), Text(label), estimate(tuned), _value(empty))
    Console().print(table)


def _value(row: dict[str, Any]) -> str:
    return "—" if row["value"] is None else f"{row['value']:.3f}"


def _cautions(result: dict[str, Any]) -> list[str]:
    found = []
    if result["rejected_masks"]:
        found.append(f"{result['rejected_masks']} masks cannot be used; masks/rejects.jsonl says why.")
    if result["test"] is None:
        found.append("There is no test image with a mask: nothing was judged.")
    elif result["test"]["patients_seen_in_training"]:
        count = result["test"]["patients_seen_in_training"]
        found.append(f"{count} test patients were seen in training; the numbers are too good.")
    if not result["patients_of_pretraining_known"]:
        found.append("Which patients the adaptor was pre-trained on is not known: nobody checked them.")
    if not result["patient_column"]:
        found.append("The table has no patient column: every row is taken as its own patient.")
    return found
