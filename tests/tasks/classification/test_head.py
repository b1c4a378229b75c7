import copy
import warnings

import numpy as np
import pytest
import torch

from adaptmed.adaptor.features import embed_rows
from adaptmed.bank import Bank
from adaptmed.errors import InputError, NonFiniteLossError
from adaptmed.fusion import CoConfig, CoFusion, CrossConfig, CrossFusion
from adaptmed.heads.probe import fit_probe
from adaptmed.tasks.classification.head import FinetuneSettings, finetune_head
from adaptmed.types import Tokens

ROWS = np.arange(48)


class MemoryBank(Bank):
    """Image Tokens in memory; two labels that depend on where a token is bright."""

    def __init__(self, rows=96):
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(rows, 5, 8, generator=generator)
        self.tokens = Tokens(values, torch.ones(rows, 5, dtype=torch.bool), values[:, 0], (2, 2), 1)
        bright = values[:, 1:, :2].sum(-1)
        self.truth = torch.stack([bright[:, 0] > bright[:, 1], bright[:, 2] + bright[:, 3] > 0], 1).float().numpy()
        self.patients = np.arange(rows) // 2

    def image_tokens(self, rows, dtype=None):
        return self.tokens.select(torch.as_tensor(rows)).to("cpu", dtype)


@pytest.fixture(scope="module")
def bank():
    return MemoryBank()


@pytest.fixture
def fusion():
    torch.manual_seed(0)
    return CrossFusion(CrossConfig(image_width=8, text_width=6, width=16, heads=2, layers=1, image_grid=(2, 2)))


def tune(fusion, bank, labels, **options):
    return finetune_head(fusion, bank, ROWS, labels, bank.patients[ROWS], device="cpu", **options)


def bce(bank, classifier, rows=ROWS):
    return torch.nn.functional.binary_cross_entropy(
        classifier.predict(bank, rows), torch.from_numpy(bank.truth[rows])
    ).item()


def test_a_linear_head_on_a_frozen_fusion_is_the_probe(fusion, bank):
    classifier = tune(fusion, bank, bank.truth[ROWS], train_fusion=False)
    probe = fit_probe(embed_rows(fusion, bank, ROWS, modality="image").numpy(), bank.truth[ROWS], bank.patients[ROWS])
    predicted = probe.predict(embed_rows(fusion, bank, np.arange(96), modality="image").numpy())
    np.testing.assert_allclose(classifier.predict(bank, np.arange(96)).numpy(), predicted, atol=1e-4)
    assert classifier.trainable_parameters == probe.parameters == 2 * 17
    assert classifier.fusion is fusion


def test_tuning_starts_at_the_probe(fusion, bank):
    still = FinetuneSettings(epochs=1, learning_rate=0.0, fusion_learning_rate=0.0)
    tuned = tune(fusion, bank, bank.truth[ROWS], train_fusion=True, settings=still)
    probe = tune(fusion, bank, bank.truth[ROWS], train_fusion=False)
    torch.testing.assert_close(tuned.predict(bank, ROWS), probe.predict(bank, ROWS))


def test_tuning_fits_better_than_the_probe_and_leaves_the_given_fusion_alone(fusion, bank):
    before, kept = copy.deepcopy(fusion.state_dict()), [p.requires_grad for p in fusion.parameters()]
    fast = FinetuneSettings(epochs=15, batch_size=16, fusion_learning_rate=3e-3, precision="fp32")
    tuned = tune(fusion, bank, bank.truth[ROWS], train_fusion=True, settings=fast)
    probe = tune(fusion, bank, bank.truth[ROWS], train_fusion=False)
    assert bce(bank, tuned) < bce(bank, probe) - 0.02
    torch.testing.assert_close(fusion.state_dict(), before, rtol=0, atol=0)
    assert [p.requires_grad for p in fusion.parameters()] == kept
    assert fusion.training


def test_exactly_the_parameters_that_embed_an_image_are_trained(fusion, bank):
    tuned = tune(fusion, bank, bank.truth[ROWS], train_fusion=True)
    moved = {
        name
        for (name, after), before in zip(tuned.fusion.named_parameters(), fusion.parameters(), strict=True)
        if not torch.equal(after, before)
    }
    unused = {"text_project.weight", "text_project.bias", "text_out.weight", "text_out.bias", "log_scale"}
    assert moved == {name for name, _ in fusion.named_parameters()} - unused
    sizes = {name: parameter.numel() for name, parameter in fusion.named_parameters()}
    assert tuned.trainable_parameters == sum(sizes[name] for name in moved) + 2 * 17


def test_of_a_co_fusion_the_image_stack_without_its_cross_steps_is_trained(bank):
    fusion = CoFusion(CoConfig(image_width=8, text_width=6, width=16, heads=2, layers=2))
    tuned = tune(fusion, bank, bank.truth[ROWS], train_fusion=True).fusion
    trained = {name for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    image = {name for name, _ in fusion.named_parameters() if name.startswith("image_")}
    assert trained == {name for name in image if ".cross." not in name and ".norm_cross." not in name}


def test_a_frozen_fusion_given_with_gradients_off_can_be_tuned(fusion, bank):
    tuned = tune(fusion.requires_grad_(False), bank, bank.truth[ROWS], train_fusion=True)
    assert any(parameter.requires_grad for parameter in tuned.fusion.parameters())


def test_the_same_seed_gives_the_same_classifier_whatever_ran_before(fusion, bank):
    first = tune(fusion, bank, bank.truth[ROWS], train_fusion=True, seed=3).predict(bank, ROWS)
    state = torch.get_rng_state()
    torch.rand(7)
    again = tune(fusion, bank, bank.truth[ROWS], train_fusion=True, seed=3).predict(bank, ROWS)
    other = tune(fusion, bank, bank.truth[ROWS], train_fusion=True, seed=4).predict(bank, ROWS)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.equal(other, first)
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    tune(fusion, bank, bank.truth[ROWS], train_fusion=True)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("train_fusion", [False, True])
def test_the_papers_head_learns(fusion, bank, train_fusion):
    slow, fast = (
        FinetuneSettings(hidden=12, epochs=epochs, batch_size=16, learning_rate=1e-2, fusion_learning_rate=1e-3)
        for epochs in (1, 15)
    )
    first = tune(fusion, bank, bank.truth[ROWS], train_fusion=train_fusion, settings=slow)
    last = tune(fusion, bank, bank.truth[ROWS], train_fusion=train_fusion, settings=fast)
    assert bce(bank, last) < bce(bank, first)
    if not train_fusion:
        assert last.trainable_parameters == 16 * 12 + 2 * 12 + 12 * 2 + 2


@pytest.mark.parametrize("train_fusion", [False, True])
def test_labels_without_both_values_predict_nan(fusion, bank, train_fusion):
    labels = np.hstack([np.zeros((48, 1), np.float32), bank.truth[ROWS, :1]])
    labels[:9, 1] = np.nan
    classifier = tune(fusion, bank, labels, train_fusion=train_fusion)
    predicted = classifier.predict(bank, ROWS)
    assert predicted[:, 0].isnan().all()
    assert predicted[:, 1].isfinite().all()
    assert classifier.outputs.reasons == {0: "no positive in the fraction"}


def test_nothing_to_learn_trains_nothing(fusion, bank):
    classifier = tune(fusion, bank, np.zeros((48, 2), np.float32), train_fusion=True)
    assert classifier.head is None
    assert classifier.trainable_parameters == 0
    assert classifier.predict(bank, ROWS).isnan().all()
    alone = tune(fusion, bank, np.ones(48, dtype=np.int64), train_fusion=True, classes=3)
    assert alone.predict(bank, ROWS).isnan().all()


def test_classes_keep_their_numbers_when_one_is_missing(fusion, bank):
    labels = np.where(bank.truth[ROWS, 1] > 0, 3, 1)
    truth = labels.copy()
    labels[:6] = -1
    fast = FinetuneSettings(epochs=10, batch_size=16, fusion_learning_rate=1e-3, precision="fp32")
    predicted = tune(fusion, bank, labels, train_fusion=True, classes=5, settings=fast).predict(bank, ROWS)
    torch.testing.assert_close(predicted.sum(1), torch.ones(48))
    assert predicted[:, [0, 2, 4]].eq(0).all()
    assert (predicted.argmax(1).numpy() == truth)[6:].mean() > 0.7


def test_nothing_is_printed_or_warned(fusion, bank, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tune(fusion, bank, bank.truth[ROWS], train_fusion=True)
    assert not caught
    assert capfd.readouterr() == ("", "")


def test_no_file_is_written(fusion, bank, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tune(fusion, bank, bank.truth[ROWS], train_fusion=True)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_stops(fusion, bank):
    wild = FinetuneSettings(learning_rate=1e30, fusion_learning_rate=1e30)
    with pytest.raises(NonFiniteLossError, match=r"`loss at step \d+`: expected a finite number, but got (nan|inf)"):
        tune(fusion, bank, bank.truth[ROWS], train_fusion=True, settings=wild)


def test_raw_minus_one_is_refused(fusion, bank):
    with pytest.raises(InputError, match="`labels`"):
        tune(fusion, bank, bank.truth[ROWS] * 2 - 1, train_fusion=False)
