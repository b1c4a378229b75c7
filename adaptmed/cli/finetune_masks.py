"""What ``adaptmed finetune`` and ``adaptmed evaluate`` print of masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def mask_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar while masks are opened; it vanishes when they are, because the bar of training follows."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(soft_wrap=True, highlight=False, markup=False)
    bar = Progress(TextColumn("masks"), BarColumn(), MofNCompleteColumn(), console=console, transient=True)
    task = bar.add_task("", total=None)

    def show(_: str, done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)
        if done == total:
            bar.stop()

    try:
        yield show
    finally:
        bar.stop()


def print_masks(result: dict[str, Any]) -> None:
    """Print what was trained and the scores of the test masks, beside those of predicting nothing."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.cli.show import estimate
    from adaptmed.study.report.tables import NAMES

    console = Console(soft_wrap=True, highlight=False, markup=False)
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
    rejected = result.get("rejected_masks") or (result["test"] or {}).get("rejected_masks")
    if rejected:
        found.append(f"{rejected} masks cannot be used; masks/rejects.jsonl says why.")
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
