"""Every command of the README runs as it stands there, in its order, with its defaults, on small drawn files.

Two words of a command are replaced, the names of the encoders: tiny ones of the same kinds stand in for those named.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import jaxtyping
import pytest

from adaptmed.cli import main
from tests.readme_files import write_readme_files
from tests.readme_lines import COMMANDS, out_of, read_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
ENCODERS = {"bundled:dinov2-small": "hf:vit", "bundled:minilm-l6": "hf:bert"}
BANK = ("bank.json", "rows.parquet")
ADAPTOR = ("config.json", "metrics.jsonl", "patients_seen.json", "adaptor/adaptor.safetensors")
BLIND = ("majority", "lookup", "question")
STUDY = ("report.html", "results.json", "cells")
TUNED = (*ADAPTOR, "metrics.json")
HELD = {
    "bank": BANK,
    "bank-2": BANK,
    "bank-i": BANK,
    "bank-l": BANK,
    "bank-f": BANK,
    "bank-v": BANK,
    "bank-q": BANK,
    "bank-p": BANK,
    "runs/a": ADAPTOR,
    "runs/a-2": ADAPTOR,
    "runs/l": (*ADAPTOR, "adaptor/image_lora"),
    "runs/u": (*ADAPTOR, "pretext.safetensors"),
    "runs/uc": ADAPTOR,
    "runs/s": STUDY,
    "runs/si": STUDY,
    "runs/sl": STUDY,
    "runs/sm": STUDY,
    "runs/sq": STUDY,
    "runs/f": (*TUNED, "head.safetensors", "adaptor/image_lora"),
    "runs/ut": (*TUNED, "pair_head.safetensors", "answers.csv", "coordination.jsonl"),
    "runs/m": (*TUNED, "decoder.safetensors"),
    "masks": ("4.png", "5.png"),
}
"""What the folder of every ``--out`` holds in the end."""


@dataclass
class Place:
    """A folder in which the commands run, and what those that ended well have written there."""

    folder: Path
    written: set[str] = field(default_factory=set)

    def require(self, folders: set[str]) -> None:
        """Skip the test when an earlier command has not written what it reads."""
        if missing := sorted(folders - self.written):
            pytest.skip(f"an earlier command has not written {', '.join(missing)}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    write_readme_files(folder)
    return Place(folder)


@pytest.fixture(autouse=True)
def as_installed(monkeypatch):
    """Leave out the checks of shapes that tests add to every function: they take half of the time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def shell_words(line: str) -> list[str]:
    """Split a line as a shell does, file patterns included, and replace the names of the encoders."""
    words: list[str] = []
    for word in shlex.split(line):
        found = sorted(path.as_posix() for path in Path().glob(word)) if "*" in word else []
        words += found or [ENCODERS.get(word, word)]
    return words


def run(words: list[str]) -> int | str | None:
    """Run one command and return its exit status: that of torchrun in processes of its own."""
    if words[0] == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PET_STANDALONE": "1"}
        return subprocess.run(command, env=environment, check=False, timeout=200).returncode
    with pytest.raises(SystemExit) as stop:
        main(words[1:])
    return stop.value.code


def name_of(line: str) -> str:
    """Return a short name: the command and its folder."""
    words = COMMANDS[line]
    return f"{words[0]}-{out_of(words) or words[-1]}"


@pytest.mark.parametrize("line", COMMANDS, ids=name_of)
def test_a_command_runs_as_it_stands(line, place, monkeypatch, capfd):
    words = COMMANDS[line]
    place.require(read_by(words))
    monkeypatch.chdir(place.folder)
    status = run(shell_words(line))
    said = capfd.readouterr()
    assert status == 0, said.err
    assert "Warning" not in said.err
    assert said.out
    if (out := out_of(words)) is not None:
        assert [name for name in HELD[out] if not Path(out, name).exists()] == []
        place.written.add(out)


def test_every_folder_is_looked_into():
    assert {out for words in COMMANDS.values() if (out := out_of(words)) is not None} == set(HELD)


def test_two_processes_write_the_bank_of_one(place):
    place.require({"bank", "bank-2"})
    files = {path.relative_to(place.folder / "bank") for path in (place.folder / "bank").rglob("*") if path.is_file()}
    assert len(files) > len(BANK)
    for name in files:
        assert (place.folder / "bank-2" / name).read_bytes() == (place.folder / "bank" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("study", "arms"),
    [
        ("runs/s", {"frozen", "text-informed probe", "adaptor-untrained", "adaptor", "adaptor-trained"}),
        ("runs/sl", {"frozen", "adaptor", "lora", "adaptor+lora"}),
        ("runs/sm", {"empty", "unet", "frozen", "adaptor", "adaptor-trained"}),
        ("runs/sq", {*BLIND, "frozen", "no pre-training", "umd", "umd+gm-coord"}),
    ],
)
def test_studies_have_the_arms_that_are_named(place, study, arms):
    place.require({study})
    results = json.loads((place.folder / study / "results.json").read_text())
    assert arms <= {record["arm"] for record in results["records"]}
    assert "data:image/png" in (place.folder / study / "report.html").read_text()


def test_a_study_without_an_adaptor_has_its_two_arms(place):
    place.require({"runs/si"})
    results = json.loads((place.folder / "runs" / "si" / "results.json").read_text())
    values = {(row["arm"], row["value"] is None) for row in results["records"] if row["fraction"] == 1.0}
    assert values == {("frozen", False), ("lora-tuned", False)}


def test_a_study_is_not_written_into_a_bank(place, monkeypatch, capfd):
    place.require({"bank", "runs/a"})
    monkeypatch.chdir(place.folder)
    assert run(["adaptmed", "study", "bank", "--adaptor", "runs/a", "--out", "bank"]) == 1
    assert "an empty folder or a run" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("run", "bank", "name"), [("runs/ut", "bank-q", "evaluation-bank-q"), ("runs/u", "bank-v", "retrieval-bank-v")]
)
def test_judging_writes_its_numbers_beside_the_run(place, run, bank, name):
    place.require({run, bank})
    assert json.loads((place.folder / run / f"{name}.json").read_text())
