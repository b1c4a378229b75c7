"""Runs on pairs: what they leave behind, that they learn, go on after kill -9, and whom they may read and judge."""

import json
import multiprocessing
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.data.splits import patient_digest
from adaptmed.errors import InputError, OverlapError
from adaptmed.lora import LoRA
from adaptmed.runs.folder import read_metrics, write_seen
from adaptmed.tasks.evaluate import evaluate
from adaptmed.tasks.pairs.head_file import load_pair_head
from adaptmed.tasks.pairs.model import Beside, PairClassifier, token_widths
from adaptmed.tasks.pairs.settings import Coordination
from adaptmed.tasks.task import How
from tests.online_bank import write_online_bank
from tests.runs.test_killed import MOMENTS, SendAt
from tests.short_training import StopAfter, drop_seconds, weights
from tests.tasks.pairs.asked import LONG, SETTINGS, save_adaptor, tune, with_answers, write_asked_bank

TEXT_AND_IMAGE = "image-text-classification"
KILLED = {
    "settings": replace(SETTINGS, epochs=3, batch_size=4, accumulate=2, encoder_learning_rate=1e-3),
    "task": TEXT_AND_IMAGE,
    "coordination": Coordination(),
    "image_lora": LoRA(rank=2, dropout=0.1),
    "text_lora": LoRA(rank=2),
}  # 3 steps of two batches an epoch

CPU = How(device="cpu")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_asked_bank(tmp_path_factory.mktemp("banks") / "bank")


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return save_adaptor(bank, tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    return write_online_bank(folder), save_adaptor(Bank.open(folder / "bank"), folder / "run")


@pytest.fixture(scope="module")
def tuned(bank, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "tuned"
    tune(bank, run, out, coordination=Coordination())
    return out


def same(one, two):
    for part in ("pair_head.safetensors", "adaptor/adaptor.safetensors"):
        found = load_file(two / part)
        assert all(torch.equal(value, found[name]) for name, value in load_file(one / part).items())
    for part in ("metrics.json", "pair_head.json", "coordination.jsonl"):
        assert (one / part).read_bytes() == (two / part).read_bytes()
    assert drop_seconds(one) == drop_seconds(two)


def test_it_writes_a_whole_run_folder(bank, tuned):
    assert {path.name for path in tuned.iterdir()} == {
        "adaptor", "answers.csv", "checkpoints", "config.json", "coordination.jsonl", "metrics.json", "metrics.jsonl",
        "pair_head.json", "pair_head.safetensors", "patients_seen.json", "rejects.jsonl",
    }  # fmt: skip
    config, result = (json.loads((tuned / name).read_text()) for name in ("config.json", "metrics.json"))
    assert (config["command"], config["task"], config["coordination"]["noise"]) == ("finetune", "answering", True)
    test = result["test"]
    assert {name for name, found in test.items() if isinstance(found, dict)} == {
        "tuned", "shuffled_image", "frozen", "question_only", "majority",
    }  # fmt: skip
    assert (test["pairs"], test["patients"], result["train_pairs"], result["outputs"]) == (32, 4, 96, 5)
    assert "test accuracy, tuned" in (tuned / "adaptor" / "README.md").read_text()
    read = bank.rows["patient"].iloc[[*bank.subset("train"), *bank.subset("validate")]]
    assert json.loads((tuned / "patients_seen.json").read_text()) == patient_digest(read)


def test_a_finished_run_is_returned_and_another_configuration_refused(bank, run, tuned):
    before = (tuned / "pair_head.safetensors").stat().st_mtime_ns
    assert tune(bank, run, tuned, coordination=Coordination()) == json.loads((tuned / "metrics.json").read_text())
    assert (tuned / "pair_head.safetensors").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"coordination: .* there, None now"):
        tune(bank, run, tuned)


@pytest.mark.parametrize("step", [1, 12, 13])  # twelve steps an epoch
def test_a_stopped_run_resumes_exactly(bank, run, tuned, tmp_path, step):
    with pytest.raises(KeyboardInterrupt):
        tune(bank, run, tmp_path / "out", coordination=Coordination(), every=5, callbacks=(StopAfter(step),))
    tune(bank, run, tmp_path / "out", coordination=Coordination(), every=5)
    same(tuned, tmp_path / "out")
    assert (tuned / "answers.csv").read_bytes() == (tmp_path / "out" / "answers.csv").read_bytes()


def tune_until_killed(folder, run, out, step, moment):
    """What the killed process runs."""
    torch.set_num_threads(1)
    tune(Bank.open(folder), run, out, callbacks=(SendAt(step, moment),), every=2, **KILLED)


def test_kill_9_with_lora_accumulated_batches_and_noise(online, tmp_path):
    bank, run = online
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tune(bank, run, tmp_path / "whole", every=2, **KILLED)
    start, draw, out = multiprocessing.get_context("forkserver"), random.Random(3), tmp_path / "out"
    start.set_forkserver_preload([__name__])
    for step in sorted(draw.sample(range(1, 9), 4)):
        process = start.Process(target=tune_until_killed, args=(bank.folder, run, out, step, draw.choice(MOMENTS)))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "metrics.json").exists()
    tune(bank, run, out, every=2, **KILLED)
    torch.set_num_threads(threads)
    same(tmp_path / "whole", out)
    assert len((out / "coordination.jsonl").read_text().splitlines()) == 9


def test_what_needs_both_sides_is_learnt_and_neither_the_question_nor_another_image_suffices(tmp_path):
    bank = write_asked_bank(tmp_path / "bank", images=120, noise=0.1)
    run = save_adaptor(bank, tmp_path / "run", dropout=0.0)
    test = tune(bank, run, tmp_path / "out", settings=replace(LONG, epochs=20), every=50)["test"]
    score = {arm: test[arm]["closed"]["value"] for arm in ("tuned", "shuffled_image", "question_only", "frozen")}
    assert score["tuned"] > 0.9
    assert score["frozen"] > 0.9
    assert score["question_only"] < 0.7  # two thirds of the answers are yes or no by chance
    assert score["shuffled_image"] < 0.7


def test_the_best_validated_epoch_is_kept_else_the_last(bank, run, tmp_path):
    wild = replace(SETTINGS, epochs=5, learning_rate=3e-2, fusion_learning_rate=3e-2)
    kept = tune(bank, run, tmp_path / "judged", settings=wild)["kept"]
    losses = [line["validate/loss"] for line in read_metrics(tmp_path / "judged")]
    assert kept["epoch"] == int(np.argmin(losses))
    alone = with_answers(bank, bank.subset("validate"), "")
    assert tune(alone, run, tmp_path / "alone", settings=wild)["kept"]["epoch"] == 4
    assert "validate/loss" not in read_metrics(tmp_path / "alone")[0]


@pytest.mark.parametrize("classes", [False, True])
def test_labels_and_classes_of_pairs_are_judged_beside_heads_on_frozen_features(tmp_path, classes):
    bank = write_asked_bank(tmp_path / "bank", classes=classes)
    run = save_adaptor(bank, tmp_path / "run")
    weighted = {"class_weights": "balanced"} if classes else {}
    test = tune(bank, run, tmp_path / "out", task=TEXT_AND_IMAGE, settings=LONG, **weighted)["test"]
    assert ("accuracy" in test["tuned"]) is classes
    assert ("macro_f1" in test["frozen"]) is classes
    assert {"tuned", "shuffled_image", "frozen", "text_only"} <= test.keys()
    assert test["frozen"]["auroc"]["macro"]["value"] > 0.8
    names = ("healthy", "ill") if classes else ("a", "b")
    assert load_pair_head(tmp_path / "out")[2].names == names
    if classes:
        assert test["tuned"]["auroc"]["labels"]["unclear"]["reason"] == "no row of this class in the fraction"
    again = evaluate(tmp_path / "out", bank, how=CPU)["test"]
    assert again["tuned"] == test["tuned"]
    assert json.loads((tmp_path / "out" / "evaluation-bank.json").read_text())["test"] == again


def test_the_saved_head_and_adaptor_give_the_judged_answers(bank, tuned):

    head, beside, facts, kinds = load_pair_head(tuned)
    model = PairClassifier(Adaptor.from_pretrained(tuned, load_encoders=False).fusion, head, beside=beside).eval()
    with torch.no_grad():
        batch = bank.batch(bank.subset("test"), torch.float32)
        said = kinds(model(batch), batch.text.pooled).argmax(dim=1)
    right = facts.vocabulary.numbers(bank.rows["answer"].iloc[bank.subset("test")]) == said
    test = json.loads((tuned / "metrics.json").read_text())["test"]
    assert right.double().mean().item() == pytest.approx(test["tuned"]["overall"]["value"])
    again = evaluate(tuned, bank, how=CPU, out=tuned.parent / "again.json")
    assert again["test"]["tuned"] == test["tuned"]
    assert again["test"]["majority"] == test["majority"]
    assert json.loads((tuned.parent / "again.json").read_text()) == again


def test_patients_of_pre_training_may_be_trained_on_but_not_judged(bank, tmp_path):
    run = save_adaptor(bank, tmp_path / "run" / "adaptor").parent
    patients = bank.rows["patient"].to_numpy()
    train, test = (patient_digest(patients[bank.subset(split)]) for split in ("train", "test"))
    (run / "config.json").write_text(json.dumps({"command": "pretrain"}))
    write_seen(run, train)
    result = tune(bank, run, tmp_path / "out", settings=replace(SETTINGS, epochs=1))
    assert result["patients_of_pretraining_known"]
    assert result["test"]["patients_seen_in_training"] == 0
    write_seen(run, [*train, test[0]])
    with pytest.raises(OverlapError, match="1 that were seen"):
        tune(bank, run, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    allowed = tune(bank, run, tmp_path / "allowed", allow_overlap=True, settings=replace(SETTINGS, epochs=1))
    assert allowed["test"]["patients_seen_in_training"] == 1
    with pytest.raises(OverlapError, match="1 that were seen"):
        evaluate(tmp_path / "allowed", bank, how=CPU)
    found = evaluate(tmp_path / "allowed", bank, how=CPU, allow_overlap=True)
    assert found["test"]["patients_seen_in_training"] == 1


def test_a_fraction_after_labels_were_read_is_refused(bank, tuned, tmp_path):
    with pytest.raises(InputError, match="a run that no label has trained"):
        tune(bank, tuned, tmp_path / "out", fraction=0.5)


def test_another_banks_tokens_and_other_runs_are_refused_by_evaluate(bank, run, tuned, online, tmp_path):
    with pytest.raises(InputError, match=r"which .* was trained on"):
        evaluate(tuned, online[0], how=CPU)
    with pytest.raises(
        InputError, match=r"a finished run of `adaptmed finetune` for classification.*but got no run of adaptmed"
    ):
        evaluate(run, bank, how=CPU)
    (tmp_path / "config.json").write_text(json.dumps({"command": "finetune", "task": "answering"}))
    with pytest.raises(InputError, match="one that has not ended"):
        evaluate(tmp_path, bank, how=CPU)
    empty = Bank.open(bank.folder)
    empty.rows.loc[empty.rows["split"] == "test", "answer"] = ""
    with pytest.raises(InputError, match="a test row to judge, but got none"):
        evaluate(tuned, empty, how=CPU)


def test_trained_weights_move(run, tuned):
    before = weights(run)
    assert any(not torch.equal(value, before[name]) for name, value in weights(tuned).items())


def test_beside_the_fusion_each_half_shows_its_own_side_alone_and_nothing_at_first(bank, run):
    fusion = Adaptor.from_pretrained(run, load_encoders=False).fusion.eval()
    batch = bank.batch(bank.subset("train")[:6], torch.float32)
    beside = Beside(*token_widths(fusion), fusion.width)
    joint = torch.zeros(6, 2 * fusion.width)
    assert torch.equal(beside(joint, batch.image, batch.text), joint)
    for layer in (beside.image, beside.text):
        torch.nn.init.normal_(layer.weight)
    text, image = beside(joint, batch.image, batch.text).chunk(2, dim=1)
    turned = batch.image.select(torch.arange(5, -1, -1))
    other_text, other_image = beside(joint, turned, batch.text).chunk(2, dim=1)
    assert torch.equal(other_text, text)
    assert torch.equal(other_image.flip(0), image)
    assert image.std(0).max() > 0.1


def test_without_it_the_head_reads_the_fusion_alone(bank, run, tmp_path):
    tune(bank, run, tmp_path / "out", frozen_beside=False)
    _, beside, facts, _ = load_pair_head(tmp_path / "out")
    assert beside is None
    assert facts.beside is None
    assert evaluate(tmp_path / "out", bank, how=CPU)["test"]["tuned"]
