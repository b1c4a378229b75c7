"""An adaptor of images alone: made, fitted, saved with and without LoRA, read, and asked for texts in vain."""

import copy
import json

import numpy as np
import pytest
import torch

from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.errors import FingerprintError, InputError
from adaptmed.lora import LoRA
from tests.tiny_bank import write_tiny_bank
from tests.tiny_encoders import PatchEncoder, WordEncoder
from tests.tiny_models import vit

CONFIG = "adaptmed_config.json"
SIZES = {"cross": {"fusion": "cross"}, "co": {"fusion": "co", "layers": 2}}
NO_TEXTS = "expected an adaptor that has a text encoder, but got one of images alone. Leave texts out"


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("alone") / "bank", holds_texts=False)


@pytest.fixture(params=SIZES)
def sizes(request):
    return SIZES[request.param] | {"width": 16, "heads": 2}


@pytest.fixture
def adaptor(bank, sizes):
    torch.manual_seed(0)
    adaptor = Adaptor.from_bank(bank, **sizes)
    adaptor.standardise(bank, np.arange(40))
    return adaptor.eval()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return vit("vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (90, 120), dtype=np.uint8) for _ in range(2)]


def tuned(encoder, sizes):
    adaptor = Adaptor.from_encoders(copy.deepcopy(encoder), layout="all", image_lora=LoRA(rank=2), **sizes)
    with torch.no_grad():
        for parameter in adaptor.encoders.lora_parameters():
            parameter.normal_(std=0.05)
    return adaptor


def test_a_bank_of_images_makes_it_and_its_inputs_are_standardised(adaptor, bank):
    assert not adaptor.fusion.reads_texts
    values = adaptor.fusion.image_standardise(bank.image_tokens(np.arange(40), torch.float32).values)
    torch.testing.assert_close(values.mean((0, 1)), torch.zeros(12), atol=1e-5, rtol=0)


def test_texts_beside_the_images_change_nothing_of_its_inputs(adaptor, tmp_path):
    before = adaptor.fusion.image_standardise.std.clone()
    adaptor.standardise(write_tiny_bank(tmp_path / "pairs"), np.arange(40))
    assert torch.equal(adaptor.fusion.image_standardise.std, before)


def test_saving_and_loading_give_the_same_output(adaptor, bank, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved", labels=("a", "b"))
    other = Adaptor.from_pretrained(tmp_path / "saved", load_encoders=False)
    tokens = bank.image_tokens(np.arange(4), torch.float32)
    before, after = adaptor(tokens), other(tokens)
    assert torch.equal(before.image_embedding, after.image_embedding)
    assert torch.equal(before.image.values, after.image.values)
    assert (after.text, after.joint, after.text_embedding) == (None, None, None)
    config = json.loads((tmp_path / "saved" / CONFIG).read_text())
    assert (config["text"], config["fusion"]["text_width"]) == (None, None)


def test_its_card_names_the_one_encoder(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "base_model:\n- fake:image\nbase_model_relation" in card
    assert "# Adaptor for fake:image\n\nA fusion on one frozen image encoder: " in card
    assert f"| fake:image | `{'aa' * 32}` |\n\n" in card


def test_saving_and_loading_with_lora_give_the_same_output(encoder, sizes, pictures, tmp_path):
    adaptor = tuned(encoder, sizes)
    adaptor.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir() if path.is_dir()} == {"image_lora"}
    other = Adaptor.from_pretrained(tmp_path / "saved", image_encoder=copy.deepcopy(encoder))
    assert torch.equal(other.embed_images(pictures), adaptor.embed_images(pictures))
    Adaptor.from_pretrained(tmp_path / "saved", load_encoders=False).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / CONFIG).read_bytes() == (tmp_path / "saved" / CONFIG).read_bytes()
    plain = Adaptor.from_encoders(copy.deepcopy(encoder), layout="all", **sizes)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(FingerprintError, match="with LoRA None, but got weights with LoRA"):
        Adaptor.from_pretrained(tmp_path / "plain", image_encoder=adaptor.encoders.image)


def test_its_parameters_are_those_of_one_encoder(encoder, sizes, capsys):
    adaptor = tuned(encoder, sizes)
    frozen = sum(parameter.numel() for parameter in encoder.module.parameters())
    lora = sum(parameter.numel() for parameter in adaptor.encoders.lora_parameters())
    assert adaptor.encoders.parameters_count == frozen
    adaptor.print_trainable_parameters()
    trained = trainable_parameters(adaptor.fusion) + lora
    assert f"trainable params: {trained:,} || all params: {trained + frozen:,}" in capsys.readouterr().out
    adaptor.merge_lora().unmerge_lora()


def test_a_text_asked_of_it_is_refused(adaptor):
    for call in (adaptor.embed_texts, lambda texts: adaptor(texts=texts)):
        with pytest.raises(InputError, match=f"`texts`: {NO_TEXTS}"):
            call(["small effusion"])
    with pytest.raises(InputError, match=f"`text`: {NO_TEXTS}"):
        adaptor.encoders.load_text()
    with pytest.raises(InputError, match=f"`text_lora`: {NO_TEXTS}"):
        adaptor.encoders.attach_lora("text", LoRA(rank=2))


def test_tokens_of_a_text_are_refused_as_well(adaptor, tmp_path):
    text = write_tiny_bank(tmp_path / "pairs").text_tokens(np.arange(2), torch.float32)
    with pytest.raises(InputError, match=f"`texts`: {NO_TEXTS}"):
        adaptor(texts=text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_lora": LoRA(rank=2)}, f"`text_lora`: {NO_TEXTS}"),
        ({"faithful": True}, "`text_width`: expected a width: the released arrangement fuses pairs, but got None"),
    ],
)
def test_what_needs_a_text_encoder_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Adaptor.from_encoders(PatchEncoder(), width=16, heads=2, **options)


def test_a_bank_without_texts_has_no_released_arrangement(bank):
    with pytest.raises(InputError, match="the released arrangement fuses pairs"):
        Adaptor.from_bank(bank, faithful=True)


def test_a_text_encoder_given_to_a_saved_one_is_refused(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=f"`text_encoder`: {NO_TEXTS}"):
        Adaptor.from_pretrained(tmp_path / "saved", text_encoder=WordEncoder(), load_encoders=False)


@pytest.mark.parametrize("reads_texts", [True, False])
def test_records_that_do_not_belong_to_the_fusion_are_refused(adaptor, tmp_path, reads_texts):
    pairs = Adaptor.from_bank(write_tiny_bank(tmp_path / "pairs"), width=16, heads=2)
    (pairs if reads_texts else adaptor).save_pretrained(tmp_path / "saved")
    (adaptor if reads_texts else pairs).save_pretrained(tmp_path / "other")
    found, other = (json.loads((tmp_path / name / CONFIG).read_text()) for name in ("saved", "other"))
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(found | {"text": other["text"]}))
    words = ("images alone", "images and texts") if reads_texts else ("images and texts", "images alone")
    with pytest.raises(InputError, match=f"`fusion`: expected a fusion of {words[0]}, .* but got one of {words[1]}"):
        Adaptor.from_pretrained(tmp_path / "saved", load_encoders=False)


def test_an_image_encoder_that_is_missing_is_refused(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    found = json.loads((tmp_path / "saved" / CONFIG).read_text())
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(found | {"image": None}))
    with pytest.raises(InputError, match="image`: expected an object of named values, but got None"):
        Adaptor.from_pretrained(tmp_path / "saved", load_encoders=False)


def test_an_image_record_without_input_facts_is_refused(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    found = json.loads((tmp_path / "saved" / CONFIG).read_text())
    (tmp_path / "saved" / CONFIG).write_text(json.dumps(found | {"image": found["image"] | {"preprocessing": None}}))
    with pytest.raises(InputError, match="`fake:image`: expected the record of an image encoder, but got one without"):
        Adaptor.from_pretrained(tmp_path / "saved").encoders.load_image()
