"""Cells of a study on disk: what an arm predicted at one fraction and seed, and the one loop over all of them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from adaptmed.files import written_whole
from adaptmed.study.scoring import Cell

Progress = Callable[[str, int, int], None]
"""Called with what is being done, its number and how many there are."""


@dataclass(frozen=True)
class Place:
    """Where in a study a cell is.

    Attributes:
        arm: Contender.
        fraction: Of the labels.
        seed: Of the fraction.
    """

    arm: str
    fraction: float
    seed: int


def places_of(arms: Sequence[str], fractions: Sequence[float], seeds: int) -> list[Place]:
    """Every cell of a study, smallest fraction first."""
    return [Place(arm, f, seed) for f in sorted(fractions) for seed in range(seeds) for arm in arms]


def cells_of(
    places: Sequence[Place],
    path_of: Callable[[Place], Path],
    compute: Callable[[Place], Cell],
    progress: Progress,
) -> list[Cell]:
    """Compute cells; what is on disk is not computed again.

    Args:
        places: Cells that are wanted.
        path_of: File of a cell.
        compute: Cell of a place.
        progress: Called with what is done, its number and the number of all cells.
    """
    cells: list[Cell] = []
    for number, place in enumerate(places):
        progress(f"{place.arm}, {place.fraction:g}, seed {place.seed}", number, len(places))
        path = path_of(place)
        cell = read_cell(path)
        if cell is None:
            cell = compute(place)
            write_cell(path, cell)
        cells.append(cell)
    progress("all cells", len(places), len(places))
    return cells


def cell_path(out: Path, subject: str, place: Place) -> Path:
    """File of a cell in a study folder; ``subject`` is what tells one bank with its adaptor from another."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", subject)
    return out / "cells" / slug / place.arm / f"{place.fraction:g}-{place.seed}.safetensors"


def write_cell(path: Path, cell: Cell) -> None:
    """Write one cell whole or not at all."""
    facts = {name: value for name, value in vars(cell).items() if name != "values"}
    with written_whole(path) as part:
        save_file({"values": np.ascontiguousarray(cell.values)}, part, metadata={"cell": json.dumps(facts)})


def read_cell(path: Path) -> Cell | None:
    """Read one cell; ``None`` when it has not been computed."""
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        return Cell(values=file.get_tensor("values"), **json.loads(file.metadata()["cell"]))
