"""Masked pre-training: each distinct pass once, all that is trained moves and nothing else, and it resumes exactly."""

from collections import Counter as Counts
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed import methods
from adaptmed.cohort.rows import pairs_of
from adaptmed.encoders import words_of
from adaptmed.fusion import CoFusion
from adaptmed.methods import changed
from adaptmed.pretext.masking import mask_words
from adaptmed.pretraining.job import PretrainJob
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import BEST, LAST
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from tests.masked_bank import M3AE, UMD, Watch, assert_equal, tensors_of, tiny, write_masked_banks
from tests.short_training import StopAfter, drop_seconds

EVERY = {
    "m3ae": M3AE,
    "umd": UMD,
    "umd-faithful": tiny(methods.umd(faithful=True)),
    "umd-words": tiny(methods.umd(), image_features={"weight": 0.0}),
    "umd-pixels": tiny(methods.umd(), text_features={"weight": 0.0}),
    "m3ae-untied": tiny(methods.m3ae(), words={"tied": False}),
    "m3ae-joint": tiny(methods.m3ae(), words={"beside": "hidden"}, patches={"beside": "hidden"}),
    "umd-early": tiny(methods.umd(), patches={"layer": 1}),
    "m3ae-contrast": changed(M3AE, {"contrastive": {"weight": 1.0}}),
    "m3ae-words": changed(M3AE, {"patches": {"weight": 0.0}}),
}
SEES = {
    "m3ae": [("student", "whole", "whole"), ("student", "whole", "masked"), ("student", "masked", "whole")],
    "umd": [("student", "whole", "whole"), ("student", "masked", "masked"), ("teacher", "whole", "whole")],
}


@pytest.fixture(scope="module")
def banks(tmp_path_factory):
    return write_masked_banks(tmp_path_factory.mktemp("masked"))


class Counter(Callback):
    """Says of every training step which passes the fusion, its copy and the encoders have made."""

    def __init__(self, monkeypatch):
        self.steps, self.patch = [], monkeypatch

    def on_train_start(self, _trainer, module):
        def streams_at(fusion, layers, image=None, text=None):
            self.fusion.append((fusion, image, text))
            return plain(fusion, layers, image, text)

        def count(encoder, _inputs, _output):
            self.encoders.append("text" if encoder is module.masker.encoders.text else "image")

        plain = CoFusion.streams_at
        self.patch.setattr(CoFusion, "streams_at", streams_at)
        self.encoders = []
        for encoder in (module.masker.encoders.image, module.masker.encoders.text):
            if encoder is not None:
                encoder.register_forward_hook(count)

    def on_train_batch_start(self, *_):
        self.fusion, self.encoders = [], []

    def on_train_batch_end(self, _trainer, module, _outputs, batch, _index):
        seen = [self.kind_of(module, batch, *one) for one in self.fusion]
        self.steps.append((sorted(seen), sorted(self.encoders)))

    def kind_of(self, module, batch, fusion, image, text):
        whole = {tuple(vector) for vector in batch.text.pooled.tolist()}
        texts = all(tuple(vector) in whole for vector in text.pooled.tolist())
        images = bool(image.valid.all())
        who = "student" if fusion is module.fusion else "teacher"
        return who, "whole" if images else "masked", "whole" if texts else "masked"


@pytest.mark.parametrize("bank", ["views", "plain"])
@pytest.mark.parametrize("method", ["m3ae", "umd"])
def test_a_step_makes_each_distinct_pass_once(banks, tmp_path, monkeypatch, method, bank):
    counter = Counter(monkeypatch)
    pretrain(banks[bank], EVERY[method], tmp_path / "run", device="cpu", callbacks=(counter,))
    encoders = ["text"] if bank == "views" else ["image", "text"]
    assert counter.steps == [(sorted(SEES[method]), encoders)] * 6


@pytest.mark.parametrize("method", EVERY)
def test_all_that_trains_has_a_gradient_and_moves_and_all_else_stays(banks, tmp_path, method):
    watch = Watch()
    pretrain(banks["plain"], EVERY[method], tmp_path / "run", device="cpu", callbacks=(watch,))
    trained = {name for name, value in watch.module.named_parameters() if value.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"fusion", "pretext"}
    assert [name for name, gradient in watch.gradients.items() if gradient is None or not gradient.any()] == []
    moved = {name for name in watch.before if not torch.equal(watch.before[name], watch.after[name])}
    assert trained - moved == set()
    assert {name for name in moved - trained if not name.startswith("teacher.")} == set()
    frozen = watch.before.keys() - trained
    assert {"fusion.log_scale", "fusion.image_standardise.mean", "fusion.text_standardise.mean"} <= frozen
    images = sum(name.startswith("masker.encoders.image.") for name in frozen)
    assert images == 0 if method == "m3ae-words" else images > 20
    assert sum(name.startswith("masker.encoders.text.") for name in frozen) > 20
    assert ("pretext.words.embeddings" in frozen) == (method != "m3ae-untied")


def test_the_tied_head_starts_at_the_frequencies_of_the_words_it_trains_on(banks):
    bank = banks["plain"]
    job = PretrainJob(bank, UMD, pairs_of(bank, "train"), pairs_of(bank, "validate"), seed=0)
    bias = job.task(1).pretext["words"].bias.detach()
    special = words_of(job.adaptor.encoders.text).special_ids
    texts = [bank.input_ids(np.array([row])) for row in job.train]
    counts = Counts(word for ids, valid in texts for word in ids[valid].tolist() if word not in special)
    both = counts.most_common()[0], counts.most_common()[-1]
    assert both[0][1] > both[1][1]
    gap = (bias[both[0][0]] - bias[both[1][0]]).item()
    assert gap == pytest.approx(np.log((both[0][1] + 0.1) / (both[1][1] + 0.1)), abs=1e-4)
    assert bias.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert (bias[list(special)] == bias.min()).all()


def test_the_word_embeddings_are_the_encoders_own_and_stand_in_no_file(banks, tmp_path):
    watch = Watch()
    pretrain(banks["plain"], UMD, tmp_path / "run", device="cpu", callbacks=(watch,))
    own = watch.module.masker.encoders.text.module.get_input_embeddings().weight
    assert watch.module.pretext["words"].embeddings.data_ptr() == own.data_ptr()
    assert not any("embeddings" in name for name in tensors_of(tmp_path / "run"))


class Averaged(Callback):
    """Follows the trained weights of the fusion by hand, once per step."""

    def on_train_start(self, _trainer, module):
        self.expected = {name: value.detach().double() for name, value in module.fusion.named_parameters()}

    def on_train_batch_end(self, _trainer, module, *_):
        for name, value in module.fusion.named_parameters():
            self.expected[name] = 0.9 * self.expected[name] + 0.1 * value.detach().double()

    def on_train_end(self, _trainer, module):
        self.found = dict(module.teacher.model.fusion.named_parameters())
        self.training = [name for name, part in module.teacher.named_modules() if part.training]


def test_the_teacher_is_the_average_of_the_students_of_every_step(banks, tmp_path):
    averaged = Averaged()
    pretrain(banks["views"], UMD, tmp_path / "run", device="cpu", callbacks=(averaged,))
    assert averaged.training == []
    for name, value in averaged.expected.items():
        torch.testing.assert_close(averaged.found[name].double(), value, rtol=1e-5, atol=1e-6)


def checkpointed(out, path=LAST):
    return SafetensorsCheckpointIO().load_checkpoint(out / path)["state_dict"]


@pytest.fixture(scope="module")
def whole(banks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    for name, bank in banks.items():
        pretrain(bank, UMD, folder / name, device="cpu", checkpoint_every=1)
    return folder


@pytest.mark.parametrize(("bank", "step"), [("views", 1), ("views", 3), ("plain", 4)])
def test_a_stopped_run_resumes_exactly_with_its_teacher(banks, whole, tmp_path, bank, step):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(banks[bank], UMD, out, device="cpu", checkpoint_every=1, callbacks=(StopAfter(step),))
    pretrain(banks[bank], UMD, out, device="cpu", checkpoint_every=1)
    assert_equal(tensors_of(out), tensors_of(whole / bank))
    assert_equal(checkpointed(out), checkpointed(whole / bank))
    assert drop_seconds(out) == drop_seconds(whole / bank)


def test_checkpoints_hold_the_teacher_and_no_encoder(whole):
    for path in (LAST, BEST):
        names = checkpointed(whole / "plain", path).keys()
        assert {name.split(".")[0] for name in names} == {"fusion", "pretext", "teacher"}
        assert {name.split(".")[2] for name in names if name.startswith("teacher.")} == {"fusion"}


def test_views_take_turns_and_every_step_hides_other_words(banks, tmp_path):
    class Seen(Callback):
        def on_train_batch_end(self, trainer, module, _outputs, batch, _index):
            masked = module.masker.cells(batch, UMD.hiding("image"), trainer.global_step)
            for row, kept in zip(batch.rows.tolist(), masked.kept.tolist(), strict=True):
                found.setdefault(row, []).append(tuple(kept))

    found = {}
    pretrain(banks["views"], UMD, tmp_path / "run", device="cpu", callbacks=(Seen(),))
    twice = [kept for kept in found.values() if len(kept) == 2]
    assert len(twice) > 10
    assert all(first != second for first, second in twice)


def test_words_are_hidden_before_the_text_encoder_by_seed_and_item_alone(banks, tmp_path):
    def batch(rows):
        views = np.zeros(len(rows), dtype=np.int64)
        return replace(banks["views"].batch(rows), masked_image=banks["views"].masked_tokens(rows, views))

    class Hidden(Callback):
        def on_train_start(self, _trainer, module):
            some, masker = batch(banks["views"].subset("train")[:6]), module.masker
            hidden = UMD.hiding("text")
            masked = masker.words(some, hidden, 1)
            vocabulary = masker.vocabularies[hidden]
            ids, targets = mask_words(some.input_ids, some.ids_valid, vocabulary, items=some.rows, seed=1)
            assert torch.equal(masked.targets, targets)
            assert torch.equal(masked.text.values, masker.encoders.text(ids, some.ids_valid).values)
            assert torch.equal(ids[targets < 0], some.input_ids[targets < 0])
            assert (targets >= 0).any(1).all()
            alone = masker.words(batch(some.rows[3:4].numpy()), hidden, 1).targets[0]
            assert torch.equal(masked.targets[3, : len(alone)], alone)
            assert not torch.equal(masked.targets, masker.words(some, hidden, 2).targets)
            done.append(True)

    done = []
    pretrain(banks["views"], UMD, tmp_path / "run", device="cpu", callbacks=(Hidden(),))
    assert done


@pytest.mark.parametrize("bank", ["views", "plain"])
def test_every_epoch_is_judged_on_the_same_hidden_words_and_patches(banks, tmp_path, bank):
    still = replace(UMD, schedule=replace(UMD.schedule, learning_rate=1e-30, weight_decay=0.0))
    pretrain(banks[bank], still, tmp_path / "run", device="cpu")
    first, second = (
        {name: value for name, value in line.items() if name.startswith("validate")}
        for line in drop_seconds(tmp_path / "run")
    )
    assert first == second
    names = ("loss", "matching", "words", "word_accuracy", "patches", "text_features", "image_features", "dropped")
    assert {f"validate/{name}" for name in names} == first.keys()
    weights = UMD.weights.items()
    total = sum(weight * first[f"validate/{name}"] for name, weight in weights if f"validate/{name}" in first)
    assert first["validate/loss"] == pytest.approx(total, rel=1e-5)


def test_bf16_computes_nearly_the_same(banks, whole, tmp_path):
    pretrain(banks["views"], UMD, tmp_path / "run", device="cpu", precision="bf16")
    for exact, rounded in zip(drop_seconds(whole / "views"), drop_seconds(tmp_path / "run"), strict=True):
        for name in ("loss", "words", "patches", "matching", "text_features", "image_features"):
            assert rounded[f"validate/{name}"] == pytest.approx(exact[f"validate/{name}"], rel=0.05)
    assert all(value.dtype == torch.float32 for value in tensors_of(tmp_path / "run").values())
