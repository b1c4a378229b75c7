"""Cells on disk: what an arm predicted, so that a stopped study goes on and the statistics can be made again."""

import json
import re
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from adaptmed.study.statistics import Cell


def cell_path(out: Path, subject: str, arm: str, fraction: float, seed: int) -> Path:
    """Where a cell stands in a study folder; ``subject`` is what tells one bank with its adaptor from another."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "_", subject)
    return out / "cells" / slug / arm / f"{fraction:g}-{seed}.safetensors"


def write_cell(path: Path, cell: Cell) -> None:
    """Write one cell whole or not at all."""
    facts = {name: value for name, value in vars(cell).items() if name != "values"}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file({"values": np.ascontiguousarray(cell.values)}, part, metadata={"cell": json.dumps(facts)})
    part.replace(path)


def read_cell(path: Path) -> Cell | None:
    """Read one cell; ``None`` when it has not been computed."""
    if not path.exists():
        return None
    with safe_open(path, framework="numpy") as file:
        return Cell(values=file.get_tensor("values"), **json.loads(file.metadata()["cell"]))
