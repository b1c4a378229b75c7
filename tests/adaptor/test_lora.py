"""An Adaptor with LoRA: what it trains, saves, loads and merges, and that plain peft opens what it saved."""

import copy
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from peft import PeftModel

from adaptmed.adaptor.model import Adaptor
from adaptmed.errors import FingerprintError, InputError
from adaptmed.lora import LoRA
from tests.tiny_models import bert_config, hf_text, vit

TEXTS = ["small left effusion", "no nodule seen"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    torch.manual_seed(0)
    return vit("vit_tiny_patch16_224"), hf_text(bert_config(), tmp_path_factory.mktemp("bert"))


@pytest.fixture
def adaptor(encoders):
    image, text = copy.deepcopy(encoders)
    lora = {"image_lora": LoRA(rank=2), "text_lora": LoRA(rank=3, roles=("attention", "mlp"))}
    adaptor = Adaptor.from_encoders(image, text, width=16, heads=2, layout="all", **lora)
    with torch.no_grad():
        for parameter in adaptor.encoders.lora_parameters():
            parameter.normal_(std=0.05)
    return adaptor


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (90, 120), dtype=np.uint8) for _ in TEXTS]


def fused(adaptor, images):
    with torch.no_grad():
        return adaptor(images=images, texts=TEXTS).joint


def test_lora_is_counted_as_trainable_and_the_rest_as_frozen(adaptor, encoders, capsys):
    lora = sum(parameter.numel() for parameter in adaptor.encoders.lora_parameters())
    frozen = sum(parameter.numel() for encoder in encoders for parameter in encoder.module.parameters())
    fusion = sum(parameter.numel() for parameter in adaptor.fusion.parameters())
    adaptor.print_trainable_parameters()
    trainable = {parameter for parameter in adaptor.parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in trainable) == lora + fusion
    assert capsys.readouterr().out.startswith(
        f"trainable params: {lora + fusion:,} || all params: {lora + fusion + frozen:,} || trainable%: "
    )


def test_a_step_moves_lora_and_fusion_and_no_pretrained_weight(adaptor, encoders, images):
    trained = [parameter for parameter in adaptor.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    optimiser = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        output = adaptor.train()(images=images, texts=TEXTS)
        gap = (output.image_embedding @ output.text_embedding.T * adaptor.fusion.scale()).logsumexp(1).sum()
        (gap + output.joint.square().sum()).backward()
        optimiser.step()
    still = [p.shape for p, old in zip(trained, before, strict=True) if torch.equal(p, old)]
    assert still == []
    found = adaptor.encoders.image.fingerprint(), adaptor.encoders.text.fingerprint()
    assert found == tuple(encoder.fingerprint() for encoder in encoders)


def test_saved_and_loaded_it_gives_the_same(adaptor, encoders, images, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    image, text = copy.deepcopy(encoders)
    other = Adaptor.from_pretrained(tmp_path / "saved", image_encoder=image, text_encoder=text)
    assert torch.equal(fused(other, images), fused(adaptor, images))
    names = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert {"adaptor.safetensors", "image_lora/adapter_model.safetensors", "text_lora/adapter_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    other.load_encoders()  # nothing to do
    assert torch.equal(fused(other, images), fused(adaptor, images))


def test_without_encoders_in_memory_it_is_saved_again_with_its_lora(adaptor, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    Adaptor.from_pretrained(tmp_path / "saved", load_encoders=False).save_pretrained(tmp_path / "again")
    for part in ("image_lora", "text_lora"):
        one, two = (tmp_path / name / part / "adapter_model.safetensors" for name in ("saved", "again"))
        assert one.read_bytes() == two.read_bytes()
    records = [json.loads((tmp_path / name / "adaptmed_config.json").read_text()) for name in ("saved", "again")]
    assert records[0] == records[1]
    assert records[0]["image"]["lora"]


def test_encoders_with_other_lora_are_refused(adaptor, encoders, tmp_path):
    adaptor.save_pretrained(tmp_path / "saved")
    image, text = copy.deepcopy(adaptor.encoders.image), copy.deepcopy(encoders[1])
    next(image.lora.parameters()).data += 1.0
    with pytest.raises(FingerprintError, match=r"`image encoder`: .* with LoRA [0-9a-f]{64}, but got .* LoRA"):
        Adaptor.from_pretrained(tmp_path / "saved", image_encoder=image, text_encoder=text)
    plain = Adaptor.from_encoders(*copy.deepcopy(encoders), width=16, heads=2, layout="all")
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(FingerprintError, match="with LoRA None, but got weights with LoRA"):
        Adaptor.from_pretrained(tmp_path / "plain", image_encoder=image, text_encoder=text)


def test_merged_gives_plain_encoders_and_unmerged_the_exact_originals(adaptor, encoders, images, tmp_path):
    before = fused(adaptor, images)
    adaptor.merge_lora()
    assert type(adaptor.encoders.image.module.blocks[0].attn.qkv) is torch.nn.Linear
    torch.testing.assert_close(fused(adaptor, images), before, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"LoRA beside the weights, but got merged\. Call unmerge_lora"):
        adaptor.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    adaptor.unmerge_lora()
    assert torch.equal(fused(adaptor, images), before)
    assert adaptor.encoders.image.fingerprint() == encoders[0].fingerprint()
    adaptor.save_pretrained(tmp_path / "saved")


def test_the_snippet_of_the_readme_opens_it_with_plain_peft(adaptor, encoders, tmp_path, monkeypatch):
    adaptor.save_pretrained(tmp_path / "my-adaptor")
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    snippet = re.search(r"```python\n(import timm\n.*?)```", readme, re.DOTALL).group(1)
    base = copy.deepcopy(encoders[0].module)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: base)
    monkeypatch.chdir(tmp_path)
    pixels = torch.randn(2, 3, 112, 112)
    names = {"pixels": pixels}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exec(snippet, names)
        assert isinstance(names["tuned"], PeftModel)
        assert torch.equal(names["features"], adaptor.encoders.image(pixels).values)
