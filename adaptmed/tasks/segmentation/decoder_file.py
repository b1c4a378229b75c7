"""A trained decoder on disk: its tensors, and beside them what it reads, says and was trained with."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_tensors, write_text_whole
from adaptmed.heads.decoders import Decoder, DecoderConfig, build_decoder, from_json, to_json
from adaptmed.tasks.segmentation.settings import SegmentationSettings

FACTS, TENSORS = "decoder.json", "decoder.safetensors"


@dataclass(frozen=True, kw_only=True)
class DecoderFacts:
    """What a decoder reads and says.

    Attributes:
        config: Its shape.
        labels: Value in mask files → name, in the order of the classes, background first.
        settings: How it was trained: batch, window and precision are those of prediction too.
        taps: Taps that the encoder is asked for, the deepest counted; 0 for none.
        plane: Of the slices of volumes; ``None`` for pictures.
        window: Level and width of volumes' values; ``None`` takes percentiles.
    """

    config: DecoderConfig
    labels: Mapping[int, str]
    settings: SegmentationSettings
    taps: int = 0
    plane: str | None = None
    window: tuple[float, float] | None = None


def save_decoder(folder: Path, decoder: nn.Module, facts: DecoderFacts) -> None:
    """Write a decoder; the facts last."""
    write_tensors(folder / TENSORS, decoder.state_dict())
    found = {
        "decoder": to_json(facts.config),
        "labels": {str(value): name for value, name in facts.labels.items()},
        "settings": asdict(facts.settings),
        "taps": facts.taps,
        "plane": facts.plane,
        "window": facts.window,
    }
    write_text_whole(folder / FACTS, json.dumps(found, indent=2) + "\n")


def load_decoder(folder: Path) -> tuple[Decoder, DecoderFacts]:
    """Read the decoder of a fine-tuned run, in evaluation mode.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = folder / FACTS
    if not path.is_file():
        fix = "Name the run folder of `adaptmed finetune --task segmentation`, and run it to its end."
        raise InputError(sentence(str(folder), expected=f"a decoder in {FACTS}", got="none", fix=fix))
    try:
        found = json.loads(path.read_text())
        facts = _facts(found)
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and replaced
            decoder = build_decoder(facts.config)
        decoder.load_state_dict(load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        got, fix = f"{type(error).__name__}: {str(error)[:200]}", "Run `adaptmed finetune` again into another --out."
        raise InputError(sentence(str(path), expected="a whole decoder", got=got, fix=fix)) from error
    return decoder.eval(), facts


def _facts(found: Mapping[str, Any]) -> DecoderFacts:
    window = found["window"]
    return DecoderFacts(
        config=from_json(found["decoder"]),
        labels={int(value): str(name) for value, name in found["labels"].items()},
        settings=SegmentationSettings(**found["settings"]),
        taps=found["taps"],
        plane=found["plane"],
        window=None if window is None else (window[0], window[1]),
    )
