"""LoRA added to the weights it stands on, and taken away again without a trace."""

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention as LoraAttention
from torch import Tensor, nn

from adaptmed.lora.attach import add, standing
from adaptmed.lora.settings import Merged, Tunable


def merge(encoder: Tunable) -> None:
    """Add the LoRA in use to the weights, so that the module is the library's plain one with the same features.

    ``unmerge`` puts back every weight bit for bit, and all LoRA. Nothing happens where there is none.
    """
    attached = encoder.lora
    if attached is None or attached.merged is not None:
        return
    model, active = attached.model, attached.model.active_adapters[0]
    tuned = _tuned_weights(encoder.module)
    kept = {name: (config, _tensors(model, name)) for name, config in model.peft_config.items()}
    attached.merged = Merged({name: value.detach().clone() for name, value in tuned.items()}, kept, active)
    model.merge_and_unload()
    encoder.module.requires_grad_(requires_grad=False)


def unmerge(encoder: Tunable) -> None:
    """Undo ``merge``. Nothing happens where nothing is merged."""
    attached = encoder.lora
    if attached is None or attached.merged is None:
        return
    merged = attached.merged
    with torch.no_grad():
        for name, value in merged.weights.items():
            encoder.module.get_parameter(name).copy_(value)
    encoder.lora = None
    for adapter, (config, tensors) in merged.adapters.items():
        with torch.random.fork_rng(devices=[]):
            add(encoder, config, adapter)
        set_peft_model_state_dict(standing(encoder).model, dict(tensors), adapter_name=adapter)
    standing(encoder).model.set_adapter(merged.active)


def _tensors(model: PeftModel, adapter: str) -> dict[str, Tensor]:
    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: tensor.clone() for name, tensor in found.items()}


def _tuned_weights(module: nn.Module) -> dict[str, Tensor]:
    """Pretrained tensors that merging changes, by their name in the library's plain module."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            plain = name.replace(".base_layer", "")
            base = layer.get_base_layer()
            weight = "in_proj_weight" if isinstance(layer, LoraAttention) else "weight"
            found[f"{plain}.{weight}"] = getattr(base, weight)
    return found
