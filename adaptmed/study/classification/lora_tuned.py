"""The arm ``lora-tuned``: fresh LoRA inside a copy of the image encoder, trained on the labels of the fraction.

It is what is mostly meant by parameter-efficient fine-tuning. The arm ``lora`` is another one: a frozen probe on the
Tokens of an encoder whose LoRA was trained outside the study, without labels.
"""

from dataclasses import asdict
from typing import Any

from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.lora.settings import Tunable
from adaptmed.study.classification.arms import Arm
from adaptmed.study.classification.encoder_arm import encoder_arm
from adaptmed.study.classification.rows import StudyRows
from adaptmed.training.settings import BoundedSettings, FinetuneSettings
from adaptmed.training.trainable import trainable_lora
from adaptmed.types import ImageEncoder

LORA_TUNED = BoundedSettings(epochs=5, batch_size=16, least_steps=120, most_steps=1000)
"""Fixed beforehand and not searched: the passes and batches of ``full``, the rates of ``adaptmed finetune --lora``.

Five passes over 1 % of a few thousand images are some ten steps, in which LoRA, which starts at nothing, hardly moves:
there are 120 at least. 1000 at most bound what a cell costs, whatever the size of the table.
"""
RANK = 8


def lora_arm(
    rows: StudyRows, bank: Bank, encoder: ImageEncoder, *, settings: FinetuneSettings = LORA_TUNED, device: str = "auto"
) -> Arm:
    """Tune LoRA and a linear head, as ``encoder_arm`` does; LoRA that is inside is merged into the copy first.

    Args:
        rows: The study's rows.
        bank: The Tokens of ``encoder``, and the way to the images.
        encoder: Never changed; every cell puts LoRA into a copy of its own.
        settings: How to tune.
        device: Lightning's accelerator: ``auto``, ``cpu``, ``cuda``.

    Raises:
        InputError: The encoder has no layers that take LoRA.
    """
    lora = lora_inside(encoder)

    def copies(seed: int) -> ImageEncoder:
        return trainable_lora(encoder, lora, seed=step_seed(seed, -3))

    return encoder_arm(rows, bank, copies, settings=settings, device=device)


def lora_inside(encoder: ImageEncoder) -> LoRA:
    """LoRA for an encoder: in its attention, or in its other layers where it has none.

    Raises:
        InputError: It has no layers that take LoRA.
    """
    roles = encoder.roles if isinstance(encoder, Tunable) else {}
    if not roles:
        fix = "Leave the arm out: --arms frozen, or --arms frozen full."
        got = f"{encoder.name}, which has none"
        raise InputError(sentence("lora-tuned", expected="an encoder with layers that take LoRA", got=got, fix=fix))
    return LoRA(rank=RANK, roles=("attention",) if "attention" in roles else tuple(roles))


def lora_facts() -> dict[str, Any]:
    """What decides a cell of this arm beside the study's settings, for the study's configuration."""
    tuning = {name: value for name, value in asdict(LORA_TUNED).items() if name != "precision"}
    return {**tuning, "rank": RANK}
