"""The figures of a report as self-contained markup: learning curves as SVG, maps of embeddings as PNG."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from sklearn.manifold import TSNE

# Okabe and Ito's colours, told apart under all common colour-blindness; yellow left out, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
QUIET = "#6B6B6B"
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9A9A9A",
    "axes.labelcolor": "#333333",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}


@dataclass(frozen=True)
class Maps:
    """Two maps of the same test items.

    Attributes:
        before: 2-D places of the frozen encoder's embeddings.
        after: 2-D places of the adaptor's embeddings.
        labels: ``(n, n_label)`` of 0, 1 and NaN, one pair of panels per label; or ``(n,)`` class numbers, one pair.
        names: Label or class names.
        titles: What the two maps show.
    """

    before: Float[np.ndarray, "n 2"]
    after: Float[np.ndarray, "n 2"]
    labels: Real[np.ndarray, "n ..."]
    names: tuple[str, ...]
    titles: tuple[str, str] = ("frozen encoder", "adaptor")


def sample_rows(count: int, *, limit: int = 1000, seed: int = 0) -> Int[np.ndarray, " row"]:
    """Return at most ``limit`` row numbers out of ``count``, sorted; the same for the same arguments."""
    rows = np.random.default_rng(seed).permutation(count)[:limit]
    return np.sort(rows)


def project_2d(embeddings: Float[np.ndarray, "n width"], *, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Lay embeddings out in the plane by t-SNE, after each column is centred and the whole scaled to unit spread.

    Args:
        embeddings: Pick rows with `sample_rows` first; a thousand take about ten seconds.
        seed: The same seed and embeddings give the same map.

    Returns:
        Places without unit; only near neighbourhood carries meaning. With fewer than five items all places are 0.

    Example:
        >>> project_2d(np.zeros((3, 8))).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """
    centred = np.asarray(embeddings, dtype=np.float64) - np.mean(embeddings, axis=0)
    spread = float(centred.std())
    if len(centred) < 5 or spread == 0:
        return np.zeros((len(centred), 2))
    perplexity = min(30.0, (len(centred) - 1) / 3)
    places: np.ndarray = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(centred / spread)
    return places.astype(np.float64)


def learning_curves(rows: Sequence[Mapping[str, Any]], *, quiet: Sequence[str] = (), ylabel: str = "AUROC") -> str:
    """Draw value against label fraction, one line with intervals per arm, named at its right end.

    Args:
        rows: Summaries of one metric, label and encoder; undefined ones leave a gap.
        quiet: Arms drawn dashed and grey, the baselines.
        ylabel: What is measured.

    Returns:
        Inline SVG without any outside reference.
    """
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    loud = sorted((arm for arm in arms if arm not in quiet), key=lambda arm: arm != "adaptor")
    fractions = sorted({row["fraction"] for row in rows})
    with rc_context({**STYLE, "svg.hashsalt": repr(rows)}):  # ids that differ between the curves of one page
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        ends: dict[str, tuple[tuple[float, float], str]] = {}
        for place, arm in enumerate(arms):
            colour = COLOURS[loud.index(arm) % len(COLOURS)] if arm in loud else QUIET
            dodge = 1.045 ** (place - (len(arms) - 1) / 2)
            end = _curve(axes, [row for row in rows if row["arm"] == arm], place, dodge, colour, arm in quiet)
            if end is not None:
                ends[arm] = (end, colour)
        axes.set(xscale="log", xlabel="labelled share of the training patients", ylabel=fill(ylabel, 40))
        axes.set_xticks(fractions, [f"{100 * fraction:g} %" for fraction in fractions])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
        axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        _name_ends(axes, ends)
        return _svg(figure, f"{ylabel} against label fraction for {', '.join(arms)}")


def embedding_maps(maps: Maps, *, limit: int = 6) -> str:
    """Draw the maps before and after, coloured by label, as a PNG data address.

    Args:
        maps: Places and labels.
        limit: At most so many labels are drawn.

    Returns:
        ``data:image/png;base64,...``.
    """
    several = maps.labels.ndim == 2
    columns = min(maps.labels.shape[1], limit) if several else 2
    grid = (2, columns) if several else (1, 2)
    with rc_context(STYLE):
        figure = Figure(figsize=(2.1 * columns, 4.5) if several else (8.6, 4.4), layout="constrained", dpi=170)
        panels = figure.subplots(*grid, squeeze=False)
        for half, (places, title) in enumerate(zip((maps.before, maps.after), maps.titles, strict=True)):
            for column in range(columns if several else 1):
                axes = panels[half, column] if several else panels[0, half]
                _scatter(axes, places, maps.labels[:, column] if several else maps.labels, maps.names, several)
                if several and half == 0:
                    axes.set_title(maps.names[column], fontsize=10)
                if column == 0:
                    (axes.set_ylabel if several else axes.set_title)(title, fontsize=10)
        if not several:
            figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _curve(
    axes: Axes, rows: Sequence[Mapping[str, Any]], place: int, dodge: float, colour: str, quiet: bool
) -> tuple[float, float] | None:
    rows = sorted((row for row in rows if row["value"] is not None), key=lambda row: row["fraction"])
    if not rows:
        return None
    x, y = np.array([row["fraction"] * dodge for row in rows]), np.array([row["value"] for row in rows])
    low = [row["value"] if row.get("ci_low") is None else row["ci_low"] for row in rows]
    high = [row["value"] if row.get("ci_high") is None else row["ci_high"] for row in rows]
    axes.vlines(x, low, high, color=colour, linewidth=1.6, alpha=0.55)
    marker = MARKERS[place % len(MARKERS)]
    axes.plot(
        x, y, color=colour, linestyle="--" if quiet else "-", linewidth=1.2 if quiet else 2, marker=marker, markersize=5
    )
    return float(x[-1]), float(y[-1])


def _name_ends(axes: Axes, ends: Mapping[str, tuple[tuple[float, float], str]]) -> None:
    """Write each arm's name beside its last value, pushed apart so that no two overlap."""
    low, high = axes.get_ylim()
    gap, names = 0.062 * (high - low), sorted(ends, key=lambda arm: ends[arm][0][1])
    if not names:
        return
    heights = np.array([ends[name][0][1] for name in names])
    for _ in range(200):
        overlap = gap - np.diff(heights)
        push = np.where(overlap > 1e-9, overlap / 2, 0)
        heights[:-1] -= push
        heights[1:] += push
    beside = axes.get_yaxis_transform()  # x in widths of the axes, y in values
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            ends[name][0],
            (1.025, height),
            textcoords=beside,
            color=ends[name][1],
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": ends[name][1], "alpha": 0.5, "linewidth": 0.8, "shrinkA": 1},
        )


def _scatter(axes: Axes, places: np.ndarray, labels: np.ndarray, names: Sequence[str], binary: bool) -> None:
    size = float(np.clip(4000 / max(len(places), 1), 5, 26))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#F7F7F5")
    if binary:
        positive = labels == 1
        for rows, colour in [(~positive, "#C9C9C4"), (positive, COLOURS[1])]:
            axes.scatter(places[rows, 0], places[rows, 1], s=size, c=colour, linewidths=0)
        return
    for number, name in enumerate(names):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        mine = places[labels == number]
        axes.scatter(mine[:, 0], mine[:, 1], s=size, c=colour, marker=marker, linewidths=0, alpha=0.85, label=name)


def _svg(figure: Figure, description: str) -> str:
    """Markup that stands inside HTML: no prologue, no metadata, no namespace address, no doubled group names."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>", "", markup, flags=re.DOTALL)
    markup = re.sub(r' xmlns(:\w+)?="[^"]*"', "", markup)
    markup = re.sub(r'<g id="[^"]*"', "<g", markup)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{label}">', markup)
