"""Precision of a command that was told none: its folder's own, else what the device computes fast."""

import json

import pytest
import torch

from adaptmed.runs.precision import usual_precision


@pytest.mark.parametrize(("fast", "usual"), [(True, "bf16"), (False, "fp32")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_it_is_what_the_device_computes_fast(monkeypatch, device, fast, usual):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: fast)
    assert usual_precision(device) == usual


def test_a_torch_without_mkldnn_is_not_asked_what_it_cannot_say(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: pytest.fail("it has no such operator"))
    assert usual_precision("cpu") == "fp32"


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("config.json", {"command": "pretrain", "precision": "bf16"}),
        ("config.json", {"command": "finetune", "settings": {"precision": "bf16"}}),
        ("config.json", {"command": "study", "training": {"precision": "bf16"}}),
        ("plan.json", {"precision": "bf16"}),
    ],
)
def test_what_a_folder_was_begun_with_goes_on(monkeypatch, tmp_path, file, found):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert usual_precision("cpu", tmp_path) == "fp32"
    (tmp_path / file).write_text(json.dumps(found))
    assert usual_precision("cpu", tmp_path) == "bf16"


@pytest.mark.parametrize("text", ["", "[", "[1]", "3", '{"precision": 3}', '{"settings": null}'])
def test_a_damaged_record_is_left_to_whoever_opens_the_folder(monkeypatch, tmp_path, text):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    (tmp_path / "config.json").write_text(text)
    assert usual_precision("cpu", tmp_path) == "bf16"
