"""The Adaptor from real encoders: raw images and texts, saving, loading, refusing other weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.errors import FingerprintError, InputError
from tests.tiny_bank import write_tiny_bank

TEXTS = ["small left effusion", "No pneumothorax. The heart is of normal size and the lungs are clear."]


@pytest.fixture(scope="module")
def adaptor():
    torch.manual_seed(0)
    return Adaptor.from_encoders("bundled:efficientnet-lite0", "bundled:minilm-l6", width=32, heads=2).eval()


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (90, 120), dtype=np.uint8), generator.random((64, 64, 3)).astype(np.float32)]


@pytest.fixture(scope="module")
def saved(adaptor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "adaptor"
    adaptor.save_pretrained(folder, metrics={"validate/loss": 1.5}, labels=("effusion",))
    return folder


def test_pairs_and_single_modalities(adaptor, images):
    fused = adaptor(images=images, texts=TEXTS)
    assert fused.joint.shape == (2, 64)
    torch.testing.assert_close(fused.image_embedding, adaptor.embed_images(images))
    torch.testing.assert_close(fused.text_embedding, adaptor.embed_texts(TEXTS))
    assert adaptor(texts=TEXTS).image is None


def test_training_mode_and_training_never_touch_the_encoders(adaptor, images):
    before = adaptor.encoders.image.fingerprint(), adaptor.encoders.text.fingerprint()
    adaptor.train()
    optimiser = torch.optim.SGD(adaptor.parameters(), lr=0.1)
    adaptor(images=images, texts=TEXTS).joint.sum().backward()
    state = {name: p.clone() for name, p in adaptor.fusion.named_parameters()}
    optimiser.step()
    with torch.no_grad():
        for name, parameter in adaptor.fusion.named_parameters():
            parameter.copy_(state[name])
    optimiser.zero_grad()
    adaptor.eval()
    assert (adaptor.encoders.image.fingerprint(), adaptor.encoders.text.fingerprint()) == before


def test_save_and_load_give_the_same_output(adaptor, images, saved):
    other = Adaptor.from_pretrained(saved, image_encoder=adaptor.encoders.image, text_encoder=adaptor.encoders.text)
    assert torch.equal(other.embed_images(images), adaptor.embed_images(images))
    assert torch.equal(other.embed_texts(TEXTS), adaptor.embed_texts(TEXTS))


def test_loading_by_name_finds_the_encoders_again(adaptor, images, saved):
    other = Adaptor.from_pretrained(saved)
    torch.testing.assert_close(other.embed_images(images), adaptor.embed_images(images))


def test_the_folder_holds_no_frozen_weight_and_no_pickle(adaptor, saved):
    assert {path.name for path in saved.iterdir()} == {
        "README.md", "adaptmed_config.json", "adaptor.safetensors", "metrics.json",
    }  # fmt: skip
    tensors = load_file(saved / "adaptor.safetensors")
    assert set(tensors) == set(adaptor.fusion.state_dict())
    assert sum(t.numel() for t in tensors.values()) < 0.08 * adaptor.encoders.parameters_count
    assert json.loads((saved / "metrics.json").read_text()) == {"validate/loss": 1.5}
    card = (saved / "README.md").read_text()
    assert adaptor.encoders.image_record.fingerprint in card


def test_other_weights_are_refused_with_both_values(adaptor, saved, tmp_path):
    config = json.loads((saved / "adaptmed_config.json").read_text())
    right = config["image"]["fingerprint"]
    config["image"]["fingerprint"] = "0" * 64
    folder = tmp_path / "adaptor"
    folder.mkdir()
    (folder / "adaptmed_config.json").write_text(json.dumps(config))
    (folder / "adaptor.safetensors").write_bytes((saved / "adaptor.safetensors").read_bytes())
    with pytest.raises(FingerprintError, match=f"fingerprint {'0' * 64}, but got weights with fingerprint {right}"):
        Adaptor.from_pretrained(folder, image_encoder=adaptor.encoders.image, text_encoder=adaptor.encoders.text)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"schema": 99}, "schema`: expected 1, but got 99"), ({"surprise": 1}, r"missing \[\], unknown \['surprise'\]")],
)
def test_a_configuration_of_another_shape_is_refused(saved, tmp_path, change, message):
    config = json.loads((saved / "adaptmed_config.json").read_text()) | change
    (tmp_path / "adaptmed_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        Adaptor.from_pretrained(tmp_path, load_encoders=False)


def test_a_folder_without_adaptor_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a saved adaptor"):
        Adaptor.from_pretrained(tmp_path)


def test_saving_over_other_files_is_refused(adaptor, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="an empty folder or a saved adaptor, but got other files"):
        adaptor.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_saving_again_replaces_the_earlier_one(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "a", metrics={"x": 1})
    adaptor.save_pretrained(tmp_path / "a", metrics={"x": 2})
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_raw_data_without_encoders_is_refused(tmp_path):
    adaptor = Adaptor.from_bank(write_tiny_bank(tmp_path / "bank"), width=16, heads=2)
    with pytest.raises(InputError, match="expected Tokens, but got raw data and no encoder in memory"):
        adaptor(texts=["a"])


def test_parameters_are_printed_as_peft_prints_them(adaptor, capsys):
    adaptor.print_trainable_parameters()
    count = trainable_parameters(adaptor.fusion)
    assert capsys.readouterr().out.startswith(f"trainable params: {count:,} || all params: ")


def test_an_unknown_fusion_is_refused():
    with pytest.raises(InputError, match="`fusion`: expected one of cross, co, but got 'magic'"):
        Adaptor.from_encoders("bundled:efficientnet-lite0", "bundled:minilm-l6", fusion="magic")


@pytest.mark.parametrize("layout", ["grid3", "all", "pooled"])
def test_every_layout_runs(adaptor, images, layout):
    made = Adaptor.from_encoders(adaptor.encoders.image, adaptor.encoders.text, width=16, heads=2, layout=layout).eval()
    assert made(images=images, texts=TEXTS).joint.isfinite().all()


def test_the_released_arrangement_from_encoders(adaptor, images):
    made = Adaptor.from_encoders(adaptor.encoders.image, adaptor.encoders.text, faithful=True).eval()
    assert made.embed_images(images).shape == (2, 768)


def test_a_co_fusion_from_the_same_encoders(adaptor, images, tmp_path):
    encoders = adaptor.encoders.image, adaptor.encoders.text
    made = Adaptor.from_encoders(*encoders, fusion="co", width=16, heads=2, layers=2)
    fused = made(images=images, texts=TEXTS)
    torch.testing.assert_close(fused.image_embedding, made.embed_images(images))
    made.save_pretrained(tmp_path / "co")
    read = Adaptor.from_pretrained(tmp_path / "co", image_encoder=encoders[0], text_encoder=encoders[1])
    assert torch.equal(read(images=images, texts=TEXTS).joint, fused.joint)


def test_a_co_fusion_has_no_released_arrangement():
    with pytest.raises(InputError, match="`faithful`: expected False with fusion='co', but got True"):
        Adaptor.from_encoders("bundled:efficientnet-lite0", "bundled:minilm-l6", fusion="co", faithful=True)
