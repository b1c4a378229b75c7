"""The options of `adaptmed pretrain` become a method; those of masking are refused where nothing is hidden."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from adaptmed import methods
from adaptmed.cli import main
from tests.tiny_bank import write_tiny_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank").folder


@pytest.fixture
def asked(bank, tmp_path, monkeypatch):
    """Return the method that a command line asks for, or what it is refused with."""
    made = SimpleNamespace(print_trainable_parameters=lambda: None)

    def asked(*words):
        found = []

        def take(_bank, method, _out, **_options):
            found.append(method)
            return made

        monkeypatch.setattr("adaptmed.pretraining.pretrain.pretrain", take)
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", str(bank), "--out", str(tmp_path / "run"), *words])
        return found[0] if ended.value.code == 0 else ended.value.code

    return asked


@pytest.mark.parametrize("name", ["adaptor", "m3ae", "umd"])
@pytest.mark.parametrize("size", ["light", "paper"])
def test_a_preset_by_its_name(asked, name, size):
    assert asked("--method", name, "--size", size) == getattr(methods, name)(size=size)


def test_every_part_of_masking_can_be_chosen(asked):
    words = ["--mask-ratio", "0.5", "--word-share", "0.3", "--no-whole-words", "--patch-layer", "2", "--joint-masking"]
    found = asked("--method", "m3ae", *words, "--negatives", "hard", "--negatives-by-label", "--epochs", "3")
    plain = methods.m3ae()
    masking = {"patch_ratio": 0.5, "word_share": 0.3, "whole_words": False, "patch_layer": 2, "joint": True}
    assert found.masking == replace(plain.masking, **masking)
    assert (found.negatives, found.negatives_by_label) == ("hard", True)
    assert found.schedule == replace(plain.schedule, epochs=3)


def test_umd_without_its_teacher_and_as_released(asked):
    masking = replace(methods.umd().masking, weight_text_features=0.0, weight_image_features=0.0)
    assert asked("--method", "umd", "--feature-weight", "0") == replace(methods.umd(), masking=masking)
    assert asked("--method", "umd", "--faithful") == methods.umd(faithful=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mask-ratio", "0.5"], "`patch_ratio`: expected a method that hides something, but got none"),
        (["--method", "m3ae", "--faithful"], "`faithful`: expected nothing beside --method m3ae"),
        (["--method", "m3ae", "--feature-weight", "0.5"], "`joint`: expected joint masking beside feature"),
        (["--method", "umd", "--word-share", "0"], "`word_share`: expected a share above 0 and below 1"),
    ],
)
def test_options_that_do_not_go_together(asked, capsys, words, message):
    assert asked(*words) == 1
    assert message in capsys.readouterr().err
