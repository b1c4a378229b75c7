"""What users hand over: lists of files, arrays, Pillow images and texts; anything else is refused with the way out."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import InputError
from tests.tiny_encoders import PatchEncoder, WordEncoder

ARRAY = np.random.default_rng(0).integers(0, 256, (44, 52, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def adaptor():
    torch.manual_seed(0)
    return Adaptor.from_encoders(PatchEncoder(), WordEncoder(), width=16, heads=2)


@pytest.fixture
def unchecked():
    """Switch the suite's own type checks off, so that a wrong argument arrives as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("small effusion", r"`texts`: expected a list of strings, but got a single str\. Pass a list: \[text\]\."),
        (b"small effusion", "`texts`: expected a list of strings, but got a single bytes"),
        (None, "`texts`: expected a list of strings, but got a single NoneType"),
        ([], "`texts`: expected at least one of them, but got none"),
        (["effusion", 3.0], r"`texts\[1\]`: expected a string, but got float"),
    ],
    ids=range(5),
)
def test_texts_of_another_kind_are_refused(adaptor, texts, message):
    with pytest.raises(InputError, match=message):
        adaptor.embed_texts(texts)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("chest.png", r"`images`: expected a list of .*, but got a single str\. Pass a list: \[image\]\."),
        (Path("chest.png"), r"but got a single \w*Path\. Pass a list"),
        (ARRAY, r"but got a single ndarray\. Pass a list: \[image\]\."),
        (Image.fromarray(ARRAY), r"but got a single Image\. Pass a list"),
        ([], "`images`: expected at least one of them, but got none"),
        ([ARRAY, 7], r"`images\[1\]`: expected a file, .*, but got int"),
        ([torch.zeros(3, 40, 40)], r"`images\[0\]`: expected a file, .*, but got Tensor.*one Tensor"),
    ],
    ids=range(7),
)
def test_images_of_another_kind_are_refused(adaptor, images, message):
    with pytest.raises(InputError, match=message):
        adaptor.embed_images(images)


def test_files_arrays_and_pillow_images_give_the_same(adaptor, tmp_path):
    Image.fromarray(ARRAY).save(tmp_path / "chest.png")
    name = tmp_path / "chest.png"
    with torch.no_grad():
        found = adaptor.embed_images([name, str(name), ARRAY, Image.fromarray(ARRAY), Image.open(name)])
    torch.testing.assert_close(found, found[:1].expand(5, -1))


def test_pillow_images_of_other_modes_are_read_as_files_are(adaptor, tmp_path):
    grey = Image.fromarray(ARRAY[..., 0].astype(np.uint16) * 257)
    grey.save(tmp_path / "deep.png")
    floating = Image.fromarray(ARRAY[..., 0].astype(np.float32) / 255)
    with torch.no_grad():
        found = adaptor.embed_images([tmp_path / "deep.png", grey, floating])
    torch.testing.assert_close(found, found[:1].expand(3, -1), atol=1e-5, rtol=1e-4)


def test_floats_of_another_range_are_refused(adaptor):
    with pytest.raises(InputError, match=r"expected floats in \[0, 1\], but got values from 0 to 255"):
        adaptor.embed_images([ARRAY.astype(np.float32)])


def test_a_fresh_adaptor_embeds_the_same_twice(adaptor):
    assert not adaptor.training
    with torch.no_grad():
        assert torch.equal(adaptor.embed_images([ARRAY]), adaptor.embed_images([ARRAY]))
    assert adaptor.train().fusion.training
    adaptor.eval()
