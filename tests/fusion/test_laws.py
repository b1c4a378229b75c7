"""Laws that hold for every arrangement of the fusion."""

import math
from dataclasses import replace

import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.fusion import CoConfig, CrossConfig, FusionConfig, build_fusion
from adaptmed.objectives.contrastive import info_nce
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


def images(config: FusionConfig, batch: int, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    token = config.image_prefix + 12
    values = torch.randn(batch, token, config.image_width, generator=generator)
    valid = torch.ones(batch, token, dtype=torch.bool)
    return Tokens(values, valid, values.mean(1), (3, 4), config.image_prefix)


def texts(config: FusionConfig, lengths: list[int], seed: int = 1) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(lengths), max(lengths), config.text_width, generator=generator)
    valid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return Tokens(values, valid, values.mean(1))


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def fusion(config):
    return build_fusion(config).eval()


def outputs(fused):
    return [fused.image.values, fused.text.values, fused.joint, fused.image_embedding, fused.text_embedding]


def test_other_items_of_the_batch_do_not_matter(fusion, config):
    image, text = images(config, 4), texts(config, [5, 2, 7, 1])
    whole = outputs(fusion(image, text))
    rows = torch.tensor([2, 0])
    part = outputs(fusion(image.select(rows), text.select(rows)))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[rows], b, rtol=1e-5, atol=1e-6)


def test_padding_is_invisible(fusion, config):
    image, text = images(config, 3), texts(config, [5, 2, 4])
    junk = torch.full((3, 6, config.text_width), 1e3)
    longer = replace(
        text,
        values=torch.cat([text.values, junk], 1),
        valid=torch.cat([text.valid, torch.zeros(3, 6, dtype=torch.bool)], 1),
    )
    a, b = fusion(image, text), fusion(image, longer)
    torch.testing.assert_close(a.text_embedding, b.text_embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.joint, b.joint, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.image.values, b.image.values, rtol=1e-5, atol=1e-6)


def test_padding_in_front_is_invisible_too(fusion, config):
    text = texts(config, [5, 5])
    front = torch.full((2, 3, config.text_width), float("nan"))
    shifted = replace(
        text,
        values=torch.cat([front, text.values], 1),
        valid=torch.cat([torch.zeros(2, 3, dtype=torch.bool), text.valid], 1),
    )
    torch.testing.assert_close(fusion.embed_text(shifted), fusion.embed_text(text), rtol=1e-5, atol=1e-6)
    fused, moved = fusion(images(config, 2), text), fusion(images(config, 2), shifted)
    torch.testing.assert_close(moved.joint, fused.joint, rtol=1e-5, atol=1e-6)


def test_no_text_at_all_gives_no_embedding(fusion, config):
    nothing = texts(config, [3, 4]).select(torch.tensor([], dtype=torch.long))
    assert fusion.embed_text(nothing).shape == (0, fusion.width)


def test_one_modality_may_be_missing(fusion, config):
    image, text = images(config, 2), texts(config, [3, 4])
    alone = fusion(image=image)
    assert alone.text is None
    assert alone.joint is None
    assert alone.text_embedding is None
    torch.testing.assert_close(alone.image_embedding, fusion(image, text).image_embedding)
    alone = fusion(text=text)
    assert alone.image is None
    assert alone.image_embedding is None
    torch.testing.assert_close(alone.text_embedding, fusion(image, text).text_embedding)


def test_an_item_without_a_text_stays_finite_in_both_directions(fusion, config):
    image, text = images(config, 2), texts(config, [3, 4])
    text = replace(text, valid=text.valid & torch.tensor([[True], [False]]), values=text.values.requires_grad_())
    fused = fusion(image, text)
    for value in outputs(fused):
        assert value.isfinite().all()
    fused.joint.sum().backward()
    assert text.values.grad is None or text.values.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


def test_an_embedding_does_not_see_the_other_side(fusion, config):
    image, text, other = images(config, 3), texts(config, [3, 5, 4]), texts(config, [6, 2, 4], seed=9)
    a, b = fusion(image, text), fusion(image, other)
    assert torch.equal(a.image_embedding, b.image_embedding)
    a, b = fusion(image, text), fusion(images(config, 3, seed=8), text)
    assert torch.equal(a.text_embedding, b.text_embedding)


def test_the_pair_reads_each_other_unless_released(fusion, config):
    image, text, other = images(config, 2), texts(config, [3, 5]), texts(config, [3, 5], seed=9)
    a, b = fusion(image, text), fusion(image, other)
    same = torch.allclose(a.image.values, b.image.values, atol=1e-5)
    assert same == (
        config is CONFIGS["released"]
    )  # over one key attention is constant: the released arrangement crosses nothing


def test_embeddings_are_unit_vectors_of_the_fusions_width(fusion, config):
    embedding = fusion.embed_image(images(config, 5))
    assert embedding.shape == (5, config.width)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))


def test_every_trainable_parameter_moves_in_three_steps(config):
    fusion = build_fusion(config)
    head = torch.nn.Linear(2 * config.width, 1)
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    optimiser = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.0)
    for step in range(3):
        image, text = images(config, 6, seed=step), texts(config, [3, 5, 4, 2, 6, 1], seed=step + 50)
        loss = info_nce(fusion.embed_image(image), fusion.embed_text(text), scale=fusion.scale())
        loss = loss + head(fusion.fuse(image, text)[2]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    still = [name for name, p in fusion.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_bfloat16_stays_close(fusion, config):
    image, text = images(config, 3), texts(config, [3, 5, 4])
    exact = outputs(fusion(image, text))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = outputs(fusion(image, text))
    for a, b in zip(rough, exact, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=2e-2, atol=2e-2)


def test_both_missing_is_refused(fusion):
    with pytest.raises(InputError, match="expected at least one of them, but got neither"):
        fusion()


def test_unequal_batches_are_refused(fusion, config):
    with pytest.raises(InputError, match=r"as many texts as images \(2\), but got 3"):
        fusion(images(config, 2), texts(config, [1, 2, 3]))


@pytest.mark.parametrize(("width", "count"), [(512, 12_011_009), (384, 11_912_705), (768, 12_207_617)])
def test_released_parameter_counts_are_the_papers(width, count):
    assert sum(p.numel() for p in build_fusion(CrossConfig.released(width)).parameters()) == count


def test_released_pair_equals_each_side_alone():
    config = CONFIGS["released"]
    fusion = build_fusion(config).eval()
    image, text = images(config, 3), texts(config, [3, 5, 4])
    fused = fusion(image, text)
    unit = torch.nn.functional.normalize(fused.image.values[:, 0], dim=-1)
    torch.testing.assert_close(unit, fused.image_embedding, rtol=1e-5, atol=1e-6)
    unit = torch.nn.functional.normalize(fused.text.values[:, 0], dim=-1)
    torch.testing.assert_close(unit, fused.text_embedding, rtol=1e-5, atol=1e-6)


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
