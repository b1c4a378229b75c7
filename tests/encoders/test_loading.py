"""Names, lazy imports, and what is said when weights cannot be had."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from adaptmed.encoders import load_image_encoder, load_text_encoder
from adaptmed.errors import InputError


def test_importing_the_room_loads_no_library_behind_a_door() -> None:
    code = (
        "import sys, adaptmed.encoders; print(sorted({'timm', 'open_clip', 'transformers', 'onnx'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["", "dinov2-small", "timm:", "torchvision:resnet18", "universal:vit"])
def test_an_unknown_source_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="a source of timm, open_clip, hf, bundled, but got"):
        load_image_encoder(name)
    with pytest.raises(InputError, match="a source of open_clip, hf, bundled, but got"):
        load_text_encoder(name)


@pytest.mark.parametrize(
    "name",
    [
        "timm:vit_tiny_patch16_224.augreg_in21k",
        "timm:vit_tiny_patch16_224.augreg_in21k@1234567",
        "timm:hf-hub:nobody/nothing",
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
        "open_clip:hf-hub:nobody/nothing",
        "hf:nobody/nothing@main",
    ],
)
def test_weights_that_cannot_be_had_are_said_in_words(name: str) -> None:
    with pytest.raises(InputError, match=rf"`{name}`: expected its weights in the local cache.*Without network only"):
        load_image_encoder(name)


@pytest.mark.parametrize("name", ["open_clip:ViT-B-32/laion2b_s34b_b79k", "hf:nobody/nothing"])
def test_texts_without_weights_are_said_in_words(name: str) -> None:
    with pytest.raises(InputError, match=rf"`{name}`: expected its weights in the local cache.*Without network only"):
        load_text_encoder(name)


def test_near_misses_are_named() -> None:
    with pytest.raises(InputError, match=r"Did you mean .*vit_small_patch16_224"):
        load_image_encoder("timm:vit_small_patch16_225")
    with pytest.raises(InputError, match="For ViT-B-32 there are openai, "):
        load_image_encoder("open_clip:ViT-B-32/nonsense")
    with pytest.raises(InputError, match="an existing folder, but got no such folder"):
        load_text_encoder("hf:./nowhere")


def test_loading_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(3)
    state, other = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load_image_encoder("bundled:dinov2-small")
    load_text_encoder("bundled:minilm-l6")
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], other)  # noqa: NPY002
