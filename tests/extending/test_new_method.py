"""A new method with a new term: one file each and one line in two others, and everything else knows them."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from adaptmed import methods
from adaptmed.adaptor.model import Adaptor
from adaptmed.cli import main
from adaptmed.fusion.settings import FusionSettings
from adaptmed.methods import Method, Schedule, from_json
from adaptmed.pretraining import terms
from adaptmed.pretraining.step import both_sides
from adaptmed.pretraining.terms.contrastive import Contrastive
from adaptmed.pretraining.views import Needs, check_weight
from adaptmed.runs.folder import read_metrics
from tests.tiny_bank import write_tiny_bank


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Keeps the embeddings of a batch apart: the mean cosine of different images."""

    name: ClassVar[str] = "spread"
    hides: ClassVar[None] = None
    weight: float = 1.0
    power: int = 2

    def __post_init__(self):
        check_weight("spread.weight", self.weight)

    def needs(self, _method):
        """Embeddings."""
        return Needs(embeddings=True)

    def pretext(self, method, sizes):
        """Nothing of its own."""

    def losses(self, step):
        """Return ``spread``."""
        image, _ = both_sides(step.batch)
        embedded = step.cut.whole(step.fusion.embed_image(image))
        cosines = (embedded @ embedded.T).tril(-1)
        return {"spread": cosines.pow(self.power).sum() / max(1, len(embedded) * (len(embedded) - 1) // 2)}


def steady(*, size="light"):
    """A method of two terms."""
    fusion = FusionSettings(width=16, heads=2)
    schedule = Schedule(epochs=2, batch_size=8)
    return Method(name="steady", size=size, fusion=fusion, terms=(Contrastive(), Spread()), schedule=schedule)


@pytest.fixture
def registered(monkeypatch):
    """The two files that change: TERMS of the terms, and PRESETS of the methods."""
    monkeypatch.setattr(terms, "TERMS", {**terms.TERMS, "spread": Spread})
    monkeypatch.setattr("adaptmed.pretraining.choices.TERMS", terms.TERMS)
    monkeypatch.setattr(methods, "PRESETS", {**methods.PRESETS, "steady": steady})


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("steady") / "bank")


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code


@pytest.mark.usefixtures("registered")
def test_it_is_trained_repeated_and_read_back(bank, tmp_path, capsys):
    out = tmp_path / "run"
    words = ("pretrain", bank.folder, "--method", "steady", "--set", "spread.power=4", "--precision", "fp32")
    assert run(*words, "--device", "cpu", "--out", out) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["method"]["terms"]["spread"] == {"weight": 1.0, "power": 4}
    assert from_json(config["method"]).term("spread") == Spread(power=4)
    lines = read_metrics(out)
    total = lines[-1]["validate/contrastive"] + lines[-1]["validate/spread"]
    assert lines[-1]["validate/loss"] == pytest.approx(total)
    assert Adaptor.from_pretrained(out, load_encoders=False).width == 16
    again = ("pretrain", "--config", out / "config.json", "--device", "cpu", "--out", tmp_path / "again")
    assert run(*again) == 0
    assert (tmp_path / "again" / "adaptor" / "adaptor.safetensors").read_bytes() == (
        out / "adaptor" / "adaptor.safetensors"
    ).read_bytes()
    capsys.readouterr()
    assert run("pretrain", "--method", "steady", "--set", "sprad.power=4", "--show") == 1
    assert "Did you mean spread?" in capsys.readouterr().err


@pytest.mark.usefixtures("registered")
def test_another_method_can_have_its_term():
    method = methods.changed(methods.adaptor(), {"spread": {"weight": 0.5}, "fusion": {"width": 16, "heads": 2}})
    assert list(method.weights) == ["contrastive", "matching", "spread"]
    assert methods.preset_of("steady") == steady()
