"""From windows to logits: the laws of isolation and of the bank, statistics at the entrance, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError, NonFiniteLossError
from adaptmed.heads.decoders import NEEDS, build_decoder
from adaptmed.metrics.segmentation import METRICS
from adaptmed.tasks.segmentation.judging import score_model
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.model import Segmenter, fit_entrance
from adaptmed.tasks.segmentation.reading import Examples, Wanted, WindowReader
from adaptmed.tasks.segmentation.shapes import shape_for
from adaptmed.tasks.segmentation.training import start, work_of
from adaptmed.training.work import fit
from tests.masked_images import HIGH, QUICK, write_pictures

ALL = Wanted(tokens=True, taps=True, pixels=True)
TRANSFORMER = [name for name, needs in NEEDS.items() if "transformer" in needs.encoders]


@pytest.fixture(scope="module")
def masks(pictures, tmp_path_factory):
    return find_masks(pictures, tmp_path_factory.mktemp("masks"))


def segmenter(bank, run, kind="image-concat", classes=3, **options):
    torch.manual_seed(1)
    fusion = Adaptor.from_pretrained(run, load_encoders=False).fusion.requires_grad_(requires_grad=False)
    settings = replace(QUICK, decoder=kind)
    decoder = build_decoder(shape_for(bank, settings, fused_width=fusion.width, classes=classes))
    return Segmenter(decoder, fusion=fusion, **options).eval()


def read(bank, kind, rows, offsets=None):
    wanted = Wanted(tokens=True, taps=NEEDS[kind].taps > 0, pixels=True)
    return WindowReader(bank, wanted)(np.array(rows), offsets)


@pytest.mark.parametrize("kind", TRANSFORMER)
def test_a_picture_does_not_see_its_batch(pictures, run, kind):
    model = segmenter(pictures, run, kind)
    with torch.inference_mode():
        alone, with_one, with_two = (model(read(pictures, kind, rows)) for rows in ([0], [0, 1], [4, 5, 0]))
    assert alone.shape == (1, 3, 32, 32)
    torch.testing.assert_close(with_one[0], alone[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_two[2], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRANSFORMER)
def test_a_window_of_a_volume_does_not_see_its_batch(volumes, run, kind):
    model = segmenter(volumes, run, kind)
    offsets = np.array([[0, 1, 1], [2, 3, 4], [0, 1, 2]])
    with torch.inference_mode():
        every = model(read(volumes, kind, [1, 0, 2], offsets))
        alone = [model(read(volumes, kind, [row], own[None])) for row, own in zip([1, 0, 2], offsets, strict=True)]
    assert every.shape == (3, 3, 3, 32, 32)
    torch.testing.assert_close(every, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", TRANSFORMER)
def test_a_bank_gives_what_the_encoder_in_the_loop_gives(pictures, run, kind):
    encoder = Adaptor.from_pretrained(run).encoders.image
    fed = segmenter(pictures, run, kind)
    needs_taps = NEEDS[kind].taps > 0
    online = segmenter(pictures, run, kind, encoder=encoder, taps=2 if needs_taps else 0)
    windows = read(pictures, kind, [2, 7, 0])
    bare = replace(windows, tokens=None, taps=())
    with torch.inference_mode():
        torch.testing.assert_close(online(bare), fed(windows), rtol=1e-4, atol=1e-5)
        maps = zip(online.maps(bare), fed.maps(windows), strict=True)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in maps)


class Recorder(nn.Module):
    """A decoder whose entrance keeps the statistics it is given."""

    def __init__(self):
        super().__init__()
        self.enter = self

    def fit(self, statistics):
        self.found = statistics


@pytest.mark.parametrize("parts", [[range(12)], [range(5), range(5, 6), range(6, 12)]])
def test_statistics_at_the_entrance_are_those_of_all_places_of_all_windows(pictures, run, parts):
    model = segmenter(pictures, run, "dpt")
    maps = model.maps(read(pictures, "dpt", [*range(12)]))
    recorder = model.decoder = Recorder()
    fit_entrance(model, (read(pictures, "dpt", [*part]) for part in parts))
    assert len(recorder.found) == len(maps) == 2
    for (mean, std), values in zip(recorder.found, maps, strict=True):
        flat = values.double().numpy().swapaxes(0, 1).reshape(values.shape[1], -1)
        np.testing.assert_allclose(mean, flat.mean(axis=1), atol=1e-5)
        np.testing.assert_allclose(std, flat.std(axis=1), atol=1e-5)


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_training_starts_from_maps_of_mean_0_and_deviation_1(request, run, tmp_path, kind):
    bank = request.getfixturevalue(kind)
    masks = find_masks(bank, tmp_path)
    model = segmenter(bank, run, "dpt")
    examples = Examples(WindowReader(bank, ALL), masks, masks.rows("train"), QUICK.window_slices, seed=0)
    start(model, examples, replace(QUICK, batch_size=12 * QUICK.window_slices))
    (windows, _), enter = examples.batch(np.arange(len(examples.rows)), 0), model.decoder.enter
    for values, standardise in zip(model.maps(windows), enter.standardise, strict=True):
        scaled = standardise(values.movedim(1, -1)).flatten(0, -2)
        torch.testing.assert_close(scaled.mean(0), torch.zeros(values.shape[1]), rtol=0, atol=1e-4)
        torch.testing.assert_close(scaled.std(0, correction=0), torch.ones(values.shape[1]), rtol=0, atol=1e-3)


def test_it_learns_bright_squares(embedded, run, tmp_path):
    table = write_pictures(tmp_path / "data")
    for name in table["mask"]:
        bright = np.asarray(Image.open(tmp_path / "data" / name)) == HIGH
        Image.fromarray(bright.astype(np.uint8)).save(tmp_path / "data" / name)
    bank = embedded(table)
    masks, settings = find_masks(bank, tmp_path / "masks"), replace(QUICK, steps=80, channels=8, learning_rate=1e-2)
    model, rows = segmenter(bank, run, classes=2).train(), masks.rows("train")
    examples = Examples(WindowReader(bank, Wanted()), masks, rows, 1, seed=0)
    work, (windows, truth) = work_of(model, examples, None, settings, seed=0), examples.batch(np.arange(len(rows)), 0)
    loss = work.tuning.objective.loss
    with torch.no_grad():
        before = loss(model(windows), truth)
    fit(work, "cpu")
    assert not model.training
    with torch.no_grad():
        after = loss(model(windows), truth)
    assert after < 0.5 * before
    found = score_model(model, examples.reader, masks, masks.rows("test").tolist(), settings, device="cpu")
    assert np.nanmean(found[:, 0, list(METRICS).index("dice_positives")]) > 0.5
    assert np.isnan(found[:, :, 2:]).all()  # nobody knows the spacing of pictures


def test_training_is_the_same_for_the_same_seed_and_another_for_another(pictures, run, masks):
    def trained(seed):
        model = segmenter(pictures, run)
        examples = Examples(WindowReader(pictures, Wanted()), masks, masks.rows("train"), 1, seed=seed)
        fit(work_of(model, examples, None, QUICK, seed=seed), "cpu")
        return model.decoder.state_dict()

    one, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_a_loss_that_is_no_number_stops_the_training(pictures, run, masks):
    model = segmenter(pictures, run)
    torch.nn.init.constant_(next(p for p in model.decoder.parameters() if p.ndim > 2), float("nan"))
    examples = Examples(WindowReader(pictures, Wanted()), masks, masks.rows("train"), 1, seed=0)
    with pytest.raises(NonFiniteLossError, match="`loss at step 0`: expected a finite number, but got nan"):
        fit(work_of(model, examples, None, QUICK, seed=0), "cpu")


def test_a_fusion_without_a_grid_is_refused(pictures, run):
    faithful = Adaptor.from_bank(Bank.open(pictures.folder), faithful=True).fusion
    model = segmenter(pictures, run)
    model.fusion = faithful.requires_grad_(requires_grad=False).eval()
    with pytest.raises(
        InputError, match="expected a fusion that keeps the grid of tokens, but got one token per image"
    ):
        model(read(pictures, "image-concat", [0]))
