"""The commands of the README, in their order, on a small phantom; and the demo, which is the same in one."""

import json
import shutil
from pathlib import Path

import pytest

from adaptmed.cli import main
from adaptmed.data.phantom import write_phantom

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("phantom"), splits={"train": 24, "validate": 6, "test": 12}, seed=3)


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_the_four_commands(phantom, tmp_path, capsys):
    bank, trained, judged = tmp_path / "bank", tmp_path / "runs" / "a", tmp_path / "runs" / "s"
    encoders = ("--image-encoder", "bundled:efficientnet-lite0", "--text-encoder", "bundled:minilm-l6")
    assert run("check", phantom) == 0
    assert run("embed", phantom, *encoders, "--out", bank) == 0
    assert run("pretrain", bank, "--method", "adaptor", "--epochs", 2, "--out", trained) == 0
    words = ("--adaptor", trained, "--fractions", 0.5, 1, "--seeds", 2, "--out", judged, "--replicates", 50)
    assert run("study", bank, *words) == 0
    said = capsys.readouterr().out
    assert "trainable params: 2,1" in said
    assert "report.html" in said
    results = json.loads((judged / "results.json").read_text())
    assert {r["arm"] for r in results["records"]} == {
        "frozen", "adaptor-untrained", "text-informed probe", "adaptor", "adaptor-trained",
    }  # fmt: skip
    assert results["zero_shot"]
    assert "data:image/png" in (judged / "report.html").read_text()
    assert run("study", bank, "--adaptor", trained, "--out", bank) == 1
    assert "an empty folder or a run" in capsys.readouterr().err


def test_the_demo_writes_what_the_readme_promises(tmp_path):
    out = tmp_path / "demo"
    assert run("demo", "--out", out, "--studies", 60, "--epochs", 1, "--seeds", 1) == 0
    assert {"results.json", "report.html", "adaptor"} <= {path.name for path in out.iterdir()}
    assert (out / "adaptor" / "adaptor.safetensors").is_file()


def test_the_python_example_of_the_readme_runs(phantom, tmp_path, monkeypatch):
    example = README.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(phantom.parent, tmp_path, dirs_exist_ok=True)
    shutil.copyfile(phantom, tmp_path / "m.csv")
    shutil.copyfile(next((phantom.parent / "images").iterdir()), tmp_path / "chest.png")
    found: dict = {}
    exec(compile(example, "README.md", "exec"), found)
    assert found["z"].shape == (1, 256)
    assert found["fused"].joint.isfinite().all()
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
