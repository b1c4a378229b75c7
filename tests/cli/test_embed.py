"""``adaptmed embed`` with encoders made up for it: what it prints, and what it needs."""

import pytest

from adaptmed.bank import Bank
from adaptmed.cli import main
from tests.tiny_encoders import PatchEncoder, WordEncoder, make_table
from tests.tiny_models import vit
from tests.volume_files import make_volumes

ARCHITECTURE = "vit_tiny_patch16_224"


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr("adaptmed.encoders.load_image_encoder", lambda _name, **_: PatchEncoder())
    monkeypatch.setattr("adaptmed.encoders.load_text_encoder", lambda _name: WordEncoder())
    frame = make_table(tmp_path / "data").rename(columns={"effusion": "[/b] fluid"})
    frame["age [years]"] = 61
    frame.to_csv(tmp_path / "data/m.csv", index=False)
    return tmp_path / "data/m.csv"


def run(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def test_names_are_printed_as_they_are(table, tmp_path, capsys):
    out = tmp_path / "[" / "b] bank"  # its path holds [/b]
    words = ("embed", table, "--image-encoder", "patches", "--text-encoder", "words", "--out", out)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "[/b] fluid" in said
    assert "left out: age [years]." in said
    assert f"{out}: 12 rows" in said
    assert run(*words) == 0
    assert f"{out} is whole already: 12 rows" in capsys.readouterr().out
    assert run("embed", "--verify", "--out", out) == 0
    assert f"{out} is sound." in capsys.readouterr().out


def test_a_mended_image_is_not_called_whole_already(table, tmp_path, capsys):
    picture = (table.parent / "5.png").read_bytes()
    (table.parent / "5.png").write_bytes(b"no picture")
    words = ("embed", table, "--image-encoder", "patches", "--out", tmp_path / "bank")
    assert run(*words) == 0
    assert "Note: 1 rows were left out" in capsys.readouterr().out
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "whole already" in said
    assert "Note: 1 rows were left out" in said
    (table.parent / "5.png").write_bytes(picture)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "whole already" not in said
    assert "0 rows rejected" in said


def test_a_table_is_needed_except_to_verify(tmp_path, capsys):
    assert run("embed", "--out", tmp_path / "bank") == 1
    assert "`manifest`: expected the path of a table, but got none" in capsys.readouterr().err
    assert run("embed", "--verify", "--out", tmp_path / "bank") == 1
    assert "no bank.json" in capsys.readouterr().err


def test_volumes_with_their_options(table, tmp_path, capsys):
    make_volumes(table.parent).to_csv(table.parent / "v.csv", index=False)
    words = ("embed", table.parent / "v.csv", "--image-encoder", "patches", "--out", tmp_path / "bank")
    chosen = ("--taps", "3", "--plane", "coronal", "--window", "-600", "1500")
    assert run(*words, *chosen) == 0
    said = capsys.readouterr().out
    bank = Bank.open(tmp_path / "bank")
    count = bank.info.images.count
    assert f"6 distinct volumes of {count} slices and 0 distinct texts: about" in said
    assert f"6 rows, 6 volumes of {count} slices, taps 2, pixels, 0 rows rejected." in said
    assert (bank.info.images.plane, bank.info.images.window) == ("coronal", (-600.0, 1500.0))
    assert run(*words, *chosen, "--no-pixels") == 1
    said = capsys.readouterr().err
    assert "expected pixels = True" in said
    assert "but got pixels = False" in said
    assert run("embed", "--verify", "--out", tmp_path / "bank") == 0


def test_masked_views_take_cells_that_are_whole_blocks_of_patches(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptmed.encoders.load_image_encoder", lambda _name, **_: vit(ARCHITECTURE, patch_size=8))
    words = ("embed", table, "--image-encoder", "vit", "--out", tmp_path / "bank", "--masked-views", "2")
    assert run(*words, "--mask-ratio", "0.5") == 0
    assert "12 rows, 12 images, masked views 2, pixels, 0 rows rejected." in capsys.readouterr().out
    info = Bank.open(tmp_path / "bank").info
    assert (info.layout, info.images.grid, info.images.mask_ratio) == ("grid7", (7, 7), 0.5)
    assert run(*words, "--grid", "8") == 1
    assert "divides 14 x 14 patches (1, 2, 7, 14), but got 8. Pass --grid 7." in capsys.readouterr().err
    assert run("embed", "--verify", "--out", tmp_path / "bank") == 0


def test_a_network_without_patches_has_no_masked_views(table, tmp_path, capsys):
    words = ("embed", table, "--image-encoder", "patches", "--out", tmp_path / "bank", "--masked-views", "4")
    assert run(*words) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "a CNN can only have its outputs hidden" in said


def test_pictures_with_taps_and_pixels(table, tmp_path, capsys):
    words = ("embed", table, "--image-encoder", "patches", "--text-encoder", "words", "--out", tmp_path / "bank")
    assert run(*words, "--taps", "2", "--pixels") == 0
    assert "12 rows, 12 images, taps 1, pixels, 4 texts (0.0% cut at 6 tokens), 0 rows" in capsys.readouterr().out
    assert run(*words, "--taps", "1") == 1
    assert "`taps`: expected 0 or at least 2, but got 1" in capsys.readouterr().err
