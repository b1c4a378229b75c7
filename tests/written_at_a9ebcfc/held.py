"""What stands in ``files.tar.xz``, and how numbers of today are compared with those it holds."""

import json
import tarfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ARCHIVE = Path(__file__).with_name("files.tar.xz")
PLACE = "@HERE@"
TEXTS = (".json", ".jsonl", ".md", ".csv", ".txt")
PARTS = (
    "adaptor/adaptor.safetensors",
    "pretext.safetensors",
    "head.safetensors",
    "pair_head.safetensors",
    "decoder.safetensors",
    "adaptor/image_lora/adapter_model.safetensors",
)
"""The files with what a run has trained."""


def unpack(folder: Path) -> Path:
    """Unpack the archive and put the path of its folder where the texts leave room for it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    here = folder / "fixture"
    for path in here.rglob("*"):
        if path.suffix in TEXTS and PLACE in (text := path.read_text(encoding="utf-8")):
            path.write_text(text.replace(PLACE, str(here)), encoding="utf-8")
    return here


def read(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def is_same_arithmetic(here: Path) -> bool:
    """Whether this torch and this CPU are those the numbers were made with; then every bit is the same."""
    made = read(here / "expected" / "numbers.json")
    return (torch.__version__, torch.backends.cpu.get_cpu_capability()) == (made["torch"], made["cpu"])


def assert_same(here: Path, found: Any, expected: Any, where: str = "") -> None:
    """Compare values, lists and dictionaries to the bit, or within 1e-4 where the arithmetic is another."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(here, found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_same(here, found[number], value, f"{where}/{number}")
    elif isinstance(expected, torch.Tensor):
        rel, small = (0, 0) if is_same_arithmetic(here) else (1e-4, 1e-5)
        torch.testing.assert_close(found, expected, rtol=rel, atol=small, msg=lambda text: f"{where}: {text}")
    elif isinstance(expected, float) and not is_same_arithmetic(here):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True), where
    else:
        assert found == expected, where
