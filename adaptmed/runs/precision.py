"""Precision of a command that was told none: what its folder was begun with, or what the machine computes fast."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from adaptmed.runs.processes import device_of

Precision = Literal["fp32", "bf16"]
_FILES = ("config.json", "plan.json")


def usual_precision(device: str, out: Path | None = None) -> Precision:
    """Return the precision of a command that was told none.

    What a folder was begun with goes on. Else it is bf16 on a device that computes in it, and fp32 on one that does
    not: a processor without such instructions takes about eight times as long for a layer in bf16.

    Args:
        device: ``auto``, ``cpu``, ``cuda``, …
        out: Folder of a run, of a study or of a bank; it need not be there.
    """
    held = None if out is None else _held(out)
    if held in ("fp32", "bf16"):
        return "bf16" if held == "bf16" else "fp32"
    where = device_of(device)
    if where.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if where.type == "cpu":
        fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bf16" if fast else "fp32"
    return "bf16"


def _held(out: Path) -> object:
    """What the folder's record says; a damaged one is refused by whoever opens it."""
    for path in (out / name for name in _FILES):
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        parts = [found, *(found.get(name) for name in ("settings", "training"))] if isinstance(found, dict) else []
        for part in parts:
            if isinstance(part, dict) and "precision" in part:
                return part["precision"]
        return "bf16" if isinstance(found, dict) else None  # of a study that an older version began
    return None
