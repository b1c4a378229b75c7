"""Encoders in the training loop: where LoRA is trained, images are read and encoded anew in every step."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import cpu_count
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adaptmed.adaptor.frozen import FrozenEncoders
from adaptmed.bank.layout import Layout, arrange_image, arrange_text
from adaptmed.errors import InputError, sentence
from adaptmed.lora import LoRA
from adaptmed.types import Batch


@dataclass(frozen=True, kw_only=True)
class Online:
    """How encoders are trained in the loop; a side without LoRA is read from the bank.

    Attributes:
        image_lora: LoRA inside the image encoder.
        text_lora: LoRA inside the text encoder.
        augment: Change training images at random (small turns, shifts, scales, contrast; no flip).
        checkpointing: Compute activations again in the backward pass instead of keeping them.
        accumulate: Batches whose gradients make one step; negatives come from one batch.
        learning_rate: Peak rate of LoRA.
        workers: Threads that read images.

    Raises:
        InputError: If nothing is to be trained, or a number is out of range.
    """

    image_lora: LoRA | None = None
    text_lora: LoRA | None = None
    augment: bool = True
    checkpointing: bool = False
    accumulate: int = 1
    learning_rate: float = 3e-4
    workers: int = field(default_factory=lambda: min(8, cpu_count() or 1))

    def __post_init__(self) -> None:
        if self.image_lora is None and self.text_lora is None:
            fix = "Leave online out: the bank has all that is needed."
            raise InputError(sentence("online", expected="LoRA in one encoder or both", got="none", fix=fix))
        for name in ("accumulate", "workers"):
            if getattr(self, name) < 1:
                raise InputError(sentence(name, expected="at least 1", got=getattr(self, name), fix="Pass 1."))


class OnlineEncoders(nn.Module):
    """Gives a batch the Tokens of the encoders that have LoRA, in the bank's layout; the others keep the bank's.

    Args:
        encoders: With the tuned ones in memory.
        online: Which are tuned, and whether activations are kept.
    """

    def __init__(self, encoders: FrozenEncoders, online: Online) -> None:
        super().__init__()
        self.encoders = encoders
        self.online = online
        self.layout = Layout.parse(encoders.layout)
        if online.checkpointing:
            for encoder, lora in ((encoders.image, online.image_lora), (encoders.text, online.text_lora)):
                if encoder is not None and lora is not None:
                    checkpoint_blocks(encoder.blocks)
        self.train()

    def forward(self, batch: Batch) -> Batch:
        """Encode pixels and word ids; a last batch whose items all lie on other processes comes back as it is."""
        if not len(batch):
            return batch
        if self.online.image_lora is not None:
            assert self.encoders.image is not None  # pretrain loads what it tunes
            assert batch.pixels is not None
            batch = replace(batch, image=arrange_image(self.encoders.image(batch.pixels), self.layout))
        if self.online.text_lora is not None:
            assert self.encoders.text is not None
            assert batch.input_ids is not None
            assert batch.ids_valid is not None
            batch = replace(batch, text=arrange_text(self.encoders.text(batch.input_ids, batch.ids_valid), self.layout))
        return batch


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Let every block compute its activations again in the backward pass; names and state stay as they are."""
    for block in blocks:
        block.forward = _Again(block.forward)


class _Again:
    """A forward pass that keeps its inputs alone."""

    def __init__(self, forward: Any) -> None:
        self.plain = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(*inputs, **options)
        return checkpoint(self.plain, *inputs, use_reentrant=False, **options)
