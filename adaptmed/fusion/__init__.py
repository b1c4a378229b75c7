"""The trainable part: Tokens of images, or of both modalities, in; Fused out."""

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


def build_fusion(config: FusionConfig) -> Fusion:
    """Build the fusion that ``config`` describes, with fresh weights from torch's global generator."""
    if isinstance(config, CoConfig):
        return CoFusion(config)
    return ReleasedCrossFusion(config) if config.faithful else CrossFusion(config)
