"""Encoders that come on another device, and recorded input sizes that a name alone does not give back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed.adaptor import frozen
from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.records import record_image, record_text
from adaptmed.errors import InputError
from tests.tiny_encoders import PatchEncoder, WordEncoder

ARRAY = np.random.default_rng(0).integers(0, 256, (44, 52, 3), dtype=np.uint8)


class Placed(PatchEncoder):
    """Notes where its pixels were."""

    def __call__(self, pixels):
        self.place = pixels.device.type
        return super().__call__(pixels)


def test_the_fusion_goes_where_the_image_encoder_is():
    encoder = Placed()
    encoder.module.to("meta")
    adaptor = Adaptor.from_encoders(encoder, WordEncoder(), width=16, heads=2)
    assert encoder.place == "meta"
    assert {parameter.device.type for parameter in adaptor.fusion.parameters()} == {"meta"}


def test_every_encoder_reads_on_its_own_device_and_tokens_go_to_the_fusion():
    encoder = Placed()
    encoders = FrozenEncoders.of(encoder, WordEncoder(), "all")
    image = encoders.image_tokens([ARRAY], torch.device("meta"))
    text = encoders.text_tokens(["no effusion"], torch.device("meta"))
    assert encoder.place == "cpu"
    assert {image.values.device.type, image.valid.device.type, text.values.device.type} == {"meta"}


@pytest.mark.gpu
def test_encoders_on_a_gpu():
    image, text = PatchEncoder(), WordEncoder()
    with torch.no_grad():
        expected = _seeded(image, text).embed_images([ARRAY])
    image.module.to("cuda")
    adaptor = _seeded(image, text)
    with torch.no_grad():
        found = adaptor.embed_images([ARRAY])
        assert adaptor.embed_texts(["no effusion"]).device == found.device
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-3)


def _seeded(image: PatchEncoder, text: WordEncoder) -> Adaptor:
    torch.manual_seed(0)
    return Adaptor.from_encoders(image, text, width=16, heads=2)


class Sized(PatchEncoder):
    """As a source loads it: square where a side is asked for, else 40 × 60."""

    def __init__(self, image_size_px: int | None) -> None:
        super().__init__()
        size = (40, 60) if image_size_px is None else (image_size_px, image_size_px)
        self.preprocessing = replace(PatchEncoder.preprocessing, image_size_px=size)


@pytest.fixture
def sized(monkeypatch):
    monkeypatch.setattr(frozen, "load_image_encoder", lambda _name, *, image_size_px: Sized(image_size_px))


def recorded(size: tuple[int, int]) -> FrozenEncoders:
    record = record_image(PatchEncoder())
    facts = replace(record.preprocessing, image_size_px=size)
    return FrozenEncoders(replace(record, preprocessing=facts), record_text(WordEncoder()), "all")


@pytest.mark.usefixtures("sized")
@pytest.mark.parametrize("size", [(40, 40), (80, 80), (40, 60)])
def test_an_image_encoder_is_loaded_at_its_recorded_size(size):
    encoders = recorded(size)
    assert encoders.load_image().preprocessing.image_size_px == size
    assert encoders.load_image() is encoders.image


@pytest.mark.usefixtures("sized")
def test_a_size_that_is_not_the_models_own_and_not_square_is_refused():
    encoders = recorded((60, 40))
    with pytest.raises(InputError, match=r"an input of 60 × 40, but got 40 × 60.*image_encoder"):
        encoders.load_image()
    assert encoders.image is None
