"""Retrieval of a pre-trained run is judged as all pairs fused one by one say, and says what it lacks."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.bank.format import ROWS
from adaptmed.errors import InputError, OverlapError
from adaptmed.files import write_text_whole
from adaptmed.methods import changed
from adaptmed.pretraining.pretext import PRETEXT, load_matching
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import CONFIG, SEEN, read_config
from adaptmed.tasks.retrieval import reranking
from adaptmed.tasks.retrieval.judging import judge_retrieval
from tests.short_training import METHOD
from tests.tiny_bank import write_tiny_bank

WAYS = ("image to text", "text to image")
BRIEF = replace(METHOD, schedule=replace(METHOD.schedule, epochs=1))
METHODS = {
    "contrasting": METHOD,
    "co": changed(replace(BRIEF, name="m3ae"), {"fusion": {"kind": "co"}, "contrastive": {"weight": 0.0}}),
    "no matching": changed(BRIEF, {"matching": {"weight": 0.0}}),
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Three test images share one text."""
    bank = write_tiny_bank(tmp_path_factory.mktemp("retrieval") / "bank")
    test, frame = bank.subset("test"), bank.rows.copy()
    frame.loc[test[[2, 5]], "text_index"] = frame["text_index"][test[0]]
    frame.to_parquet(bank.folder / ROWS)
    return Bank.open(bank.folder)


@pytest.fixture(scope="module")
def runs(bank, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, method in METHODS.items():
        pretrain(bank, method, folder / name, device="cpu")
    return folder


def judge(run, bank, **options):
    return judge_retrieval(run, bank, device="cpu", **options)


def values(scores):
    return {way: {name: found["value"] for name, found in scores[way].items() if name != "gain"} for way in WAYS}


def every_pair(run, bank):
    """Cosines, logits and truth of every test image with every test text, one by one."""
    adaptor = Adaptor.from_pretrained(run, load_encoders=False)
    head = load_matching(run, 2 * adaptor.width)
    rows, of_row = bank.subset("test"), bank.rows["text_index"].to_numpy()
    texts = sorted(set(of_row[rows]))
    with torch.no_grad():
        images = [bank.image_tokens(np.array([row]), torch.float32) for row in rows]
        words = [bank.text_tokens(rows[of_row[rows] == text][:1], torch.float32) for text in texts]
        sides = [adaptor.embed_images(image) for image in images], [adaptor.embed_texts(text) for text in words]
        cosine = torch.cat(sides[0]) @ torch.cat(sides[1]).T
        logit = torch.tensor([[head(adaptor.fusion.fuse(i, t)[2]).item() for t in words] for i in images])
    return cosine, logit, torch.tensor([[bool(of_row[row] == text) for text in texts] for row in rows])


def plainly_sorted(cosine, logit, right, top_k):
    """Recalls and the median rank of one direction, sorted by Python."""
    places = []
    for similar, answers, truth in zip(cosine.tolist(), logit.tolist(), right.tolist(), strict=True):
        order = sorted(range(len(similar)), key=lambda item, of=similar: -of[item])
        order = sorted(order[:top_k], key=lambda item, of=answers: -of[item]) + order[top_k:]
        places.append(1 + min(place for place, item in enumerate(order) if truth[item]))
    recalls = {f"R@{k}": np.mean(np.array(places) <= k) for k in (1, 5, 10)}
    return recalls | {"median_rank": np.median(places)}


@pytest.mark.parametrize("name", ["contrasting", "co"])
def test_scores_are_those_of_all_pairs_fused_one_by_one(bank, runs, name):
    grids = every_pair(runs / name, bank)
    expected = dict(zip(WAYS, (grids, [grid.T for grid in grids]), strict=True))
    for top_k in (4, 99):
        test = judge(runs / name, bank, top_k=top_k)["test"]
        found = values(test["reranked"])
        for way in WAYS:
            assert found[way].pop("within_top_k") >= found[way]["R@1"]
            assert found[way] == pytest.approx(plainly_sorted(*expected[way], top_k))
            assert values(test["embedding"])[way] == pytest.approx(plainly_sorted(*expected[way], 1))


def test_identical_texts_are_one_candidate_and_everything_is_counted(bank, runs):
    result = judge(runs / "contrasting", bank)
    test, rows = result["test"], len(bank.subset("test"))
    assert test["queries"] == {
        "image to text": {"n_queries": rows, "n_gallery": rows - 2},
        "text to image": {"n_queries": rows - 2, "n_gallery": rows},
    }
    assert (test["pairs"], test["pairs_of_split"], test["patients_seen_in_training"]) == (rows, rows, 0)
    json.dumps(result, allow_nan=False)


def test_one_candidate_changes_nothing(bank, runs):
    test = judge(runs / "contrasting", bank, top_k=1)["test"]
    for way in WAYS:
        again = test["reranked"][way]
        assert {name: again[name] for name in test["embedding"][way]} == test["embedding"][way]
        assert again["within_top_k"] == again["R@1"]
        assert all(found["value"] == found["ci_low"] == found["ci_high"] == 0 for found in again["gain"].values())


def test_the_truth_among_the_candidates_comes_first_and_is_what_could_be_reached(bank, runs, monkeypatch):
    group = bank.rows["text_index"].to_numpy()

    def knowing(_fusion, _head, _bank, image_rows, text_rows, **_):
        return (group[image_rows] == group[text_rows]).astype(np.float32)

    monkeypatch.setattr(reranking, "pair_logits", knowing)
    test = judge(runs / "contrasting", bank, top_k=6)["test"]
    for way in WAYS:
        again, before = test["reranked"][way], test["embedding"][way]
        assert again["R@1"] == again["within_top_k"]
        assert again["R@1"]["value"] > before["R@1"]["value"]
        assert again["gain"]["R@1"]["value"] == pytest.approx(again["R@1"]["value"] - before["R@1"]["value"])


def test_chance_is_that_of_a_random_order(bank, runs):
    chance = values(judge(runs / "contrasting", bank)["test"]["chance"])
    rows = len(bank.subset("test"))
    assert chance["image to text"]["R@1"] == pytest.approx(1 / (rows - 2))
    assert chance["image to text"]["median_rank"] == (rows - 1) / 2
    assert chance["text to image"]["R@1"] == pytest.approx(((rows - 3) / rows + 3 / rows) / (rows - 2))


def test_fewer_pairs_are_drawn_by_the_seed(bank, runs):
    one, same, other = (judge(runs / "contrasting", bank, most=7, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one["test"] != other["test"]
    assert (one["test"]["pairs"], one["test"]["pairs_of_split"]) == (7, len(bank.subset("test")))


def test_what_was_not_trained_is_said(bank, runs):
    assert judge(runs / "contrasting", bank)["notes"] == []
    assert "only the matching head was trained" in judge(runs / "co", bank)["notes"][0]
    result = judge(runs / "no matching", bank)
    assert result["test"]["reranked"] == {"reason": "the method adaptor was trained without matching: its weight is 0"}
    assert result["test"]["embedding"].keys() == set(WAYS)


def test_a_calibration_keeps_the_head_of_the_run_before(bank, runs, tmp_path):
    run = tmp_path / "calibrated"
    shutil.copytree(runs / "co", run)
    config = read_config(run) | {"command": "calibrate"}
    config["method"]["terms"] = {"words": {}}
    write_text_whole(run / CONFIG, json.dumps(config))
    result = judge(run, bank)
    assert result["test"] == judge(runs / "co", bank)["test"]
    assert "head is that of the run before calibration" in result["notes"][1]


def test_a_run_of_a_version_without_heads_says_so(bank, runs, tmp_path):
    shutil.copytree(runs / "contrasting", tmp_path / "old")
    (tmp_path / "old" / PRETEXT).unlink()
    assert "a version that did not keep it" in judge(tmp_path / "old", bank)["test"]["reranked"]["reason"]


def test_patients_that_were_seen_are_refused_unless_allowed(runs, tmp_path):
    other = write_tiny_bank(tmp_path / "other")
    frame = other.rows.copy()
    frame["split"] = "test"
    frame.to_parquet(other.folder / ROWS)
    other = Bank.open(other.folder)
    with pytest.raises(OverlapError, match="expected test patients that no training has seen, but got 32 that were"):
        judge(runs / "contrasting", other)
    result = judge(runs / "contrasting", other, allow_overlap=True, top_k=2)
    assert result["test"]["patients_seen_in_training"] == 32
    shutil.copytree(runs / "contrasting", tmp_path / "lost")
    (tmp_path / "lost" / SEEN).unlink()
    assert judge(tmp_path / "lost", other, top_k=2)["patients_of_pretraining_known"] is False


def test_what_cannot_be_judged_is_refused(bank, runs, tmp_path):
    run = runs / "contrasting"
    for name in ("top_k", "most"):
        with pytest.raises(InputError, match=f"`{name}`: expected at least 1, but got 0"):
            judge(run, bank, **{name: 0})
    with pytest.raises(InputError, match="`seed`: expected at least 0, but got -1"):
        judge(run, bank, seed=-1)
    expected = "a finished run folder of `adaptmed pretrain` or of a calibration"
    with pytest.raises(InputError, match=f"{expected}, but got no run of adaptmed"):
        judge(tmp_path, bank)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "config.json").write_text('{"command": "finetune"}')
    with pytest.raises(InputError, match=f"{expected}, but got a run of `adaptmed finetune`"):
        judge(tmp_path / "tuned", bank)
    with pytest.raises(InputError, match="but got one that has not ended, or the adaptor inside"):
        judge(run / "adaptor", bank)
    with pytest.raises(InputError, match=r"expected Tokens of fake:image .*aa\), which"):
        judge(run, write_tiny_bank(tmp_path / "lora", image_lora="cc" * 32))
    frame = bank.rows.copy()
    frame["split"] = "train"
    shutil.copytree(bank.folder, tmp_path / "trained")
    frame.to_parquet(tmp_path / "trained" / ROWS)
    with pytest.raises(InputError, match="expected a test pair to judge, but got none"):
        judge(run, Bank.open(tmp_path / "trained"))
