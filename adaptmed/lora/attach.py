"""Putting LoRA on a frozen encoder, and writing and reading it in peft's own layout."""

import json
import warnings
from difflib import get_close_matches
from pathlib import Path
from re import escape

import torch
from peft import LoraConfig, PeftConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora.layer import MultiheadAttention as LoraAttention
from safetensors.torch import load_file
from torch import nn

from adaptmed.errors import FingerprintError, InputError, sentence
from adaptmed.lora.settings import Attached, LoRA, Tunable
from adaptmed.types import Role

BASE_FILE = "adaptmed_base.json"
TENSOR_FILE = "adapter_model.safetensors"


def layers_of(encoder: Tunable, role: Role) -> tuple[str, ...]:
    """Full names, relative to ``encoder.module``, of the layers a role means.

    Only layers inside the encoder's blocks count: a pooling head is not part of every token's way.

    Raises:
        InputError: The network has none; the nearest layers are named.

    Example:
        >>> from adaptmed import load_image_encoder
        >>> len(layers_of(load_image_encoder("bundled:dinov2-small"), "attention"))
        24
    """
    suffixes = tuple(f".{suffix}" for suffix in encoder.roles.get(role, ()))
    inside = {part for block in encoder.blocks for part in block.modules()}
    names = [name for name, layer in encoder.module.named_modules() if layer in inside]
    found = tuple(name for name in names if suffixes and f".{name}".endswith(suffixes))
    if found:
        return found
    kinds = {name.rpartition(".")[2] for name, layer in encoder.module.named_modules() if hasattr(layer, "weight")}
    near = get_close_matches(role, kinds, n=3, cutoff=0.3) or sorted(kinds)[:3]
    there = ", ".join(encoder.roles) or "no role"
    fix = f"It has layers for {there}; the nearest names are {', '.join(near)}."
    raise InputError(sentence(f"roles: {role}", expected=f"layers of this kind in {encoder.name}", got="none", fix=fix))


def attach(encoder: Tunable, lora: LoRA, *, seed: int = 0, adapter: str = "default") -> None:
    """Put fresh LoRA on the library's own module, in place; it changes nothing until it is trained.

    Args:
        encoder: Frozen; its fingerprint stays what it was.
        lora: What is tuned, and how.
        seed: Of the fresh weights; the global generator is left alone.
        adapter: peft's name for it; the newest one is in use.

    Raises:
        InputError: A role without layers, dropout on ``nn.MultiheadAttention``, or a name that is taken.
    """
    config = _config(encoder, lora)
    if encoder.lora is not None and adapter in encoder.lora.model.peft_config:
        fix = "Give the new one another name."
        raise InputError(sentence("adapter", expected="a name that is not taken", got=adapter, fix=fix))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add(encoder, config, adapter)


def save(encoder: Tunable, folder: Path, *, adapter: str = "default") -> None:
    """Write LoRA in peft's own layout, which plain peft opens on the library's own module.

    Beside it stands ``adaptmed_base.json`` with the name and the fingerprint of the base: peft itself puts an adapter
    on any base of fitting shapes.

    Raises:
        InputError: The encoder has no LoRA of that name.
    """
    attached = encoder.lora
    if attached is None or adapter not in attached.model.peft_config:
        fix = "Call adaptmed.lora.attach first."
        raise InputError(sentence("encoder", expected=f"LoRA named {adapter}", got="none", fix=fix))
    attached.model.save_pretrained(str(folder), selected_adapters=[adapter], save_embedding_layers=False)
    facts = {"name": encoder.name, "fingerprint": encoder.fingerprint()}
    (folder / BASE_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def load(encoder: Tunable, folder: Path, *, adapter: str = "default") -> None:
    """Put saved LoRA on a frozen encoder, in place; it can be trained on.

    Raises:
        InputError: The folder holds no LoRA in safetensors, or a name that is taken.
        FingerprintError: It was saved for another base; both are named.
    """
    saved = _saved(folder)
    _check_base(encoder, folder)
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False
    if encoder.lora is not None and adapter in encoder.lora.model.peft_config:
        fix = "Give it another name."
        raise InputError(sentence("adapter", expected="a name that is not taken", got=adapter, fix=fix))
    with torch.random.fork_rng(devices=[]):
        add(encoder, config, adapter)
    set_peft_model_state_dict(standing(encoder).model, load_file(saved), adapter_name=adapter)


def saved_parameters(folder: Path) -> int:
    """Count the parameters of saved LoRA, without the encoder it is for.

    Raises:
        InputError: The folder holds no LoRA in safetensors.
    """
    return sum(tensor.numel() for tensor in load_file(_saved(folder)).values())


def _saved(folder: Path) -> Path:
    if not (folder / TENSOR_FILE).is_file():
        fix = "Name the folder image_lora or text_lora of a saved adaptor."
        raise InputError(sentence(str(folder), expected=f"LoRA in {TENSOR_FILE}", got="none", fix=fix))
    return folder / TENSOR_FILE


def _config(encoder: Tunable, lora: LoRA) -> LoraConfig:
    names = [name for role in lora.roles for name in layers_of(encoder, role)]
    layers = [encoder.module.get_submodule(name) for name in names]
    if lora.dropout and any(isinstance(layer, nn.MultiheadAttention) for layer in layers):
        fix = "Pass dropout=0, or tune the role mlp."
        got = f"{lora.dropout} on nn.MultiheadAttention"
        raise InputError(sentence("dropout", expected="0: peft adds the update to its weights", got=got, fix=fix))
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale * lora.rank,
        lora_dropout=lora.dropout,
        target_modules="|".join(escape(name) for name in names),  # a pattern for whole names, no suffixes
    )


def add(encoder: Tunable, config: PeftConfig, adapter: str) -> None:
    """Let peft change the module, and say in its configuration what the base was, which peft cannot know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the base has no name yet, a second adapter is what was asked for
        if encoder.lora is None:
            encoder.lora = Attached(get_peft_model(encoder.module, config, adapter_name=adapter))
        else:
            encoder.lora.model.add_adapter(adapter, config)
            encoder.lora.model.set_adapter(adapter)
    source, _, model = encoder.name.partition(":")
    model, _, revision = model.partition("@")
    written = standing(encoder).model.peft_config[adapter]
    written.base_model_name_or_path = model if source == "hf" else f"{source}:{model}"
    written.revision = revision or "main"
    for layer in encoder.module.modules():
        if isinstance(layer, LoraAttention) and not layer._forward_pre_hooks:
            layer.register_forward_pre_hook(_remember)
            layer.register_forward_hook(_restore, always_call=True)
    encoder.module.eval()


def standing(encoder: Tunable) -> Attached:
    """What was put on an encoder."""
    assert encoder.lora is not None  # it was just put there
    return encoder.lora


def _check_base(encoder: Tunable, folder: Path) -> None:
    if not (folder / BASE_FILE).is_file():
        return
    facts = json.loads((folder / BASE_FILE).read_text())
    if facts["fingerprint"] != encoder.fingerprint():
        raise FingerprintError(
            sentence(
                str(folder),
                expected=f"LoRA for {encoder.name} ({encoder.fingerprint()})",
                got=f"LoRA for {facts['name']} ({facts['fingerprint']})",
                fix="Load it on the encoder it was trained with.",
            )
        )


def _remember(layer: LoraAttention, _inputs: object) -> None:
    """Keep the pretrained tensors, because peft subtracts its update after each pass and so loses their last bits."""
    base = layer.get_base_layer()
    layer.pretrained = (base.in_proj_weight, base.out_proj.get_base_layer().weight)


def _restore(layer: LoraAttention, _inputs: object, _output: object) -> None:
    base = layer.get_base_layer()
    places = ((base, "in_proj_weight"), (base.out_proj.get_base_layer(), "weight"))
    for (holder, name), kept in zip(places, layer.pretrained, strict=True):
        if getattr(holder, name) is not kept:
            delattr(holder, name)
            holder.register_parameter(name, kept)
