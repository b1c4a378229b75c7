"""Small shapes of every fusion, of pairs and of images alone, and Tokens that each of them takes."""

from dataclasses import replace

import torch

from adaptmed.fusion import CoConfig, CrossConfig, FusionConfig
from adaptmed.types import Tokens

CONFIGS = {
    "cross": CrossConfig(image_width=12, text_width=10, width=32, layers=2, heads=4, image_grid=(3, 4), image_prefix=1),
    "cross-one-layer-no-prefix": CrossConfig(
        image_width=12, text_width=10, width=16, layers=1, heads=2, image_grid=(3, 4), image_prefix=0
    ),
    "co": CoConfig(image_width=12, text_width=10, width=32, layers=2, heads=4),
    "co-three-layers-no-prefix": CoConfig(image_width=12, text_width=10, width=16, layers=3, heads=2, image_prefix=0),
    "released": replace(CrossConfig.released(12, 10), width=24, heads=4, image_grid=(3, 4), image_prefix=1),
}
ALONE = {
    "cross-alone": replace(CONFIGS["cross"], text_width=None),
    "co-alone": replace(CONFIGS["co"], text_width=None),
    "co-alone-no-prefix": replace(CONFIGS["co-three-layers-no-prefix"], text_width=None),
}
EVERY = CONFIGS | ALONE


def images(config: FusionConfig, batch: int, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    token = config.image_prefix + 12
    values = torch.randn(batch, token, config.image_width, generator=generator)
    valid = torch.ones(batch, token, dtype=torch.bool)
    return Tokens(values, valid, values.mean(1), (3, 4), config.image_prefix)


def texts(config: FusionConfig, lengths: list[int], seed: int = 1) -> Tokens | None:
    """What the fusion reads beside images; ``None`` of images alone."""
    if config.text_width is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), config.text_width, generator=generator)
    valid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Tokens(values, valid, values.mean(1))
