"""A new fusion: one file and a line in two others; it is trained, saved, loaded and studied like the others."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jaxtyping
import pytest
import torch
from torch import nn
from torch.nn import functional

from adaptmed import fusion, methods
from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import InputError
from adaptmed.fusion import config as configs
from adaptmed.layers.pooling import masked_mean
from adaptmed.layers.standardise import Standardise
from adaptmed.methods import changed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import study
from adaptmed.types import Fused, Tokens
from tests.masked_bank import UMD
from tests.short_training import METHOD
from tests.tiny_bank import write_tiny_bank


@dataclass(frozen=True, kw_only=True)
class MeanConfig:
    """The shape of a fusion that projects and averages."""

    kind: ClassVar[str] = "mean"
    has_streams: ClassVar[bool] = False
    has_released: ClassVar[bool] = False
    image_width: int
    text_width: int | None
    width: int = 16

    @classmethod
    def shaped(cls, _grid, *, image_width, text_width, width, **_others):
        """Shape it for the Tokens of encoders."""
        return cls(image_width=image_width, text_width=text_width, width=width)


class MeanFusion(nn.Module):
    """Means of projected tokens; the joint vector is both side by side."""

    has_streams, reads_texts = False, True

    def __init__(self, config):
        super().__init__()
        self.config, self.width = config, config.width
        self.image_standardise, self.text_standardise = Standardise(config.image_width), Standardise(config.text_width)
        self.image_project = nn.Linear(config.image_width, config.width)
        self.text_project = nn.Linear(config.text_width, config.width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    @property
    def standardisers(self):
        """Both."""
        return {"image": self.image_standardise, "text": self.text_standardise}

    def scale(self):
        """Factor on cosines."""
        return self.log_scale.exp()

    def embed_image(self, image):
        """Embed images alone."""
        return functional.normalize(self._enter("image", image).pooled, dim=-1)

    def embed_text(self, text):
        """Embed texts alone."""
        return functional.normalize(self._enter("text", text).pooled, dim=-1)

    def fuse(self, image, text):
        """Carry both sides."""
        image, text = self._enter("image", image), self._enter("text", text)
        return image, text, torch.cat([image.pooled, text.pooled], dim=1)

    def forward(self, image=None, text=None):
        """Carry what is there."""
        return Fused(*self.fuse(image, text), self.embed_image(image), self.embed_text(text))

    def _enter(self, side, tokens):
        values = tokens.values.masked_fill(~tokens.valid[..., None], 0.0).float()
        x = getattr(self, f"{side}_project")(getattr(self, f"{side}_standardise")(values))
        return Tokens(x, tokens.valid, masked_mean(x, tokens.valid), tokens.grid, tokens.prefix)


@pytest.fixture
def registered(monkeypatch):
    """The two files that change: CONFIGS of the configurations, and FUSIONS of the fusion."""
    monkeypatch.setattr(configs, "CONFIGS", {**configs.CONFIGS, "mean": MeanConfig})
    monkeypatch.setattr("adaptmed.fusion.settings.CONFIGS", configs.CONFIGS)
    monkeypatch.setattr(fusion, "FUSIONS", {**fusion.FUSIONS, "mean": MeanFusion})
    jaxtyping.config.update("jaxtyping_disable", True)  # the union of all fusions is the line of that file
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("registered")
def test_it_is_trained_saved_loaded_and_studied(tmp_path):
    bank, run = write_tiny_bank(tmp_path / "bank"), tmp_path / "run"
    trained = pretrain(bank, changed(METHOD, {"fusion": {"kind": "mean"}}), run, device="cpu")
    loaded = Adaptor.from_pretrained(run, load_encoders=False)
    assert isinstance(loaded.fusion, MeanFusion)
    for name, value in trained.fusion.state_dict().items():
        assert torch.equal(value, loaded.fusion.state_dict()[name])
    settings = StudySettings(fractions=(1.0,), seeds=1, replicates=50, arms=("frozen", "adaptor-untrained", "adaptor"))
    arms = {record["arm"] for record in study([bank], [run], tmp_path / "study", settings=settings)["records"]}
    assert arms == {"frozen", "adaptor-untrained", "adaptor"}


@pytest.mark.usefixtures("registered")
def test_terms_that_read_streams_refuse_it():
    with pytest.raises(
        InputError, match=r"`fusion\.kind`: expected a fusion with a stream for each side, .*but got 'mea"
    ):
        changed(UMD, {"fusion": {"kind": "mean"}})
    with pytest.raises(InputError, match="`faithful`: expected False with fusion='mean'"):
        changed(methods.adaptor(), {"fusion": {"kind": "mean", "faithful": True}})
