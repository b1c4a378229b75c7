"""A run that starts from another's fusion: the same Tokens, the same shape, the patients of both."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import InputError
from adaptmed.methods import changed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import read_config, read_seen, write_seen
from tests.short_training import METHOD, StopAfter, weights
from tests.tiny_bank import write_tiny_bank


class First(Callback):
    """Keeps the fusion that training starts from."""

    def on_train_start(self, _trainer, module):
        self.found = {name: value.clone() for name, value in module.fusion.state_dict().items()}


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("start") / "bank")


@pytest.fixture(scope="module")
def trained(bank, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    pretrain(bank, METHOD, out, device="cpu")
    return out


def test_training_starts_from_the_other_fusion_and_knows_whose_patients_it_saw(bank, trained, tmp_path):
    write_seen(trained, before := [*read_seen(trained), "d" * 64])
    first = First()
    pretrain(bank, METHOD, tmp_path / "run", device="cpu", start=trained, callbacks=(first,))
    assert all(torch.equal(value, first.found[name]) for name, value in weights(trained).items())
    assert read_seen(tmp_path / "run") == set(before)
    assert len(read_config(tmp_path / "run")["start_sha256"]) == 64
    moved = weights(tmp_path / "run")
    assert not torch.equal(moved["image_project.weight"], first.found["image_project.weight"])


def test_it_resumes_exactly(bank, trained, tmp_path):
    pretrain(bank, METHOD, tmp_path / "whole", device="cpu", checkpoint_every=1, start=trained)
    with pytest.raises(KeyboardInterrupt):
        pretrain(
            bank, METHOD, tmp_path / "run", device="cpu", checkpoint_every=1, start=trained, callbacks=(StopAfter(5),)
        )
    pretrain(bank, METHOD, tmp_path / "run", device="cpu", checkpoint_every=1, start=trained)
    found = weights(tmp_path / "run")
    assert all(torch.equal(value, found[name]) for name, value in weights(tmp_path / "whole").items())


def test_another_start_is_another_run(bank, trained, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        pretrain(bank, METHOD, tmp_path / "run", device="cpu", checkpoint_every=1, callbacks=(StopAfter(1),))
    with pytest.raises(InputError, match="start_sha256: None there"):
        pretrain(bank, METHOD, tmp_path / "run", device="cpu", start=trained)


def test_a_fusion_of_another_shape_or_other_tokens_is_refused(bank, trained, tmp_path):
    with pytest.raises(InputError, match=r"expected a fusion of this shape, but got width: 16 there, 32 here"):
        pretrain(bank, changed(METHOD, {"fusion": {"width": 32}}), tmp_path / "wide", device="cpu", start=trained)
    co = Adaptor.from_bank(bank, fusion="co", width=16, heads=2, layers=2)
    co.save_pretrained(tmp_path / "co")
    with pytest.raises(InputError, match=r"expected a fusion of this shape, but got kind: co there, cross here"):
        pretrain(bank, METHOD, tmp_path / "kind", device="cpu", start=tmp_path / "co")
    info = replace(bank.info, images=replace(bank.info.images, fingerprint="cc" * 32))
    other = write_tiny_bank(tmp_path / "other")
    other.info = info
    with pytest.raises(InputError, match="expected Tokens of fake:image"):
        pretrain(other, METHOD, tmp_path / "run", device="cpu", start=trained)
