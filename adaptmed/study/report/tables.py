"""The tables of a report: summaries laid out in rows and columns of formatted entries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
WHOLE = ("macro", "all")
NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "ece": "expected calibration error",
    "median_rank": "median rank",
    "dice": "Dice over all images",
    "dice_positives": "Dice on positives",
    "hd95_mm": "95th percentile of surface distances, mm",
    "surface_dice": "surface Dice at 2 mm",
}


@dataclass(frozen=True)
class Entry:
    """One formatted number: its text, its interval, whether it is the best of its column, a mark and a footnote."""

    text: str
    interval: str = ""
    best: bool = False
    mark: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A caption, column names, and rows of a name and entries."""

    caption: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


def number(value: float | None, *, signed: bool = False, digits: int = 3) -> str:
    """Format a number with a true minus sign, or a dash where there is none.

    Example:
        >>> number(-0.0123, signed=True), number(None)
        ('−0.012', '—')
    """
    return "—" if value is None else f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def bounds(row: Row, *, digits: int = 3) -> str:
    """Format the interval of a row, or nothing where there is none."""
    low, high = row.get("ci_low"), row.get("ci_high")
    return "" if low is None or high is None else f"[{number(low, digits=digits)}, {number(high, digits=digits)}]"


def percent(fraction: float) -> str:
    r"""Format a label fraction.

    Example:
        >>> percent(0.01)
        '1\xa0%'
    """
    return f"{100 * fraction:g}\u00a0%"


def share(fraction: float, rows: Sequence[Row]) -> str:
    r"""Format a fraction of what the rows were trained on: labels, masks or answers.

    Example:
        >>> share(0.1, [{"task": "segmentation"}])
        '10\xa0% masks'
    """
    nouns = {"segmentation": "masks", "answering": "answers"}
    found = (nouns[row["task"]] for row in rows if row.get("task") in nouns)
    return f"{percent(fraction)} {next(found, 'labels')}"


def side(row: Row) -> int:
    """Return 1 or -1 when the interval of a difference lies above or below 0, and 0 when it holds 0."""
    low, high = row.get("ci_low"), row.get("ci_high")
    return 0 if low is None or high is None else int(low > 0) - int(high < 0)


def whole(rows: Iterable[Row], metric: str) -> list[Row]:
    """Keep the rows of one metric over the whole task."""
    return [row for row in rows if row.get("metric") == metric and row.get("label") in WHOLE]


def arms_by_fraction(summaries: Sequence[Row], comparisons: Sequence[Row], metric: str, reference: str | None) -> Table:
    """Lay out the whole task: arms down, fractions across, marked where they differ from the reference arm."""
    rows, gaps = whole(summaries, metric), whole(comparisons, metric)
    arms, fractions = _unique(rows, "arm"), sorted(_unique(rows, "fraction"))
    differs = {(gap["arm"], gap["fraction"]): side(gap) for gap in gaps if gap.get("baseline") == reference}
    best = {fraction: _best([row for row in rows if row["fraction"] == fraction], metric) for fraction in fractions}
    cells = {(row["arm"], row["fraction"]): row for row in rows}
    marks = {1: "▲", -1: "▼", 0: ""}
    lines = []
    for arm in arms:
        entries = [
            _entry(cells.get((arm, f)), best=arm in best[f], mark=marks[differs.get((arm, f), 0)]) for f in fractions
        ]
        lines.append((str(arm), tuple(entries)))
    average = "mean " if rows and rows[0]["label"] == "macro" else ""
    caption = f"{average}{NAMES.get(metric, metric)}"
    return Table(caption[0].upper() + caption[1:], "arm", tuple(map(percent, fractions)), tuple(lines))


def differences(comparisons: Sequence[Row], metric: str) -> Table:
    """Lay out paired differences: arm minus baseline down, fractions across; of two baselines only one way round."""
    rows = whole(comparisons, metric)
    fractions = sorted(_unique(rows, "fraction"))
    cells = {(row["arm"], row["baseline"], row["fraction"]): row for row in rows}
    lines = []
    pairs = list(dict.fromkeys((row["arm"], row["baseline"]) for row in rows))
    for place, (arm, baseline) in enumerate(pairs):
        if (baseline, arm) in pairs[:place]:
            continue
        entries = tuple(_gap(cells.get((arm, baseline, fraction))) for fraction in fractions)
        lines.append((f"{arm} − {baseline}", entries))
    caption = f"Paired differences in {NAMES.get(metric, metric)}"
    return Table(caption, "arm − baseline", tuple(map(percent, fractions)), tuple(lines))


def per_label(summaries: Sequence[Row], metric: str, fraction: float) -> Table:
    """Lay out one fraction: labels down with their training positives, arms across."""
    rows = [r for r in summaries if r["metric"] == metric and r["fraction"] == fraction and r["label"] not in WHOLE]
    arms, lines = _unique(rows, "arm"), []
    for label in _unique(rows, "label"):
        mine = {row["arm"]: row for row in rows if row["label"] == label}
        best = _best(list(mine.values()), metric)
        count = next((row["n_positive"] for row in mine.values() if row.get("n_positive") is not None), None)
        entries = [_entry(mine.get(arm), best=arm in best) for arm in arms]
        lines.append((str(label), (Entry("—" if count is None else f"{count:,}"), *entries)))
    return Table(f"At {share(fraction, rows)}", "label", ("training positives", *map(str, arms)), tuple(lines))


def backbone_grid(summaries: Sequence[Row], metric: str, arm: str, fraction: float) -> Table:
    """Lay out one arm at one fraction: text encoders down, image encoders across."""
    rows = [row for row in whole(summaries, metric) if row["arm"] == arm and row["fraction"] == fraction]
    cells = {_pair(row["encoder"]): row for row in rows}
    best = max((row["value"] for row in rows if row["value"] is not None), default=None)
    images, texts = dict.fromkeys(pair[0] for pair in cells), dict.fromkeys(pair[1] for pair in cells)
    lines = []
    for text in texts:
        found = [cells.get((image, text)) for image in images]
        lines.append((text, tuple(_entry(row, best=row is not None and row["value"] == best) for row in found)))
    return Table(f"{arm} at {share(fraction, rows)}", "text encoder ╲ image encoder", tuple(images), tuple(lines))


def retrieval_table(rows: Sequence[Row]) -> Table:
    """Lay out retrieval: arm and direction down, metrics across, with the sizes of both sides."""
    metrics, lines = _unique(rows, "metric"), []
    for arm, direction in dict.fromkeys((row["arm"], row["direction"]) for row in rows):
        mine = {row["metric"]: row for row in rows if (row["arm"], row["direction"]) == (arm, direction)}
        sizes = next(iter(mine.values()))
        counts = [Entry(f"{sizes.get(key, 0):,}") for key in ("n_queries", "n_gallery")]
        entries = [_entry(mine.get(metric), digits=1 if metric == "median_rank" else 3) for metric in metrics]
        lines.append((f"{arm}, {direction}", (*entries, *counts)))
    columns = (*(NAMES.get(metric, metric) for metric in metrics), "queries", "gallery")
    return Table("Retrieval", "arm, direction", columns, tuple(lines))


def zero_shot_table(rows: Sequence[Row]) -> Table:
    """Lay out zero-shot classification: arm and label down, metrics across."""
    metrics, lines = _unique(rows, "metric"), []
    for arm, label in dict.fromkeys((row["arm"], row["label"]) for row in rows):
        mine = {row["metric"]: row for row in rows if (row["arm"], row["label"]) == (arm, label)}
        name = {"macro": "mean", "all": "all classes"}.get(label, label)
        lines.append((f"{arm}, {name}", tuple(_entry(mine.get(metric)) for metric in metrics)))
    columns = tuple(NAMES.get(metric, metric) for metric in metrics)
    return Table("Zero-shot from prompts, without any label", "arm, label", columns, tuple(lines))


def cost_table(summaries: Sequence[Row], metric: str) -> Table:
    """Lay out what each arm costs: trainable parameters, and seconds of training at each fraction."""
    rows = whole(summaries, metric)
    fractions, lines = sorted(_unique(rows, "fraction")), []
    for arm in _unique(rows, "arm"):
        mine = {row["fraction"]: row for row in rows if row["arm"] == arm}
        count = max(row.get("trainable_parameters") or 0 for row in mine.values())
        seconds = [mine[f].get("seconds") if f in mine else None for f in fractions]
        lines.append((str(arm), (Entry(f"{count:,}"), *(Entry(number(value, digits=1)) for value in seconds))))
    columns = ("trainable parameters", *(f"seconds at {percent(fraction)}" for fraction in fractions))
    return Table("Cost of an arm, one seed", "arm", columns, tuple(lines))


def _entry(row: Row | None, *, best: bool = False, mark: str = "", digits: int = 3) -> Entry:
    if row is None:
        return Entry("—", note="not measured")
    text = number(row["value"], digits=digits)
    return Entry(text, bounds(row, digits=digits), best, mark, row.get("reason") or "")


def _gap(row: Row | None) -> Entry:
    if row is None:
        return Entry("—", note="no seed that both arms share")
    p = row.get("p_value")
    said = "" if p is None else f"p {'<' if p < 0.002 else '='} {max(p, 0.002):.3f}"
    text = number(row["difference"], signed=True)
    return Entry(text, f"{bounds(row)} {said}".strip(), best=side(row) != 0, note=row.get("reason") or "")


def _best(rows: Sequence[Row], metric: str) -> set[str]:
    """Name the arms whose printed value is the best; lower is better for calibration errors and distances."""
    values = {row["arm"]: round(row["value"], 3) for row in rows if row["value"] is not None}
    target = (min if metric in ("ece", "hd95_mm") else max)(values.values(), default=None)
    return {arm for arm, value in values.items() if value == target}


def _pair(encoder: str) -> tuple[str, str]:
    image, _, text = str(encoder).partition(" + ")
    return image, text or "—"


def _unique(rows: Iterable[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))
