"""Saved adaptors that are damaged or foreign, and what cannot be saved: said in words, never read as something else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import InputError
from tests.tiny_bank import write_tiny_bank

CONFIG, TENSORS = "adaptmed_config.json", "adaptor.safetensors"


@pytest.fixture(scope="module")
def adaptor(tmp_path_factory):
    return Adaptor.from_bank(write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank"), width=16, layers=1, heads=2)


@pytest.fixture
def saved(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "adaptor", metrics={"loss": None})
    return tmp_path / "adaptor"


def load(folder):
    return Adaptor.from_pretrained(folder, load_encoders=False)


def test_a_whole_one_is_read(adaptor, saved):
    for name, tensor in load(saved).fusion.state_dict().items():
        assert torch.equal(tensor, adaptor.fusion.state_dict()[name])


@pytest.mark.parametrize("content", [b'{"schema": 1, "versions"', b"[1, 2]", b"\xff\xfe\x00", b""])
def test_a_cut_or_foreign_configuration_is_refused(saved, content):
    (saved / CONFIG).write_bytes(content)
    with pytest.raises(InputError, match=rf"{CONFIG}`: expected the whole configuration.*Copy or save"):
        load(saved)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("fusion", {"kind": "magic"}, "`fusion.kind`: expected one of cross, co, but got 'magic'"),
        (
            "fusion",
            {"kind": "co"},
            r"`fusion`: expected exactly the fields .*missing \[\], unknown \['faithful', 'image_grid",
        ),
        ("fusion", {"surprise": 1}, r"`fusion`: expected exactly the fields .*unknown \['surprise'\]"),
        ("fusion", {"width": "16"}, "`fusion.width`: expected a whole number, but got '16'"),
        ("fusion", {"faithful": 0}, "`fusion.faithful`: expected true or false, but got 0"),
        ("fusion", {"dropout": None}, "`fusion.dropout`: expected a number, but got None"),
        ("fusion", {"image_grid": [2]}, r"`fusion.image_grid`: expected two whole numbers, but got \(2,\)"),
        ("fusion", {"heads": 3}, "`heads`: expected a divisor of width=16"),
        ("image", {"surprise": 1}, rf"{CONFIG}: image`: expected exactly the fields .*unknown \['surprise'\]"),
        ("image", {"preprocessing": {"mean": 1}}, rf"{CONFIG}: image.preprocessing`: expected exactly the fields"),
    ],
    ids=range(10),
)
def test_a_changed_field_is_refused(saved, part, change, message):
    found = json.loads((saved / CONFIG).read_text())
    found[part] |= change
    (saved / CONFIG).write_text(json.dumps(found))
    with pytest.raises(InputError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fusion": {}}, "`fusion.kind`: expected one of cross, co, but got None"),
        ({"fusion": None}, r"fusion`: expected an object of named values, but got None"),
        ({"image": "timm:x"}, r"image`: expected an object of named values, but got 'timm:x'"),
        ({"labels": None}, r"labels`: expected a list, but got None"),
        ({"schema": 2, "versions": None}, "schema`: expected 1, but got 2"),
    ],
    ids=range(5),
)
def test_a_part_of_another_kind_is_refused(saved, change, message):
    (saved / CONFIG).write_text(json.dumps(json.loads((saved / CONFIG).read_text()) | change))
    with pytest.raises(InputError, match=message):
        load(saved)


def test_a_missing_fusion_field_is_refused(saved):
    found = json.loads((saved / CONFIG).read_text())
    del found["fusion"]["heads"]
    (saved / CONFIG).write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"`fusion`: expected exactly the fields .*missing \['heads'\]"):
        load(saved)


def test_cut_and_missing_tensors_are_refused(saved):
    whole = (saved / TENSORS).read_bytes()
    (saved / TENSORS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{TENSORS}`: expected a whole safetensors file, but got .*Copy or save"):
        load(saved)
    (saved / TENSORS).unlink()
    with pytest.raises(InputError, match=rf"{TENSORS}`: expected a whole safetensors file, but got nothing there"):
        load(saved)


def test_tensors_of_another_shape_or_name_are_refused(saved):
    tensors = load_file(saved / TENSORS)
    save_file(tensors | {"image_out.bias": torch.zeros(17)}, saved / TENSORS)
    with pytest.raises(InputError, match=r"tensors of this fusion, but got another image_out\.bias"):
        load(saved)
    save_file({name: tensor for name, tensor in tensors.items() if name != "log_scale"}, saved / TENSORS)
    with pytest.raises(InputError, match=r"tensors of this fusion, but got another log_scale"):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), {"a": [float("inf")]}, torch.zeros(2)], ids=range(3))
def test_metrics_that_json_cannot_hold_are_refused_before_anything_is_written(adaptor, tmp_path, value):
    message = r"`metrics\['auroc'\]`: expected finite numbers, strings, lists or None, but got .*None"
    with pytest.raises(InputError, match=message):
        adaptor.save_pretrained(tmp_path / "adaptor", metrics={"loss": 1.0, "auroc": value})
    assert list(tmp_path.iterdir()) == []


def test_saving_onto_a_file_is_refused(adaptor, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for folder in (tmp_path / "thesis.txt", tmp_path / "thesis.txt" / "adaptor"):
        with pytest.raises(InputError, match=r"thesis\.txt`: expected a folder, but got a file"):
            adaptor.save_pretrained(folder)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_relative_new_folder_is_made(adaptor, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(saved)
    adaptor.save_pretrained("runs/one")
    assert load(tmp_path / "runs" / "one").width == 16
