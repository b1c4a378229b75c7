"""What is hidden and where it comes from, which banks and encoders are refused, and which texts are mismatched."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed import Manifest, load_image_encoder, load_text_encoder
from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, Layout
from adaptmed.embedding.embed import embed
from adaptmed.encoders import drops_patches
from adaptmed.errors import InputError
from adaptmed.methods import changed
from adaptmed.pretext.matching import MatchingHead, mismatched_texts
from adaptmed.pretraining.calibrate import calibrate
from adaptmed.pretraining.masking import Masker
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.pretraining.terms import matching
from adaptmed.pretraining.terms.matching import Matching, matching_losses
from adaptmed.runs.lineage import Lineage
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.subject import prepare
from adaptmed.tasks.classification.task import Classification
from adaptmed.tasks.finetune import finetune
from tests.masked_bank import M3AE, OPTIONS, SCHEDULE, UMD, tiny, write_masked_banks
from tests.tiny_encoders import PatchEncoder
from tests.tiny_models import bert_config, clip_text, hf_text, save_clip_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked")
    write_masked_banks(folder)
    return folder


@pytest.fixture(scope="module")
def banks(folder):
    return {name: Bank.open(folder / name) for name in ("views", "plain")}


def embedded(folder, out, layout, encoder=None, **options):
    image = encoder or load_image_encoder(f"hf:{folder / 'vit'}")
    text = load_text_encoder(f"hf:{folder / 'bert'}")
    options = replace(OPTIONS, layout=Layout.parse(layout), pixels=True, **options)
    return embed(Manifest.read(folder / "m.csv"), image, text, out, options=options)


class Looks(Callback):
    """Keeps the task, and a batch with its cells and its words hidden by its masker."""

    def on_train_batch_end(self, _trainer, module, _outputs, batch, _index):
        self.module, self.batch, method = module, batch, module.method
        self.masked = module.masker.cells(batch, method.hiding("image"), 0)
        self.words = module.masker.words(batch, method.hiding("text"), 0)
        self.vocabulary = module.masker.vocabularies[method.hiding("text")]


@pytest.fixture(scope="module")
def cnn_bank(folder):
    encoder = load_image_encoder("bundled:efficientnet-lite0", image_size_px=64)
    assert not drops_patches(encoder)
    return embedded(folder, folder / "cnn", "grid2", encoder)


@pytest.mark.parametrize("method", [M3AE, UMD], ids=["m3ae", "umd"])
def test_of_a_cnn_outputs_are_hidden(cnn_bank, tmp_path, method):
    looks = Looks()
    with pytest.warns(UserWarning, match="cannot leave patches out: its outputs are hidden instead"):
        pretrain(cnn_bank, method, tmp_path / "run", device="cpu", callbacks=(looks,))
    assert looks.module.masker.source == "outputs"
    masked = looks.masked
    assert masked.kept.shape == (8, 1)
    assert masked.hidden.sum(1).tolist() == [3] * 8
    assert not masked.image.values[~masked.image.valid].any()
    whole = looks.batch.image.values
    kept = masked.kept + looks.batch.image.prefix
    assert torch.equal(
        masked.image.values.gather(1, kept[..., None].expand(-1, -1, whole.shape[2]))[:, 0],
        whole[torch.arange(8), kept[:, 0]],
    )
    with pytest.warns(UserWarning, match="cannot leave patches out"):
        calibrate(cnn_bank, tmp_path / "run", tmp_path / "again", schedule=SCHEDULE, device="cpu")


def test_the_share_that_is_hidden_is_the_methods(banks, tmp_path):
    looks = Looks()
    method = tiny(UMD, patches={"ratio": 0.5}, words={"share": 0.6})
    pretrain(banks["plain"], method, tmp_path / "run", device="cpu", callbacks=(looks,))
    assert looks.module.masker.source == "encoder"
    assert looks.masked.hidden.sum(1).tolist() == [8] * 8
    assert looks.masked.image.valid.sum(1).tolist() == [1 + 8] * 8
    vocabulary, ids = looks.vocabulary, looks.batch.input_ids
    ordinary = ~vocabulary.special[ids] & looks.batch.ids_valid
    words = (ordinary & ~vocabulary.continues[ids]).sum(1)
    starts = (looks.words.hidden & ~vocabulary.continues[ids]).sum(1)
    assert starts.tolist() == [round(0.6 * count) for count in words.tolist()]
    assert not (looks.words.hidden & ~ordinary).any()


@pytest.mark.parametrize(
    ("method", "bank", "message"),
    [
        (
            tiny(UMD, patches={"ratio": 0.5}),
            "views",
            r"masked views that hide 0\.5, but got 0\.75. Embed with that --mask-r",
        ),
        (tiny(UMD, patches={"ratio": 0.99}), "plain", r"`ratio`: .*leaves at least one of 16 patches, but got 0\.99"),
    ],
)
def test_methods_that_the_bank_cannot_serve(banks, tmp_path, method, bank, message):
    with pytest.raises(InputError, match=message):
        pretrain(banks[bank], method, tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("grid3", r"`grid`: expected a side that divides 4 x 4 patches \(1, 2, 4\), but got 3. Pass --grid 2"),
        ("pooled", "`layout`: expected a grid of cells to hide, but got pooled"),
    ],
)
def test_layouts_without_whole_cells_are_refused(folder, tmp_path, layout, message):
    bank = embedded(folder, tmp_path / "bank", layout)
    with pytest.raises(InputError, match=message):
        pretrain(bank, UMD, tmp_path / "run", device="cpu")


@pytest.mark.filterwarnings("ignore:.*cannot leave patches out")
def test_cells_of_a_cnn_must_be_whole_pixels(folder, tmp_path):
    encoder = load_image_encoder("bundled:efficientnet-lite0", image_size_px=160)
    bank = embedded(folder, tmp_path / "bank", "grid3", encoder)
    with pytest.raises(InputError, match="a layout of square cells of whole pixels, but got grid3 of 160 x 160 px"):
        pretrain(bank, UMD, tmp_path / "run", device="cpu")


NO_NAMES = "a text encoder whose tokenizer has a mask token, but got"
NO_MASK = "`mask_id`: expected the id of the mask token, but got None"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: clip_text(folder), NO_NAMES),
        (lambda folder: hf_text(bert_config(), folder), NO_MASK),
        (lambda folder: load_text_encoder(f"hf:{save_clip_model(folder)}"), NO_MASK),
    ],
    ids=["open_clip", "bert", "clip"],
)
def test_text_encoders_without_a_mask_token_are_refused(tmp_path, build, message):
    encoders = FrozenEncoders.of(PatchEncoder(), build(tmp_path / "text"), "all")
    with pytest.raises(InputError, match=message):
        Masker(encoders, UMD.hidden, "encoder")


def test_pooled_texts_are_refused(folder):
    encoders = FrozenEncoders.of(PatchEncoder(), load_text_encoder(f"hf:{folder / 'bert'}"), "pooled")
    with pytest.raises(InputError, match="`layout`: expected all tokens of a text, but got pooled"):
        Masker(encoders, UMD.hidden, "outputs")


class Choices:
    """Stands where the choice of mismatched texts is made, and keeps every choice."""

    def __init__(self, monkeypatch):
        self.made = []
        monkeypatch.setattr(matching, "mismatched_texts", self)

    def __call__(self, group, generator, *, similarity=None, labels=None):
        choice, found = mismatched_texts(group, generator, similarity=similarity, labels=labels)
        self.made.append((choice, found, similarity, labels))
        return choice, found


def batch_of(bank, rows):
    batch = bank.batch(rows)
    return replace(batch, text_group=torch.arange(len(rows)))


def two_topics(bank):
    """Sixteen pairs whose frozen text vectors point two ways, a little apart within each."""
    batch = batch_of(bank, np.arange(16))
    topic = torch.arange(16) % 2
    pooled = torch.nn.functional.one_hot(topic, batch.text.pooled.shape[1]).float()
    pooled = pooled + 0.05 * torch.randn(pooled.shape, generator=torch.Generator().manual_seed(0))
    return replace(batch, text=replace(batch.text, pooled=7 * pooled)), topic


def test_hard_negatives_resemble_the_items_own_text(banks, monkeypatch):
    batch, topic = two_topics(banks["views"])
    fusion = Adaptor.from_bank(banks["views"], fusion="co", width=16, layers=1, heads=2).fusion
    share = {}
    for negatives in ("random", "hard"):
        choices = Choices(monkeypatch)
        for seed in range(40):
            matching_losses(fusion, MatchingHead(32), batch, Matching(negatives=negatives), seed=seed)
        same = torch.stack([topic[choice] == topic for choice, *_ in choices.made]).float()
        assert same.shape == (40, 16)
        share[negatives] = same.mean().item()
    assert share["random"] == pytest.approx(7 / 15, abs=0.12)  # six standard deviations of 640 draws
    assert share["hard"] > 0.9


def test_only_every_second_item_is_mismatched_and_only_a_share_is_matched(banks, monkeypatch):
    batch = batch_of(banks["views"], np.arange(16))
    fusion = Adaptor.from_bank(banks["views"], fusion="co", width=16, layers=1, heads=2).fusion
    seen = []
    plain = type(fusion).fuse
    monkeypatch.setattr(type(fusion), "fuse", lambda self, *pair: seen.append(pair) or plain(self, *pair))
    for share in (1.0, 0.5, 0.0):
        matching_losses(fusion, MatchingHead(32), batch, Matching(share=share), seed=3)
    assert [len(image) for image, _ in seen] == [16, 8, 2]
    for image, text in seen:
        own = [torch.equal(text.pooled[i], batch.text.pooled[i]) for i in range(len(image))]
        assert torch.equal(image.values, batch.image.values[: len(image)])
        assert own == [i % 2 == 0 for i in range(len(image))]


def test_negatives_by_label_are_no_pairs_of_the_same_labels_and_count_as_labels_read(banks, tmp_path, monkeypatch):
    choices = Choices(monkeypatch)
    method = changed(UMD, {"matching": {"by_label": True}})
    pretrain(banks["views"], method, tmp_path / "run", device="cpu")
    for choice, found, _, labels in choices.made:
        assert (labels[choice] != labels)[found].all()
    assert sum(int(found.sum()) for _, found, *_ in choices.made) > 40
    assert Lineage.of_run(tmp_path / "run").labels == 1.0
    refused = r"a run that no label has trained, but got one that has read labels at fraction 1.0, for .* 0.1"
    with pytest.raises(InputError, match=refused):
        prepare(banks["views"], tmp_path / "run", StudySettings(fractions=(0.1, 1.0), seeds=1))
    prepare(banks["views"], tmp_path / "run", StudySettings(fractions=(1.0,), seeds=1))
    calibrate(banks["views"], tmp_path / "run", tmp_path / "calibrated", schedule=SCHEDULE, device="cpu")
    assert Lineage.of_run(tmp_path / "calibrated").labels == 1.0
    for run in ("run", "calibrated"):
        with pytest.raises(InputError, match=r"a run that no label has trained, but got one that has read labels at"):
            finetune(banks["views"], tmp_path / run, tmp_path / "tuned", Classification(fraction=0.5))


def test_without_any_label_or_class_that_option_is_refused(banks, tmp_path):
    info = replace(banks["views"].info, labels=())
    bank = Bank(banks["views"].folder, info, banks["views"].rows)
    with pytest.raises(InputError, match=r"labels or classes for matching\.by_label, but got neither"):
        pretrain(bank, changed(UMD, {"matching": {"by_label": True}}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_without_that_option_no_label_is_read(banks, tmp_path, monkeypatch):
    choices = Choices(monkeypatch)
    monkeypatch.setattr(Bank, "labels", lambda *_: pytest.fail("a label was read"))
    pretrain(banks["views"], UMD, tmp_path / "run", device="cpu")
    assert all(labels is None for *_, labels in choices.made)
    assert Lineage.of_run(tmp_path / "run").labels is None


def test_classes_are_labels_too(folder, tmp_path, monkeypatch):
    text, image = load_text_encoder(f"hf:{folder / 'bert'}"), load_image_encoder(f"hf:{folder / 'vit'}")
    manifest = Manifest.read(folder / "m.csv", class_column="a")
    bank = embed(manifest, image, text, tmp_path / "bank", options=replace(OPTIONS, pixels=True))
    assert bank.info.labels == ()
    choices = Choices(monkeypatch)
    pretrain(bank, changed(UMD, {"matching": {"by_label": True}}), tmp_path / "run", device="cpu")
    for choice, found, _, labels in choices.made:
        assert labels.shape[1] == 1
        assert (labels[choice] != labels)[found].all()
