"""An adaptor with a fusion of every kind: made from a bank, standardised, trained, saved and read."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adaptmed.adaptor.model import Adaptor
from adaptmed.fusion import CoFusion, CrossFusion, ReleasedCrossFusion
from tests.tiny_bank import write_tiny_bank

KINDS = {
    "cross": ({"fusion": "cross", "width": 16, "heads": 2}, CrossFusion),
    "co": ({"fusion": "co", "width": 16, "heads": 2, "layers": 3}, CoFusion),
    "released": ({"faithful": True}, ReleasedCrossFusion),
}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("kinds") / "bank")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def adaptor(bank, kind):
    torch.manual_seed(0)
    adaptor = Adaptor.from_bank(bank, **KINDS[kind][0])
    adaptor.standardise(bank, np.arange(40))
    return adaptor


def pairs(bank):
    return bank.image_tokens(np.arange(4), torch.float32), bank.text_tokens(np.arange(4), torch.float32)


def test_saving_and_loading_give_the_same_output(adaptor, bank, kind, tmp_path):
    optimiser = torch.optim.AdamW(adaptor.parameters(), lr=1e-2)
    adaptor(*pairs(bank)).joint.square().sum().backward()
    optimiser.step()
    adaptor.eval().save_pretrained(tmp_path / "adaptor")
    other = Adaptor.from_pretrained(tmp_path / "adaptor", load_encoders=False)
    assert type(other.fusion) is KINDS[kind][1]
    before, after = adaptor(*pairs(bank)), other(*pairs(bank))
    for name in ("joint", "image_embedding", "text_embedding"):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert torch.equal(before.image.values, after.image.values)
    assert torch.equal(before.text.values, after.text.values)
    assert set(load_file(tmp_path / "adaptor" / "adaptor.safetensors")) == set(adaptor.fusion.state_dict())


def test_the_inputs_are_standardised_but_in_the_released_arrangement(adaptor, bank, kind):
    if kind == "released":
        assert not any("standardise" in name for name in adaptor.fusion.state_dict())
        return
    values = bank.image_tokens(np.arange(40), torch.float32).values
    torch.testing.assert_close(
        adaptor.fusion.image_standardise(values).mean((0, 1)), torch.zeros(12), atol=1e-5, rtol=0
    )


def test_the_layers_of_a_kind_are_its_own_unless_given(bank):
    assert Adaptor.from_bank(bank).fusion.config.layers == 2
    assert Adaptor.from_bank(bank, fusion="co", width=16, heads=2).fusion.config.layers == 6


def test_the_saved_configuration_names_the_kind(adaptor, kind, tmp_path):
    adaptor.save_pretrained(tmp_path / "adaptor")
    saved = json.loads((tmp_path / "adaptor" / "adaptmed_config.json").read_text())["fusion"]
    assert saved["kind"] == ("co" if kind == "co" else "cross")
