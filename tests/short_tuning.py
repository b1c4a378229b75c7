"""Short fine-tunings and what they are compared by."""

import torch
from safetensors.torch import load_file

from adaptmed.lora import LoRA
from adaptmed.tasks.classification.task import Classification
from adaptmed.tasks.finetune import finetune
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import RunOptions

SHORT = FinetuneSettings(epochs=2, batch_size=4, accumulate=3, precision="fp32")
TUNED = {"settings": SHORT, "lora": LoRA(rank=2, roles=("attention", "mlp"), dropout=0.2)}


def tune(bank, run, out, **options):
    """Fine-tune on the CPU; what is no choice of ``Classification`` is an option of the run."""
    choices = {name: options.pop(name) for name in [*options] if name in Classification.__dataclass_fields__}
    return finetune(
        bank, run, out, Classification(**choices), RunOptions(**{"device": "cpu", "checkpoint_every": 1, **options})
    )


def tensors(out):
    parts = ("adaptor/adaptor.safetensors", "adaptor/image_lora/adapter_model.safetensors", "head.safetensors")
    there = [part for part in parts if (out / part).exists()]
    return {f"{part}: {name}": value for part in there for name, value in load_file(out / part).items()}


def same(one, two):
    found = tensors(two)
    return [name for name, value in tensors(one).items() if not torch.equal(value, found[name])] == []
