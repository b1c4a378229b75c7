"""A trained decoder on disk: its tensors, and beside them what it reads, says and was trained with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptmed.heads.decoders import Decoder, DecoderConfig, build_decoder, from_json, to_json
from adaptmed.tasks.head_file import load_head, save_head
from adaptmed.tasks.segmentation.settings import SegmentationSettings
from adaptmed.types import Fit, Preprocessing

NAME = "decoder"
TENSORS = f"{NAME}.safetensors"


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
        fit: How images become square; ``None``, of earlier runs, is the way of the adaptor's own training.
        shown_px: ``(height, width)`` that the decoder sees images at; ``None`` is the encoder's input.
    """

    config: DecoderConfig
    labels: Mapping[int, str]
    settings: SegmentationSettings
    taps: int = 0
    plane: str | None = None
    window: tuple[float, float] | None = None
    fit: Fit | None = None
    shown_px: tuple[int, int] | None = None

    def inputs(self, own: Preprocessing) -> Preprocessing:
        """How images become the encoder's input, of which ``own`` says everything but the fit."""
        return own if self.fit is None else replace(own, fit=self.fit)

    def shown(self, inputs: Preprocessing) -> Preprocessing:
        """How the decoder sees images that become the encoder's input in this way."""
        return inputs if self.shown_px is None else replace(inputs, image_size_px=self.shown_px)


def save_decoder(folder: Path, decoder: nn.Module, facts: DecoderFacts) -> None:
    """Write a decoder; the facts last."""
    found = {
        "decoder": to_json(facts.config),
        "labels": {str(value): name for value, name in facts.labels.items()},
        "settings": asdict(facts.settings),
        "taps": facts.taps,
        "plane": facts.plane,
        "window": facts.window,
        "fit": facts.fit,
        "shown_px": facts.shown_px,
    }
    save_head(folder, NAME, decoder.state_dict(), found)


def load_decoder(folder: Path) -> tuple[Decoder, DecoderFacts]:
    """Read the decoder of a fine-tuned run, in evaluation mode.

    Raises:
        InputError: There is none, or it is damaged.
    """
    return load_head(folder, NAME, _built, task="segmentation")


def _built(found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Decoder, DecoderFacts]:
    facts = _facts(found)
    decoder = build_decoder(facts.config)
    decoder.load_state_dict(dict(tensors))
    return decoder.eval(), facts


def _facts(found: Mapping[str, Any]) -> DecoderFacts:
    window, shown = found["window"], found.get("shown_px")
    return DecoderFacts(
        config=from_json(found["decoder"]),
        labels={int(value): str(name) for value, name in found["labels"].items()},
        settings=SegmentationSettings(**found["settings"]),
        taps=found["taps"],
        plane=found["plane"],
        window=None if window is None else (window[0], window[1]),
        fit=found.get("fit"),
        shown_px=None if shown is None else (shown[0], shown[1]),
    )
