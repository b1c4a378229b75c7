"""``adaptmed study``: what a pre-trained adaptor is worth at 1 %, 10 % and 100 % of the labels."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from adaptmed.errors import InputError, sentence


def study(
    *banks: Path,
    out: Path,
    adaptor: list[Path] | None = None,
    task: Literal["classification", "segmentation"] = "classification",
    tuned_bank: list[Path] | None = None,
    tuned_adaptor: list[Path] | None = None,
    fractions: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.01, 0.1, 1.0),
    seeds: int | None = None,
    arms: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    prompts: Path | None = None,
    decoder: Literal["image-concat", "dpt", "unetr", "unet"] = "image-concat",
    mask_labels: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)] = (),
    steps: int | None = None,
    learning_rates: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (3e-3,),
    device: str = "auto",
    replicates: int = 1000,
    examples: bool = True,
    allow_overlap: bool = False,
) -> None:
    """Compare a pre-trained adaptor with frozen baselines at several label fractions.

    Trains on the `train` split, judges on `test`. Fractions are of patients: nested, stratified and the same for every
    arm; nothing is selected on labels outside a fraction. Writes `results.json` and `report.html`. Run the same command
    again to go on where it stopped.

    With `--task segmentation` the labels are masks, read again from the table's files: every arm trains the same
    decoder for the same number of steps, and is judged by Dice in the geometry of the images.

    Args:
        banks: Banks that `adaptmed embed` wrote, with labels; several draw the grid of encoder pairs.
        out: Folder to write.
        adaptor: Run folder of `adaptmed pretrain` (or a saved adaptor); repeat it once per bank, in the same order.
            Segmentation can do without: its arms are then empty, unet and frozen.
        task: What is studied.
        tuned_bank: For the arms with LoRA: what `adaptmed embed m.csv --adaptor RUN` wrote of the same table; repeat it
            once per bank, in the same order.
        tuned_adaptor: The run of each tuned bank, in the same order.
        fractions: Shares of the labelled training patients, above 0 and at most 1.
        seeds: How many seeds; each chooses another fraction. 5 by default, for segmentation 3.
        arms: Contenders: frozen, adaptor-untrained, "text-informed probe", adaptor, adaptor-trained; with a tuned bank
            also lora (the frozen probe on it) and adaptor+lora; on request adaptor-head (the paper's two-layer head)
            and full (a copy of the whole image encoder is tuned in every cell, from the images: slow). All but the
            last two by default. For segmentation: empty (predicts nothing), unet (from scratch), frozen, adaptor,
            adaptor-trained; with a tuned bank adaptor+lora; on request adaptor-untrained.
        prompts: JSON file with zero-shot prompts per label, instead of generic ones.
        decoder: For segmentation: image-concat reads any bank; dpt and unetr (transformers) and unet (CNNs) read one
            that was embedded with --taps 4.
        mask_labels: Names of mask values, for example 1=effusion 2=nodule; by default the values in the masks of
            `train`. 0 is background.
        steps: Optimiser steps of every trained arm; 300 by default.
        learning_rates: Rates that every trained arm tries, chosen between inside the fraction.
        device: For segmentation: auto, cpu or cuda.
        replicates: Bootstrap replicates behind every interval.
        examples: Show pictures and report texts in the report; --no-examples makes a report that may be shared.
        allow_overlap: Judge although test patients were seen in pre-training; the report says so.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from adaptmed.bank import Bank

    tuned = _tuned(tuned_bank or [], tuned_adaptor or [])
    shared: dict[str, Any] = {"fractions": tuple(fractions), "arms": tuple(arms) or None, "replicates": replicates}
    shared |= {"allow_overlap": allow_overlap} | ({} if seeds is None else {"seeds": seeds})
    if task == "segmentation":
        run = _segmentation(shared, decoder, mask_labels, steps, learning_rates, device)
    else:
        run = _classification(shared, prompts)
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(shown, description=what, completed=done, total=total)

        opened = [Bank.open(bank) for bank in banks]
        beside = [(Bank.open(bank), trained) for bank, trained in tuned]
        results = run(opened, adaptor or [], out, tuned=beside, examples=examples, progress=show)
    print_table(results)
    console.print(Text.assemble("Report: ", (str(out / "report.html"), "bold")), soft_wrap=True)


def _classification(shared: dict[str, Any], prompts: Path | None) -> Callable[..., dict[str, Any]]:
    from adaptmed.heads.prompts import load_prompts
    from adaptmed.study.classification.settings import StudySettings
    from adaptmed.study.classification.study import study as run

    return partial(run, settings=StudySettings(**shared, prompts=load_prompts(prompts) if prompts else None))


def _segmentation(
    shared: dict[str, Any],
    decoder: str,
    mask_labels: tuple[str, ...],
    steps: int | None,
    learning_rates: tuple[float, ...],
    device: str,
) -> Callable[..., dict[str, Any]]:
    from adaptmed.data.mask_labels import parse_labels
    from adaptmed.study.segmentation.settings import SegmentationStudy
    from adaptmed.study.segmentation.study import study_segmentation
    from adaptmed.tasks.segmentation.settings import SegmentationSettings

    training = SegmentationSettings(decoder=decoder, **({} if steps is None else {"steps": steps}))  # type: ignore[arg-type]
    labels = parse_labels(mask_labels) if mask_labels else None
    settings = SegmentationStudy(**shared, training=training, learning_rates=tuple(learning_rates), labels=labels)
    return partial(study_segmentation, settings=settings, device=device)


def _tuned(banks: list[Path], runs: list[Path]) -> list[tuple[Path, Path]]:
    """Pair tuned banks with their runs."""
    if len(banks) != len(runs):
        expected, got = "one --tuned-adaptor per --tuned-bank", f"{len(banks)} banks and {len(runs)} runs"
        fix = "Name what `adaptmed embed m.csv --adaptor RUN` wrote, and RUN."
        raise InputError(sentence("tuned-bank", expected=expected, got=got, fix=fix))
    return list(zip(banks, runs, strict=True))


def print_table(results: dict[str, Any]) -> None:
    """Print the summary over labels: one row per arm, one column per fraction, with intervals."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.study.report.kinds import kind_of
    from adaptmed.study.report.report import leak_mark
    from adaptmed.study.report.tables import NAMES, whole

    primary = kind_of(results["summaries"]).primary
    what = "masks" if primary == "dice_positives" else "labels"
    summaries = whole(results["summaries"], primary)
    fractions = sorted({row["fraction"] for row in summaries})
    for place in dict.fromkeys((row["dataset"], row["encoder"]) for row in summaries):
        here = [row for row in summaries if (row["dataset"], row["encoder"]) == place]
        title = Text(f"Mean {NAMES[primary]}, {', '.join(place)}{leak_mark(results)}", style="table.title")
        table = Table("arm", *(f"{fraction:.0%} of {what}" for fraction in fractions), title=title)
        for arm in dict.fromkeys(row["arm"] for row in here):
            cells = {row["fraction"]: estimate(row) for row in here if row["arm"] == arm}
            table.add_row(Text(arm), *(Text(cells.get(fraction, "")) for fraction in fractions))
        Console().print(table)


def estimate(row: Mapping[str, Any]) -> str:
    """A value with its interval, or why there is none."""
    if row["value"] is None:
        return f"undefined: {row['reason']}"
    if row["ci_low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
