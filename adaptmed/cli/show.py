"""What several commands print: estimates with their intervals, and the table of a study."""

from collections.abc import Mapping
from typing import Any


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
