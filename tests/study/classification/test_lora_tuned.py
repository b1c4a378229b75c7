"""The arm ``lora-tuned``: LoRA in a copy of the encoder, on the rows of the fraction alone, for a bounded length."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed import load_image_encoder, lora
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.study.classification.arms import frozen_arm
from adaptmed.study.classification.lora_tuned import LORA_TUNED, lora_arm, lora_inside
from adaptmed.study.classification.rows import study_rows
from adaptmed.training.batches import LabelledImages
from adaptmed.training.pixels import PixelReader
from adaptmed.training.settings import BoundedSettings, FinetuneSettings
from adaptmed.training.trainable import trainable_lora
from tests.labelled_pictures import make_labelled_bank
from tests.tiny_models import IMAGE

EXACT = replace(LORA_TUNED, precision="fp32", batch_size=6, least_steps=4, most_steps=4)
STILL = replace(EXACT, learning_rate=0.0, encoder_learning_rate=0.0)
PLACES = np.arange(0, 20)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return make_labelled_bank(tmp_path_factory.mktemp("pictures"), holds_texts=False)


@pytest.fixture(scope="module")
def encoder(bank):
    return load_image_encoder(bank.info.images.name)


@pytest.fixture
def read(monkeypatch):
    """Rows whose images are read again, with the labels they are read with."""
    seen = {"train": set(), "test": set()}
    plain = PixelReader.__call__

    def spy(self, rows, epoch):
        seen["test" if self.seed is None else "train"] |= set(rows.tolist())
        return plain(self, rows, epoch)

    monkeypatch.setattr(PixelReader, "__call__", spy)
    return seen


def test_without_a_step_it_is_the_frozen_probe(bank, encoder):
    rows = study_rows(bank)
    found = lora_arm(rows, bank, encoder, settings=STILL, device="cpu")(PLACES, 0)
    np.testing.assert_allclose(found.probabilities, frozen_arm(rows, bank)(PLACES, 0).probabilities, atol=1e-4)


def test_it_learns_and_nothing_of_the_shared_encoder_changes(bank, encoder):
    rows = study_rows(bank)
    on_train = replace(rows, test=rows.train, truth=replace(rows.truth, labels=rows.labels, patients=rows.patients))
    before = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    known = ~np.isnan(rows.labels)

    def loss(settings):
        outcome = lora_arm(on_train, bank, encoder, settings=settings, device="cpu")(np.arange(len(rows.train)), 0)
        right = np.where(rows.labels == 1, outcome.probabilities, 1 - outcome.probabilities)
        return -np.log(right[known]).mean()

    head = {"augment": False, "learning_rate": 0.0, "least_steps": 40, "most_steps": 40}
    assert loss(replace(EXACT, **head, encoder_learning_rate=3e-3)) < 0.9 * loss(STILL)
    after = encoder.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert encoder.lora is None
    assert encoder.fingerprint() == bank.info.images.fingerprint
    assert not any(parameter.requires_grad for parameter in encoder.module.parameters())


def test_it_is_the_same_again_and_another_with_another_seed(bank, encoder):
    rows = study_rows(bank)
    first, again, other = (
        lora_arm(rows, bank, encoder, settings=EXACT, device="cpu")(PLACES, seed).probabilities for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_global_generator_is_left_alone(bank, encoder):
    rows = study_rows(bank)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    lora_arm(rows, bank, encoder, settings=EXACT, device="cpu")(PLACES, 0)
    assert torch.equal(torch.rand(3), wanted)


def test_the_rows_of_the_fraction_alone_are_read_and_no_test_label(bank, encoder, read, monkeypatch):
    rows = study_rows(bank)
    trained_on: list[torch.Tensor] = []
    plain = LabelledImages.batch

    def spy(self, places, epoch):
        trained_on.extend([] if self.labels is None else [self.labels[places]])
        return plain(self, places, epoch)

    monkeypatch.setattr(LabelledImages, "batch", spy)
    hidden = replace(rows, labels=rows.labels.copy(), truth=replace(rows.truth, labels=np.full((len(rows.test), 2), 9)))
    hidden.labels[20:] = 9  # neither these nor those of the test split are 0, 1 or blank
    found = lora_arm(hidden, bank, encoder, settings=EXACT, device="cpu")(PLACES, 0)
    assert read == {"train": set(rows.train[PLACES].tolist()), "test": set(rows.test.tolist())}
    assert not (torch.cat(trained_on) == 9).any()
    plainly = lora_arm(rows, bank, encoder, settings=EXACT, device="cpu")(PLACES, 0)
    assert np.array_equal(found.probabilities, plainly.probabilities)


def test_lora_and_the_head_are_all_that_is_trained(bank, encoder):
    rows = study_rows(bank)
    found = lora_arm(rows, bank, encoder, settings=STILL, device="cpu")(PLACES, 0)
    inside = 2 * 4 * 8 * (32 + 32)  # two blocks with four square layers of attention, rank 8
    assert found.trainable_parameters - inside in (2 * (32 + 1), 2 * (64 + 1))


def test_lora_that_is_inside_is_merged_into_the_copy(encoder):
    tuned = copy.deepcopy(encoder)
    lora.attach(tuned, LoRA(rank=2))
    with torch.no_grad():
        for parameter in tuned.lora.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(0))
    pixels, digest = torch.rand(2, 3, 32, 32), tuned.lora.digest()
    fresh = trainable_lora(tuned, LoRA(rank=4), seed=0)
    torch.testing.assert_close(fresh(pixels).values, tuned(pixels).values)
    assert (fresh(pixels).values - encoder(pixels).values).abs().max() > 1e-3
    assert sum(p.numel() for p in fresh.module.parameters() if p.requires_grad) == 2 * 4 * 4 * (32 + 32)
    assert (tuned.lora.digest(), tuned.lora.merged) == (digest, None)


def test_a_fraction_of_one_class_is_undefined_and_reads_nothing(bank, encoder, read):
    rows = study_rows(bank)
    alone = replace(rows, labels=np.zeros_like(rows.labels))
    found = lora_arm(alone, bank, encoder, settings=EXACT, device="cpu")(PLACES, 0)
    assert np.isnan(found.probabilities).all()
    assert set(found.reasons) == {0, 1}
    assert (found.trainable_parameters, read["train"], read["test"]) == (0, set(), set())


@pytest.mark.parametrize(("kind", "roles"), [("timm-vit", ("attention",)), ("timm-convnext", ("mlp",))])
def test_every_encoder_takes_lora_where_it_can(kind, roles):
    assert lora_inside(IMAGE[kind]()).roles == roles


def test_an_encoder_without_such_layers_is_refused_with_the_way_out(encoder):
    bare = copy.deepcopy(encoder)
    bare.roles = {}
    with pytest.raises(InputError, match=r"an encoder with layers that take LoRA, but got .* none\. .*--arms frozen"):
        lora_inside(bare)


def test_few_images_make_more_steps_and_many_fewer():
    assert LORA_TUNED.least_steps > FinetuneSettings(epochs=4, batch_size=16).steps_of(40)
    steps = [LORA_TUNED.steps_of(images) for images in (1, 40, 400, 800, 100_000)]
    assert steps == [120, 120, 125, 250, 1000]


@pytest.mark.parametrize("images", [1, 7, 40, 41, 400])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_passes_that_are_said_are_those_that_are_made(images, accumulate):
    bounded = BoundedSettings(batch_size=5, accumulate=accumulate, epochs=2, least_steps=11, most_steps=23)
    sizes = [len(part) for part in np.array_split(np.arange(images), bounded.batches_of(images))]
    steps = [sum(sizes[start : start + accumulate]) for start in range(0, len(sizes), accumulate)]
    epochs, rest = divmod(bounded.steps_of(images), len(steps))
    assert bounded.passes_of(images) == epochs * images + sum(steps[:rest])


def test_a_training_ends_within_an_epoch_where_its_steps_do(bank, encoder, monkeypatch):
    batches: list[int] = []
    plain = LabelledImages.batch

    def spy(self, places, epoch):
        batches.extend([] if self.labels is None else [len(places)])
        return plain(self, places, epoch)

    monkeypatch.setattr(LabelledImages, "batch", spy)
    lora_arm(study_rows(bank), bank, encoder, settings=EXACT, device="cpu")(PLACES, 0)
    assert batches[:3] == [7, 7, 6]  # three steps per epoch, of which the second ends after one
    assert 4 <= len(batches) <= 6  # a thread may have read ahead


@pytest.mark.parametrize("wrong", [{"least_steps": 0}, {"least_steps": 9, "most_steps": 8}])
def test_bounds_that_bound_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="`least_steps`: expected at least 1, and at most most_steps, but got"):
        BoundedSettings(**wrong)
