"""The demo, which goes the whole way in one command, and the example in Python of the README."""

import shutil
from pathlib import Path

import pytest

from adaptmed.cli import main
from adaptmed.data.phantom import write_phantom

README = (Path(__file__).parents[2] / "README.md").read_text()


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_the_demo_writes_what_the_readme_promises(tmp_path):
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--studies", 60, "--epochs", 1, "--seeds", 1) == 0
    assert {"results.json", "report.html", "adaptor"} <= {path.name for path in out.iterdir()}
    assert (out / "adaptor" / "adaptor.safetensors").is_file()


def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    phantom = write_phantom(tmp_path, splits={"train": 6, "validate": 2, "test": 2}, seed=3)
    example = README.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(phantom, tmp_path / "m.csv")
    shutil.copyfile(next((phantom.parent / "images").iterdir()), tmp_path / "chest.png")
    found: dict = {}
    exec(compile(example, "README.md", "exec"), found)
    assert found["z"].shape == (1, 256)
    assert found["fused"].joint.isfinite().all()
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
