"""One self-contained HTML page from the results of a study: a sentence first, then tables, curves, maps and facts."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from adaptmed.files import write_text_whole
from adaptmed.study.report.answers import AnswerExample
from adaptmed.study.report.kinds import Kind, kind_of
from adaptmed.study.report.overlays import Overlay
from adaptmed.study.report.plots import Maps, embedding_maps, learning_curves
from adaptmed.study.report.tables import (
    NAMES,
    Row,
    Table,
    arms_by_fraction,
    backbone_grid,
    bounds,
    cost_table,
    differences,
    number,
    per_label,
    retrieval_table,
    share,
    side,
    whole,
    zero_shot_table,
)


@dataclass(frozen=True)
class RetrievalExample:
    """One query image and the texts found for it.

    Attributes:
        thumbnail: PNG bytes of the image.
        text: Its own report.
        retrieved: The texts found, best first.
        right: Whether each of them is a right answer.
    """

    thumbnail: bytes
    text: str
    retrieved: tuple[str, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Shown:
    """Test items with what was made of them.

    Attributes:
        retrieval: Query images with the texts found for them.
        overlays: Images with truth and predictions.
        colours: Label → its colour in the overlays.
        answers: Questions with what every arm answered.
    """

    retrieval: Sequence[RetrievalExample] = ()
    overlays: Sequence[Overlay] = ()
    colours: Mapping[str, str] = field(default_factory=dict)
    answers: Sequence[AnswerExample] = ()


_NOTHING = Shown()


@dataclass(frozen=True)
class Panel:
    """What is shown of one dataset and pair of encoders."""

    title: str
    curve: Markup
    main: Table
    others: tuple[Table, ...]
    differences: Table
    labels: tuple[Table, ...]
    calibration: Table
    cost: Table
    reference: str | None


def write_report(
    path: str | Path,
    *,
    results: Mapping[str, Any],
    maps: Maps | None = None,
    shown: Shown = _NOTHING,
    facts: Mapping[str, Any] | None = None,
    no_examples: bool = False,
) -> None:
    """Write the page; nothing in it is loaded from elsewhere, and it needs no script.

    Args:
        path: HTML file to write or replace.
        results: ``records``, ``summaries``, ``comparisons``, ``retrieval``, ``zero_shot``, ``settings``; any may miss.
        maps: 2-D places of test embeddings before and after.
        shown: Test items with what was made of them; left out with ``no_examples``.
        facts: What the numbers rest on; values may be dictionaries, then their key is a heading. ``title`` names the
            page and ``cautions`` lists sentences that a reader must know.
        no_examples: Show no image and no report text; without it the page is marked "contains data, do not share".
    """
    path, facts = Path(path), dict(facts or {})
    summaries, comparisons = list(results.get("summaries") or ()), list(results.get("comparisons") or ())
    title, cautions = facts.pop("title", "Study report"), list(facts.pop("cautions", ()))
    kind = kind_of(summaries)
    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.get_template("report.html").render(
        title=title,
        headlines=headlines(summaries, comparisons),
        private=not no_examples,
        kind=kind,
        metric=NAMES[kind.primary],
        panels=_panels(summaries, comparisons, kind, leak_mark(results)),
        grids=_grids(summaries, kind),
        others=_others(results),
        maps=None if maps is None else embedding_maps(maps),
        map_titles=None if maps is None else maps.titles,
        examples=[] if no_examples else [_example(example) for example in shown.retrieval],
        overlays=[] if no_examples else [_overlay(overlay) for overlay in shown.overlays],
        answers=[] if no_examples else [_answer(example) for example in shown.answers],
        colours=dict(shown.colours),
        cautions=[*cautions, *_cautions(results, summaries)],
        facts=_sections({**facts, "settings": results.get("settings") or {}}),
    )
    write_text_whole(path, text)


def headlines(summaries: Sequence[Row], comparisons: Sequence[Row]) -> list[str]:
    r"""Say in words how the adaptor, or else the frozen encoder or the first arm, stands at the ends of the fractions.

    It is set against the strongest of the arms it was compared with, taken by the test value, which favours them.

    Example:
        >>> row = {"arm": "adaptor", "encoder": "e", "fraction": 0.01, "metric": "auroc", "label": "macro"}
        >>> gap = {**row, "baseline": "frozen", "difference": 0.06, "ci_low": 0.04, "ci_high": 0.08}
        >>> headlines([{**row, "value": 0.87}, {**row, "arm": "frozen", "value": 0.81}], [gap])
        ['At 1\xa0% labels the adaptor reaches 0.87 mean AUROC, +0.06 [0.04, 0.08] over the best baseline (frozen).']
    """
    primary = kind_of(summaries).primary
    rows = [row for row in whole(summaries, primary) if row.get("value") is not None]
    gaps = [gap for gap in whole(comparisons, primary) if gap.get("difference") is not None]
    arms = list(dict.fromkeys(gap["arm"] for gap in gaps))
    if not arms:
        return []
    arm = next((name for name in ("adaptor", "frozen") if name in arms), arms[0])
    encoder = gaps[0].get("encoder")
    values = {(row["arm"], row["fraction"]): row for row in rows if row.get("encoder") == encoder}
    mine = [gap for gap in gaps if gap["arm"] == arm and gap.get("encoder") == encoder]
    said = []
    for fraction in sorted({min(gap["fraction"] for gap in mine), max(gap["fraction"] for gap in mine)}):
        here = [g for g in mine if g["fraction"] == fraction and (g["baseline"], fraction) in values]
        if here and (arm, fraction) in values:
            said.append(_sentence(values, max(here, key=lambda g: values[g["baseline"], fraction]["value"])))
    return said


def _sentence(values: Mapping[tuple[str, float], Row], gap: Row) -> str:
    fraction, row = gap["fraction"], values[gap["arm"], gap["fraction"]]
    metric = f"{'mean ' if row['label'] == 'macro' else ''}{NAMES[row['metric']]}"
    size = f"{number(gap['difference'], signed=True, digits=2)} {bounds(gap, digits=2)}".strip()
    verdict = {
        1: f"{size} over the best baseline ({gap['baseline']})",
        -1: f"{size} below the best baseline ({gap['baseline']})",
        0: f"not told apart from the best baseline ({gap['baseline']}; difference {size})",
    }[side(gap)]
    arm = gap["arm"] if gap["arm"] == "adaptor" else f"arm {gap['arm']}"
    return f"At {share(fraction, [row])} the {arm} reaches {number(row['value'], digits=2)} {metric}, {verdict}."


def leak_mark(results: Mapping[str, Any]) -> str:
    """What every table and curve is marked with when test patients were seen in training; empty when none was."""
    seen = (results.get("settings") or {}).get("overlapping_test_patients")
    return f" ({seen} test patients were seen in training)" if seen else ""


def _panels(summaries: Sequence[Row], comparisons: Sequence[Row], kind: Kind, mark: str) -> list[Panel]:
    places = dict.fromkeys((row.get("dataset"), row.get("encoder")) for row in whole(summaries, kind.primary))
    return [
        _panel(
            " · ".join(str(part) for part in place if part),
            kind,
            mark,
            _only(summaries, *place),
            _only(comparisons, *place),
        )
        for place in places
    ]


def _panel(title: str, kind: Kind, mark: str, summaries: list[Row], comparisons: list[Row]) -> Panel:
    baselines = list(dict.fromkeys(row["baseline"] for row in comparisons))
    reference = next((arm for arm in (*kind.baselines, *baselines) if arm in baselines), None)
    rows = whole(summaries, kind.primary)
    fractions = sorted({row["fraction"] for row in rows})
    labels = [per_label(summaries, kind.primary, fraction) for fraction in fractions]
    main = arms_by_fraction(summaries, comparisons, kind.primary, reference)
    name = NAMES[kind.primary]
    axis = f"mean {name}" if rows[0]["label"] == "macro" else f"{name}{kind.of_one}"
    return Panel(
        title=title,
        curve=Markup(learning_curves(rows, quiet=kind.baselines, ylabel=axis + mark)),
        main=replace(main, caption=main.caption + mark),
        others=tuple(
            arms_by_fraction(summaries, comparisons, metric, reference)
            for metric in kind.secondary
            if any(row["value"] is not None for row in whole(summaries, metric))
        ),
        differences=differences(comparisons, kind.primary),
        labels=tuple(table for table in labels if table.rows),
        calibration=arms_by_fraction(summaries, comparisons, "ece", reference),
        cost=cost_table(summaries, kind.primary),
        reference=reference,
    )


def _only(rows: Sequence[Row], dataset: str | None, encoder: str | None) -> list[Row]:
    return [row for row in rows if row.get("encoder", encoder) == encoder and row.get("dataset", dataset) == dataset]


def _grids(summaries: Sequence[Row], kind: Kind) -> list[Table]:
    """Tables text encoder × image encoder, when there is more than one pair."""
    rows = whole(summaries, kind.primary)
    if len({row.get("encoder") for row in rows}) < 2:
        return []
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    shown = [arm for arm in ("frozen", "adaptor") if arm in arms] or arms[:2]
    fractions = sorted({row["fraction"] for row in rows})
    return [backbone_grid(rows, kind.primary, arm, fraction) for fraction in fractions for arm in shown]


def _others(results: Mapping[str, Any]) -> list[Table]:
    found, zero = list(results.get("retrieval") or ()), list(results.get("zero_shot") or ())
    return [retrieval_table(found)] * bool(found) + [zero_shot_table(zero)] * bool(zero)


def _example(example: RetrievalExample) -> dict[str, Any]:
    image = _as_address(example.thumbnail)
    found = list(zip(example.retrieved, example.right, strict=True))
    return {"image": image, "text": example.text, "found": found}


def _overlay(overlay: Overlay) -> dict[str, Any]:
    return {"name": overlay.name, "pictures": {title: _as_address(png) for title, png in overlay.pictures.items()}}


def _answer(example: AnswerExample) -> dict[str, Any]:
    picture = None if example.picture is None else _as_address(example.picture)
    arms = [(arm, example.right[arm], best) for arm, best in example.arms.items()]
    return {"picture": picture, "question": example.question, "answer": example.answer, "arms": arms}


def _as_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _cautions(results: Mapping[str, Any], summaries: Sequence[Row]) -> list[str]:
    """Say what the numbers cannot bear."""
    kind = kind_of(summaries)
    arms, rows = {row["arm"] for row in summaries}, whole(summaries, kind.primary)
    missing = [arm for arm in kind.baselines if summaries and arm not in arms]
    said = [f"The arm {arm} is missing, which every adaptor number should stand beside." for arm in missing]
    few = min((row.get("n_seeds", 0) for row in rows if row.get("value") is not None), default=3)
    if few < 3:
        said.append(
            f"Some numbers rest on {few} seed{'s' * (few != 1)}: their intervals hardly hold the spread of training."
        )
    if (results.get("settings") or {}).get("allow_overlap"):
        said.append("Test patients that training has seen were allowed: the numbers are too good.")
    left = sorted({row["reason"] for row in rows if row.get("reason")})
    return said + [f"Some entries are not of the whole: {reason}." for reason in left]


def _sections(facts: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group facts under headings; plain ones first."""
    plain = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in facts.items() if isinstance(value, Mapping)}
    groups = {"run": plain, **nested}
    return [(head, [(str(k), _plain(v)) for k, v in group.items()]) for head, group in groups.items() if group]


def _plain(value: object) -> str:
    """Print a fact; long hashes keep their first twelve digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1…", str(value))
