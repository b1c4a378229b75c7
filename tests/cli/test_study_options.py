"""Options of ``adaptmed study`` that the chosen task does not have are refused, not ignored."""

from dataclasses import asdict
from pathlib import Path

import pytest

from adaptmed.cli import main
from adaptmed.cli.options import AnswerStudyOptions, MaskStudyOptions, TunedOptions
from adaptmed.cli.study import refuse_foreign_to_study, study
from adaptmed.errors import InputError


@pytest.mark.parametrize(
    "options",
    [{"decoder": "dpt"}, {"mask_labels": ("1=a",)}, {"steps": 20}, {"learning_rates": (0.1,)}, {"device": "cpu"}],
)
def test_a_study_of_labels_has_no_options_of_masks(options) -> None:
    (name,) = options
    said = f"`{name}`: expected an option that --task classification has, but got .* belongs to --task segmentation"
    with pytest.raises(InputError, match=said):
        refuse_foreign_to_study("classification", MaskStudyOptions(**options), AnswerStudyOptions(), None)


def test_a_study_of_masks_has_no_prompts(tmp_path) -> None:
    with pytest.raises(InputError, match="`prompts`: expected an option that --task segmentation has"):
        study(tmp_path / "gone", out=tmp_path / "out", task="segmentation", prompts=Path("prompts.json"))
    assert not (tmp_path / "out").exists()


def test_left_out_options_are_no_breach() -> None:
    refuse_foreign_to_study("classification", MaskStudyOptions(), AnswerStudyOptions(), Path("prompts.json"))
    refuse_foreign_to_study("answering", MaskStudyOptions(), AnswerStudyOptions(epochs=3), None)
    assert {value for value in asdict(MaskStudyOptions()).values() if value} == set()


def test_tuned_banks_come_with_their_runs() -> None:
    assert TunedOptions([Path("bank")], [Path("run")]).pairs() == [(Path("bank"), Path("run"))]
    with pytest.raises(InputError, match="1 banks and 0 runs"):
        TunedOptions([Path("bank")]).pairs()


@pytest.mark.parametrize("more", [("--tuned-bank", "bank-l"), ("--tuned-adaptor", "run-l")])
def test_on_the_command_line_one_without_the_other_is_refused(tmp_path, capsys, more) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["study", "bank", "--adaptor", "run", "--out", str(tmp_path / "out"), *more])
    assert stop.value.code == 1
    assert "one --tuned-adaptor per --tuned-bank, but got" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
