"""``adaptmed study``: what a pre-trained adaptor is worth at 1 %, 10 % and 100 % of the labels."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from adaptmed.errors import InputError, sentence


def study(
    *banks: Path,
    adaptor: list[Path],
    out: Path,
    tuned_bank: list[Path] | None = None,
    tuned_adaptor: list[Path] | None = None,
    fractions: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = (0.01, 0.1, 1.0),
    seeds: int = 5,
    arms: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    prompts: Path | None = None,
    replicates: int = 1000,
    examples: bool = True,
    allow_overlap: bool = False,
) -> None:
    """Compare a pre-trained adaptor with frozen baselines at several label fractions.

    Trains on the `train` split, judges on `test`. Fractions are of patients: nested, stratified and the same for every
    arm; nothing is selected on labels outside a fraction. Writes `results.json` and `report.html`. Run the same command
    again to go on where it stopped.

    Args:
        banks: Banks that `adaptmed embed` wrote, with labels; several draw the grid of encoder pairs.
        adaptor: Run folder of `adaptmed pretrain` (or a saved adaptor); repeat it once per bank, in the same order.
        out: Folder to write.
        tuned_bank: For the arms with LoRA: what `adaptmed embed m.csv --adaptor RUN` wrote of the same table; repeat it
            once per bank, in the same order.
        tuned_adaptor: The run of each tuned bank, in the same order.
        fractions: Shares of the labelled training patients, above 0 and at most 1.
        seeds: How many seeds; each chooses another fraction.
        arms: Contenders: frozen, adaptor-untrained, "text-informed probe", adaptor, adaptor-trained; with a tuned bank
            also lora (the frozen probe on it) and adaptor+lora; on request adaptor-head (the paper's two-layer head)
            and full (a copy of the whole image encoder is tuned in every cell, from the images: slow). All but the
            last two by default.
        prompts: JSON file with zero-shot prompts per label, instead of generic ones.
        replicates: Bootstrap replicates behind every interval.
        examples: Show pictures and report texts in the report; --no-examples makes a report that may be shared.
        allow_overlap: Judge although test patients were seen in pre-training; the report says so.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.heads.prompts import load_prompts
    from adaptmed.study.run import StudySettings
    from adaptmed.study.whole import study as run

    settings = StudySettings(
        fractions=tuple(fractions),
        seeds=seeds,
        arms=tuple(arms) or None,
        prompts=load_prompts(prompts) if prompts else None,
        replicates=replicates,
        allow_overlap=allow_overlap,
    )
    tuned = _tuned(tuned_bank or [], tuned_adaptor or [])
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        opened = [Bank.open(bank) for bank in banks]
        beside = [(Bank.open(bank), trained) for bank, trained in tuned]
        results = run(opened, adaptor, out, settings=settings, tuned=beside, examples=examples, progress=show)
    print_table(results)
    console.print(Text.assemble("Report: ", (str(out / "report.html"), "bold")), soft_wrap=True)


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

    from adaptmed.study.report import leak_mark

    summaries = [row for row in results["summaries"] if row["label"] in ("macro", "all") and row["metric"] == "auroc"]
    fractions = sorted({row["fraction"] for row in summaries})
    for place in dict.fromkeys((row["dataset"], row["encoder"]) for row in summaries):
        here = [row for row in summaries if (row["dataset"], row["encoder"]) == place]
        title = Text(f"Mean AUROC, {', '.join(place)}{leak_mark(results)}", style="table.title")
        table = Table("arm", *(f"{fraction:.0%} of labels" for fraction in fractions), title=title)
        for arm in dict.fromkeys(row["arm"] for row in here):
            cells = {row["fraction"]: estimate(row) for row in here if row["arm"] == arm}
            table.add_row(Text(arm), *(Text(cells.get(fraction, "")) for fraction in fractions))
        Console().print(table)


def estimate(row: dict[str, Any]) -> str:
    """A value with its interval, or why there is none."""
    if row["value"] is None:
        return f"undefined: {row['reason']}"
    if row["ci_low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
