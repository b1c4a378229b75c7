"""What a9ebcfc has written opens: banks, adaptors with their encoders, and runs that are finished."""

import tarfile

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

from adaptmed.errors import InputError
from tests.written_at_a9ebcfc import calls
from tests.written_at_a9ebcfc.held import ARCHIVE, PLACE, TEXTS, assert_same, is_same_arithmetic, read


class Forbidden(Callback):
    """Fails when a run that is finished is trained again."""

    def on_train_start(self, *_):
        raise AssertionError("a finished run is trained again")


def test_texts_of_the_archive_name_no_machine():
    with tarfile.open(ARCHIVE) as archive:
        assert all(member.name.split("/")[0] == "fixture" for member in archive)
        texts = [archive.extractfile(member).read().decode() for member in archive if member.name.endswith(TEXTS)]
    assert any(PLACE in text for text in texts)
    assert not any(place in text for text in texts for place in ("/tmp/", "/home/", "/root/", "/work/"))


@pytest.mark.parametrize("name", ["bank", "bank-q"])
def test_a_bank_is_sound_and_gives_tokens(here, name):
    assert calls.damaged(here / name) == []
    image, text, masked = calls.tokens_of(here / name)
    assert (image.shape, masked.shape[0]) == ((4, 17, 16), 4)
    assert text.shape[::2] == (4, 16)
    assert all(tokens.isfinite().all() for tokens in (image, text, masked))


@pytest.mark.parametrize("run", ["adaptor", "umd"])
def test_a_saved_adaptor_opens_with_its_encoders(here, run):
    expected = load_file(here / "expected" / "embeddings.safetensors")
    for name, found in calls.embeddings_of(here, run).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-5)


FINISHED = ("adaptor", "m3ae", "umd", "lora", "calibrated", "labels")
CHANGED = {"answers": "dropout", "pair-labels": "dropout", "masks": "settings"}
"""Of these the defaults have changed on real data, and what differs first: such a run is never taken for another."""


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_run_is_known_to_be_finished(here, name):
    result = calls.train(here, name, here / "runs" / name, Forbidden())
    if (path := here / "runs" / name / "metrics.json").exists():
        assert result == read(path)


@pytest.mark.parametrize("name", CHANGED)
def test_a_finished_run_of_other_defaults_is_not_taken_for_one_of_todays(here, name):
    before = (here / "runs" / name / "metrics.json").read_bytes()
    with pytest.raises(
        InputError, match=f"expected a run with the same configuration, to resume, but got {CHANGED[name]}"
    ):
        calls.train(here, name, here / "runs" / name, Forbidden())
    assert (here / "runs" / name / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("name", ["answers", "pair-labels", "labels", "retrieval"])
def test_an_evaluation_says_what_it_said(here, tmp_path, name):
    expected = read(here / "expected" / "numbers.json")["evaluations"][name]
    assert_same(here, calls.judged(here, name, tmp_path / "evaluation.json"), expected)


@pytest.mark.parametrize("name", ["study", "study-masks"])
def test_a_study_gives_the_same_records(here, tmp_path, name):
    found, expected = (
        part["records"] for part in (calls.studied(here, name, tmp_path), read(here / name / "results.json"))
    )
    for record in (*found, *expected):
        record.pop("seconds")
    assert_same(here, found, expected)


def test_arithmetic_is_told_apart(here):
    assert is_same_arithmetic(here) in (True, False)
    with pytest.raises(AssertionError, match="a/0"):
        assert_same(here, {"a": [1.0]}, {"a": [1.1]})
