"""Embeddings of noise: they learn nothing unless they have seen the pair."""

import math

import pytest
import torch

from adaptmed.fusion import build_fusion
from adaptmed.objectives.contrastive import info_nce
from tests.fusions import CONFIGS, images, texts


def noise_loss(config, embed, steps=150, batch=32):
    """InfoNCE on fresh noise pairs; returns the mean loss on held-out noise."""
    torch.manual_seed(0)
    fusion = build_fusion(config)
    optimiser = torch.optim.AdamW(fusion.parameters(), lr=3e-3)
    for step in range(steps):
        image, text = images(config, batch, seed=10_000 + step), texts(config, [4] * batch, seed=20_000 + step)
        loss = info_nce(*embed(fusion, image, text), scale=fusion.scale())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fusion.eval()
    held_out = []
    with torch.no_grad():
        for step in range(10):
            image, text = images(config, batch, seed=30_000 + step), texts(config, [4] * batch, seed=40_000 + step)
            held_out.append(info_nce(*embed(fusion, image, text), scale=fusion.scale()).item())
    return sum(held_out) / len(held_out)


@pytest.mark.parametrize("kind", ["cross", "co"])
def test_noise_pairs_teach_nothing(kind):
    loss = noise_loss(CONFIGS[kind], lambda fusion, image, text: (fusion.embed_image(image), fusion.embed_text(text)))
    assert abs(loss - math.log(32)) < 0.1


@pytest.mark.parametrize("kind", ["cross", "co"])
def test_embeddings_that_saw_the_pair_would_solve_noise(kind):
    """The control of the law above: with a leak the same training drives the loss far below log(batch)."""

    def leaking(fusion, image, text):
        a, b, _ = fusion.fuse(image, text)
        return tuple(torch.nn.functional.normalize(x.pooled, dim=-1) for x in (a, b))

    assert noise_loss(CONFIGS[kind], leaking) < math.log(32) - 0.5
