"""Every recipe on its miniature, as its header says it is started; one as a process of its own."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
ALONE = "vqa_rad"


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem != ALONE], ids=lambda path: path.stem)
def test_a_recipe_ends_with_a_table_of_results(recipe, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(recipe), "--miniature"])
    runpy.run_path(str(recipe), run_name="__main__")
    said = capsys.readouterr().out
    assert "frozen" in said
    assert "undefined" not in said
    assert "report.html" in said


def test_a_recipe_runs_as_a_process_of_its_own():
    recipe = next(path for path in RECIPES if path.stem == ALONE)
    found = subprocess.run([sys.executable, str(recipe), "--miniature"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-4000:]
    assert "question" in found.stdout
    assert "M3AE" in found.stdout


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_its_header_says_what_a_reader_must_know(recipe):
    text = recipe.read_text()
    assert len(text.splitlines()) <= 150
    for said in ("Licence", "Data", "Command", "Time", "Published", "--miniature"):
        assert said in text.split('"""')[1]
