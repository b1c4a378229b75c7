"""A study of an adaptor of images alone: every arm that reads images, and words for what needs texts."""

from dataclasses import replace

import pytest

from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import InputError
from adaptmed.study.classification.settings import ARMS, StudySettings
from adaptmed.study.classification.study import study
from tests.images_alone import save_images_alone
from tests.tiny_bank import write_tiny_bank

SETTINGS = StudySettings(fractions=(1.0,), seeds=1, replicates=20, precision="fp32")
LACKING = "no retrieval, no zero-shot and no text-informed probe, because the adaptor reads images alone."


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    bank = write_tiny_bank(folder / "bank", pairs=90, holds_texts=False)
    return folder, bank, save_images_alone(bank, folder / "run")


def test_every_arm_of_images_is_judged_and_the_report_says_what_is_missing(made):
    folder, bank, run = made
    results = study([bank], [run], folder / "out", settings=SETTINGS)
    assert {record["arm"] for record in results["records"]} == {*ARMS} - {"text-informed probe"}
    assert (results["retrieval"], results["zero_shot"]) == ([], [])
    page = (folder / "out" / "report.html").read_text()
    assert LACKING in page
    assert "text encoder fingerprint" not in page


def test_texts_of_the_bank_are_left_alone(made, tmp_path):
    _, bank, run = made
    pairs = write_tiny_bank(tmp_path / "pairs", pairs=90)
    few = replace(SETTINGS, arms=("adaptor",))
    alone, beside = (study([one], [run], tmp_path / one.folder.name / "out", settings=few) for one in (bank, pairs))
    assert beside["retrieval"] == []
    values = [[record["value"] for record in found["records"]] for found in (alone, beside)]
    assert values[0] == values[1]


def test_an_arm_that_needs_prompts_cannot_run_alone(made, tmp_path):
    _, bank, run = made
    with pytest.raises(InputError, match=r"only arms that need prompts\. There are none, because the adaptor reads im"):
        study([bank], [run], tmp_path / "out", settings=replace(SETTINGS, arms=("text-informed probe",)))


def test_an_adaptor_of_pairs_on_a_bank_without_texts_is_refused(made, tmp_path):
    _, bank, _ = made
    Adaptor.from_bank(write_tiny_bank(tmp_path / "pairs"), width=16, heads=2).save_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match=r"expected Tokens of fake:text .* but got none"):
        study([bank], [tmp_path / "run"], tmp_path / "out", settings=SETTINGS)
