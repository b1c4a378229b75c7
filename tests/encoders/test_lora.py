"""LoRA on every encoder: by role, nothing changes until it is trained, the pretrained weights never do."""

import copy
import json
import warnings

import pytest
import torch
from peft import PeftModel
from torch import nn

from adaptmed import lora
from adaptmed.errors import FingerprintError, InputError
from adaptmed.lora import LoRA
from tests.encoders.test_contract import close, encode

COUNTS = {  # layers of the roles attention and mlp in each encoder of this suite
    "timm-vit": (8, 8),
    "timm-registers": (8, 8),
    "timm-map": (8, 8),
    "timm-eva": (4, 8),
    "timm-efficientnet": (0, 6),
    "clip-vit": (4, 8),
    "clip-resnet": (0, 12),
    "hf-vit": (16, 8),
    "hf-dinov2": (16, 8),
    "hf-registers": (16, 8),
    "hf-clip": (16, 8),
    "hf-bert": (16, 8),
    "hf-roberta": (16, 8),
    "hf-distilbert": (16, 8),
    "clip-text": (4, 8),
    "clip-custom": (4, 8),
    "clip-hf": (16, 8),
    "bundled-dinov2": (24, 24),
    "bundled-lite0": (0, 31),
    "bundled-minilm": (24, 12),
}


@pytest.fixture
def fresh(encoder):
    if not encoder.roles:
        pytest.skip("no layer of this network takes LoRA")
    return copy.deepcopy(encoder)


@pytest.fixture
def tuned(fresh):
    lora.attach(fresh, LoRA(rank=3, roles=tuple(fresh.roles)))
    with torch.no_grad():
        for parameter in fresh.lora.parameters():
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(parameter.numel()))
    return fresh


def values(encoder):
    with torch.no_grad():
        return encode(encoder).values


def has_attention_module(encoder):
    return any(isinstance(layer, nn.MultiheadAttention) for layer in encoder.module.modules())


@pytest.mark.parametrize("name", COUNTS)
def test_a_role_means_these_layers(name, tmp_path):
    from tests.tiny_models import IMAGE, TEXT

    encoder = IMAGE[name]() if name in IMAGE else TEXT[name](tmp_path)
    for role, count in zip(("attention", "mlp"), COUNTS[name], strict=True):
        if count:
            assert len(lora.layers_of(encoder, role)) == count
        else:
            with pytest.raises(InputError, match=rf"`roles: {role}`.*but got none. It has layers for mlp; the nearest"):
                lora.layers_of(encoder, role)


def test_fresh_lora_changes_nothing_and_draws_nothing(fresh):
    before, state = values(fresh), torch.get_rng_state()
    lora.attach(fresh, LoRA(roles=tuple(fresh.roles)))
    assert torch.equal(torch.get_rng_state(), state)
    if has_attention_module(fresh):
        assert close(values(fresh), before)  # peft adds the update to the weights of nn.MultiheadAttention
    else:
        assert torch.equal(values(fresh), before)


def test_the_seed_decides_the_fresh_weights(fresh):
    other = copy.deepcopy(fresh)
    lora.attach(fresh, LoRA(roles=tuple(fresh.roles)), seed=1)
    lora.attach(other, LoRA(roles=tuple(fresh.roles)), seed=1)
    pairs = list(zip(fresh.lora.parameters(), other.lora.parameters(), strict=True))
    assert pairs
    assert all(torch.equal(one, two) for one, two in pairs)


def test_training_moves_all_of_lora_and_nothing_else(fresh):
    print_before, mode = fresh.fingerprint(), fresh.module.training
    lora.attach(fresh, LoRA(rank=2, roles=tuple(fresh.roles)))
    parameters = list(fresh.lora.parameters())
    trained = [parameter for parameter in fresh.module.parameters() if parameter.requires_grad]
    assert {id(p) for p in parameters} == {id(p) for p in trained}
    before = [parameter.detach().clone() for parameter in parameters]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2)
    target = torch.randn(encode(fresh).values.shape)
    for _ in range(3):
        optimiser.zero_grad()
        (encode(fresh.train()).values - target).square().mean().backward()
        optimiser.step()
    assert all(not torch.equal(one, two) for one, two in zip(parameters, before, strict=True))
    assert fresh.fingerprint() == print_before
    assert fresh.module.training is mode is False


def test_the_fingerprint_does_not_see_lora_trained_or_not(tuned, encoder):
    assert tuned.fingerprint() == encoder.fingerprint()
    tuned.module.requires_grad_(requires_grad=False)
    assert tuned.fingerprint() == encoder.fingerprint()


def test_merged_it_is_the_plain_module_and_unmerged_exactly_as_before(tuned, encoder):
    before = values(tuned)
    assert not torch.equal(before, values(encoder))
    plain = {name for name, _ in encoder.module.named_parameters()}
    lora.merge(tuned)
    lora.merge(tuned)  # once more is nothing more
    assert {name for name, _ in tuned.module.named_parameters()} == plain
    assert close(values(tuned), before)
    lora.unmerge(tuned)
    lora.unmerge(tuned)
    assert torch.equal(values(tuned), before)
    assert tuned.fingerprint() == encoder.fingerprint()


def test_it_is_saved_and_loaded_on_a_fresh_base(tuned, encoder, tmp_path):
    lora.save(tuned, tmp_path / "lora")
    other = copy.deepcopy(encoder)
    lora.load(other, tmp_path / "lora")
    assert torch.equal(values(other), values(tuned))
    assert all(parameter.requires_grad for parameter in other.lora.parameters())
    assert sorted(path.suffix for path in (tmp_path / "lora").iterdir()) == [".json", ".json", ".md", ".safetensors"]


def test_plain_peft_opens_it_on_the_library_module(tuned, encoder, tmp_path):
    lora.save(tuned, tmp_path / "lora")
    base = copy.deepcopy(encoder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(base.module, str(tmp_path / "lora"))
    assert torch.equal(values(base), values(tuned))
    facts = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert facts["base_model_name_or_path"] == encoder.name.removeprefix("hf:")
    assert facts["revision"] == "main"


def test_another_base_is_refused(tuned, encoder, tmp_path):
    lora.save(tuned, tmp_path / "lora")
    other = copy.deepcopy(encoder)
    next(other.module.parameters()).data += 1.0
    with pytest.raises(FingerprintError, match=rf"LoRA for .* \({other.fingerprint()}\), but got LoRA for .*"):
        lora.load(other, tmp_path / "lora")
    assert other.lora is None


def test_two_of_one_name_are_refused_two_of_two_names_stand_side_by_side(tuned):
    before = values(tuned)
    with pytest.raises(InputError, match="a name that is not taken, but got default"):
        lora.attach(tuned, LoRA(roles=tuple(tuned.roles)))
    lora.attach(tuned, LoRA(roles=tuple(tuned.roles)), adapter="second")
    assert not torch.equal(values(tuned), before)  # fresh: as if there were none
    tuned.lora.model.set_adapter("default")
    assert torch.equal(values(tuned), before)


def test_a_copy_stands_on_its_own(tuned):
    before, other = values(tuned), copy.deepcopy(tuned)
    lora.merge(other)
    assert torch.equal(values(tuned), before)
    lora.unmerge(other)
    assert torch.equal(values(other), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "`rank`: expected at least 1, but got 0"),
        ({"dropout": 1.0}, r"`dropout`: expected a share in \[0, 1\)"),
        ({"roles": ()}, "`roles`: .* but got none"),
        ({"alpha": -1.0}, "`alpha`"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        LoRA(**wrong)


@pytest.mark.usefixtures("unchecked")
def test_depthwise_convolutions_are_no_role():
    with pytest.raises(
        InputError, match=r"`roles`: .* but got depthwise\. Depthwise convolutions and norms take no LoRA"
    ):
        LoRA.parse("roles=depthwise")


def test_settings_are_read_from_a_command_line():
    assert LoRA.parse("") == LoRA()
    assert LoRA.parse("roles=attention+mlp, rank=4,alpha=2").scale == 0.5
    with pytest.raises(InputError, match=r"`LoRA`: .* but got rnk=4"):
        LoRA.parse("rnk=4")
    with pytest.raises(InputError, match=r"`LoRA`: .* but got rank=four"):
        LoRA.parse("rank=four")


def test_its_own_dropout_works_in_training_alone_and_the_network_stays_in_evaluation_mode():
    from tests.tiny_models import vit

    encoder = vit("vit_tiny_patch16_224", proj_drop_rate=0.5)
    lora.attach(encoder, LoRA(rank=3, dropout=0.5))
    with torch.no_grad():
        for parameter in encoder.lora.parameters():
            parameter.normal_()
    first, second = values(encoder.train()), values(encoder)
    assert not torch.equal(first, second)
    assert not any(part.training for name, part in encoder.module.named_modules() if "lora_dropout" not in name)
    assert torch.equal(values(encoder.eval()), values(encoder))


def test_dropout_on_attention_modules_is_refused():
    from tests.tiny_models import clip_image

    with pytest.raises(InputError, match=r"`dropout`: .*got 0.1 on nn.MultiheadAttention"):
        lora.attach(clip_image(), LoRA(dropout=0.1))


def test_a_folder_without_lora_is_refused(tmp_path):
    from tests.tiny_models import clip_image

    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"LoRA in adapter_model.safetensors, but got none"):
        lora.load(clip_image(), tmp_path)
    with pytest.raises(InputError, match="LoRA named default, but got none"):
        lora.save(clip_image(), tmp_path / "out")
