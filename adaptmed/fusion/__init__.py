"""The trainable part: Tokens of images, or of both modalities, in; Fused out."""

from collections.abc import Callable, Mapping
from typing import Any

from adaptmed.fusion.base import Capabilities, Streams
from adaptmed.fusion.co import CoFusion
from adaptmed.fusion.config import CoConfig, CrossConfig, FusionConfig
from adaptmed.fusion.cross import CrossFusion
from adaptmed.fusion.released import ReleasedCrossFusion

Fusion = CrossFusion | ReleasedCrossFusion | CoFusion

__all__ = [
    "Capabilities",
    "CoConfig",
    "CoFusion",
    "CrossConfig",
    "CrossFusion",
    "Fusion",
    "FusionConfig",
    "ReleasedCrossFusion",
    "Streams",
    "build_fusion",
]


def _cross(config: CrossConfig) -> CrossFusion | ReleasedCrossFusion:
    return ReleasedCrossFusion(config) if config.faithful else CrossFusion(config)


FUSIONS: Mapping[str, Callable[[Any], Fusion]] = {CrossConfig.kind: _cross, CoConfig.kind: CoFusion}
"""Kind of fusion → what builds it."""


def build_fusion(config: FusionConfig) -> Fusion:
    """Build the fusion that ``config`` describes, with fresh weights from torch's global generator."""
    return FUSIONS[config.kind](config)
