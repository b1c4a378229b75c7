"""The house of adaptmed: imports go one way, each third-party library has one door, no room is a drawer."""

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FRONT_DOOR = ("__init__", "__main__")
STEPS = (
    "types errors files",
    "layers",
    "encoders fusion pretext objectives bank data heads metrics",
    "lora coordination",
    "adaptor cohort",
    "runs",
    "embedding training",
    "pretraining",
    "methods",
    "tasks",
    "study",
    "cli",
)
STEP = {room: number for number, rooms in enumerate(STEPS) for room in rooms.split()}
DOORS = {
    "timm": ["encoders/_timm.py"],
    "open_clip": ["encoders/_open_clip.py"],
    "transformers": ["encoders/_transformers.py", "encoders/_quiet.py"],
    "onnx": ["encoders/bundled.py"],
    "peft": ["lora/*"],
    "lightning": ["training/*", "pretraining/*", "tasks/*"],
    "pytorch_lightning": [],
    "monai": [
        "heads/decoders/*",
        "data/*",
        "metrics/segmentation.py",
        "objectives/overlap.py",
        "tasks/segmentation/*",
    ],
    "pydicom": ["data/*"],
    "nibabel": ["data/*"],
    "sklearn": ["heads/*", "data/*", "metrics/*", "study/*"],
    "matplotlib": ["study/*"],
    "jinja2": ["study/*"],
    "cyclopts": ["cli/*"],
}
DRAWERS = {"util", "utils", "helper", "helpers", "common", "misc"}
LONGEST_FILE = 300


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported dotted name with its line: in functions, under TYPE_CHECKING and by ``import_module("…")`` too."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=0):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.ImportFrom():
                yield node.lineno, "adaptmed.."
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                if call in ("import_module", "__import__"):
                    yield node.lineno, name


def objection(room: str, file: str, name: str) -> str | None:
    """Why ``file`` of ``room`` may not import ``name``; None when it may."""
    library, *rest = name.split(".")
    if library != "adaptmed":
        doors = DOORS.get(library)
        return None if doors is None or any(fnmatch(file, door) for door in doors) else f"no door to {library}"
    if rest in ([], ["__version__"]) or rest[0] == room:
        return None
    if rest[0] == "":
        return "imports are absolute"
    if rest[0] not in STEP:
        return "no such room in STEPS; public names come from their own room, not through the front door"
    if STEP[rest[0]] >= STEP[room]:
        return f"{room} stands on step {STEP[room]}, {rest[0]} on step {STEP[rest[0]]}"
    return None


def breaches(package: Path) -> list[str]:
    """Every import in ``package`` that the house forbids, as ``file:line: name: why``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        room = Path(file).with_suffix("").parts[0]
        if room in FRONT_DOOR:
            continue
        if room not in STEP:
            found.append(f"{file}:1: {room}: no such room in STEPS")
            continue
        for line, name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if why := objection(room, file, name):
                found.append(f"{file}:{line}: {name}: {why}")
    return found


def sources() -> list[Path]:
    folders = ("adaptmed", "tests", "benchmarks", "examples", "recipes")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_imports_go_one_way_and_through_one_door():
    assert breaches(ROOT / "adaptmed") == []


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("layers/attention.py", "from adaptmed.fusion import cross"),
        ("fusion/cross.py", "from adaptmed.encoders.base import freeze"),
        ("fusion/cross.py", "from adaptmed import adaptor"),
        ("adaptor/model.py", "def f():\n    from adaptmed.study import arms"),
        (
            "adaptor/model.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import adaptmed.pretraining.module",
        ),
        ("bank/read.py", "from importlib import import_module\nimport_module('adaptmed.study')"),
        ("tasks/probe.py", "from adaptmed import Adaptor"),
        ("types.py", "import adaptmed.errors"),
        ("adaptor/model.py", "from . import types"),
        ("encoders/universal.py", "from timm.models import create_model"),
        ("heads/linear.py", "import monai.networks"),
        ("adaptor/model.py", "import lightning"),
        ("tasks/pretraining.py", "import pytorch_lightning"),
        ("tasks/pretraining.py", "import peft"),
        ("study/report.py", "import cyclopts"),
        ("drawer/things.py", "x = 1"),
    ],
)
def test_a_breach_is_seen(tmp_path, file, code):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(code)
    assert [found.split(":")[0] for found in breaches(tmp_path)] == [file]


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("cli/embed.py", "import cyclopts\nfrom adaptmed.study import run\nfrom adaptmed import __version__"),
        ("heads/decoders/blocks.py", "import monai\nimport sklearn.linear_model\nfrom adaptmed.types import Tokens"),
        ("encoders/_timm.py", "import timm\nfrom adaptmed.encoders.base import freeze"),
        ("adaptor/model.py", "import torch\nfrom adaptmed import lora, layers"),
        ("__init__.py", "from adaptmed.adaptor.model import Adaptor"),
        ("bank/read.py", "import timmy"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, code):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(code)
    assert breaches(tmp_path) == []


def test_no_room_is_a_drawer():
    assert [path for path in sources() if DRAWERS & set(path.relative_to(ROOT).with_suffix("").parts)] == []


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE
