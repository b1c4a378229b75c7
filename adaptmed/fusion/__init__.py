"""The trainable cross-modal part: Tokens of both modalities in, Fused out."""

from adaptmed.fusion.config import CrossConfig
from adaptmed.fusion.cross import CrossFusion
from adaptmed.fusion.released import ReleasedCrossFusion

Fusion = CrossFusion | ReleasedCrossFusion

__all__ = ["CrossConfig", "CrossFusion", "Fusion", "ReleasedCrossFusion", "build_fusion"]


def build_fusion(config: CrossConfig) -> Fusion:
    """Build the fusion that ``config`` describes, with fresh weights from torch's global generator."""
    return ReleasedCrossFusion(config) if config.faithful else CrossFusion(config)
