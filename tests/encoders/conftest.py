"""Every encoder, tiny with random weights or bundled with real ones, built once per session."""

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch

from adaptmed.types import ImageEncoder, TextEncoder
from tests.tiny_models import IMAGE, TEXT, bert_config, save_clip_model, save_text_model


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return save_clip_model(tmp_path / "clip")


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    return save_text_model(tmp_path / "bert", bert_config())


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the suite's own shape checks off, so that a wrong input reaches the encoder as it does for users."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session", params=IMAGE)
def image_encoder(request: pytest.FixtureRequest) -> ImageEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return IMAGE[request.param]()


@pytest.fixture(scope="session", params=TEXT)
def text_encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TEXT[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session", params=[*IMAGE, *TEXT])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ImageEncoder | TextEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if request.param in IMAGE:
            return IMAGE[request.param]()
        return TEXT[request.param](tmp_path_factory.mktemp(request.param))
