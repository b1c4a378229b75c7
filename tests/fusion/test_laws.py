"""Laws that hold for every arrangement of the fusion."""

from dataclasses import replace

import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.fusion import Capabilities, CoConfig, CrossConfig, Streams, build_fusion
from adaptmed.objectives.contrastive import info_nce
from tests.fusions import ALONE, CONFIGS, EVERY, images, texts


@pytest.fixture(params=EVERY)
def config(request):
    return EVERY[request.param]


@pytest.fixture(params=CONFIGS)
def pair_config(request):
    return CONFIGS[request.param]


@pytest.fixture(params=ALONE)
def alone_config(request):
    return ALONE[request.param]


@pytest.fixture
def fusion(config):
    return build_fusion(config).eval()


@pytest.fixture
def pair_fusion(pair_config):
    return build_fusion(pair_config).eval()


@pytest.fixture
def alone(alone_config):
    return build_fusion(alone_config).eval()


def outputs(fused):
    if fused.text is None:
        return [fused.image.values, fused.image.pooled, fused.image_embedding]
    return [fused.image.values, fused.text.values, fused.joint, fused.image_embedding, fused.text_embedding]


def test_other_items_of_the_batch_do_not_matter(fusion, config):
    image, text = images(config, 4), texts(config, [5, 2, 7, 1])
    whole = outputs(fusion(image, text))
    rows = torch.tensor([2, 0])
    part = outputs(fusion(image.select(rows), None if text is None else text.select(rows)))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[rows], b, rtol=1e-5, atol=1e-6)


def test_padding_is_invisible(pair_fusion, pair_config):
    image, text = images(pair_config, 3), texts(pair_config, [5, 2, 4])
    junk = torch.full((3, 6, pair_config.text_width), 1e3)
    longer = replace(
        text,
        values=torch.cat([text.values, junk], 1),
        valid=torch.cat([text.valid, torch.zeros(3, 6, dtype=torch.bool)], 1),
    )
    a, b = pair_fusion(image, text), pair_fusion(image, longer)
    torch.testing.assert_close(a.text_embedding, b.text_embedding, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.joint, b.joint, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.image.values, b.image.values, rtol=1e-5, atol=1e-6)


def test_padding_in_front_is_invisible_too(pair_fusion, pair_config):
    text = texts(pair_config, [5, 5])
    front = torch.full((2, 3, pair_config.text_width), float("nan"))
    shifted = replace(
        text,
        values=torch.cat([front, text.values], 1),
        valid=torch.cat([torch.zeros(2, 3, dtype=torch.bool), text.valid], 1),
    )
    torch.testing.assert_close(pair_fusion.embed_text(shifted), pair_fusion.embed_text(text), rtol=1e-5, atol=1e-6)
    fused, moved = pair_fusion(images(pair_config, 2), text), pair_fusion(images(pair_config, 2), shifted)
    torch.testing.assert_close(moved.joint, fused.joint, rtol=1e-5, atol=1e-6)


def test_no_text_at_all_gives_no_embedding(pair_fusion, pair_config):
    nothing = texts(pair_config, [3, 4]).select(torch.tensor([], dtype=torch.long))
    assert pair_fusion.embed_text(nothing).shape == (0, pair_fusion.width)


def test_one_modality_may_be_missing(pair_fusion, pair_config):
    image, text = images(pair_config, 2), texts(pair_config, [3, 4])
    alone = pair_fusion(image=image)
    assert alone.text is None
    assert alone.joint is None
    assert alone.text_embedding is None
    torch.testing.assert_close(alone.image_embedding, pair_fusion(image, text).image_embedding)
    alone = pair_fusion(text=text)
    assert alone.image is None
    assert alone.image_embedding is None
    torch.testing.assert_close(alone.text_embedding, pair_fusion(image, text).text_embedding)


def test_an_item_without_a_text_stays_finite_in_both_directions(pair_fusion, pair_config):
    image, text = images(pair_config, 2), texts(pair_config, [3, 4])
    text = replace(text, valid=text.valid & torch.tensor([[True], [False]]), values=text.values.requires_grad_())
    fused = pair_fusion(image, text)
    for value in outputs(fused):
        assert value.isfinite().all()
    fused.joint.sum().backward()
    assert text.values.grad is None or text.values.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pair_fusion.parameters())


def test_an_embedding_does_not_see_the_other_side(pair_fusion, pair_config):
    image, text, other = images(pair_config, 3), texts(pair_config, [3, 5, 4]), texts(pair_config, [6, 2, 4], seed=9)
    a, b = pair_fusion(image, text), pair_fusion(image, other)
    assert torch.equal(a.image_embedding, b.image_embedding)
    a, b = pair_fusion(image, text), pair_fusion(images(pair_config, 3, seed=8), text)
    assert torch.equal(a.text_embedding, b.text_embedding)


def test_the_pair_reads_each_other_unless_released(pair_fusion, pair_config):
    image, text, other = images(pair_config, 2), texts(pair_config, [3, 5]), texts(pair_config, [3, 5], seed=9)
    a, b = pair_fusion(image, text), pair_fusion(image, other)
    same = torch.allclose(a.image.values, b.image.values, atol=1e-5)
    assert same == (
        pair_config is CONFIGS["released"]
    )  # over one key attention is constant: the released arrangement crosses nothing


def test_embeddings_are_unit_vectors_of_the_fusions_width(fusion, config):
    embedding = fusion.embed_image(images(config, 5))
    assert embedding.shape == (5, config.width)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(5))


def test_every_trainable_parameter_moves_in_three_steps(config):
    fusion = build_fusion(config)
    head, alone = torch.nn.Linear(2 * config.width, 1), torch.nn.Linear(config.width, 1)
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    optimiser = torch.optim.AdamW([*fusion.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.0)
    for step in range(3):
        image, text = images(config, 6, seed=step), texts(config, [3, 5, 4, 2, 6, 1], seed=step + 50)
        if text is None:
            loss = alone(fusion(image).image.values).square().mean() + alone(fusion.embed_image(image)).mean()
        else:
            loss = info_nce(fusion.embed_image(image), fusion.embed_text(text), scale=fusion.scale())
            loss = loss + head(fusion.fuse(image, text)[2]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    still = [name for name, p in fusion.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_hidden_image_tokens_are_invisible(fusion, config):
    image = images(config, 3)
    shown = image.valid & (torch.rand(image.valid.shape, generator=torch.Generator().manual_seed(7)) < 0.6)
    shown[:, 0] = True
    hidden = replace(image, valid=shown)
    junk = replace(hidden, values=torch.where(shown[..., None], image.values, 1e3))
    a, b = fusion.embed_image(hidden), fusion.embed_image(junk)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    pooled = config is CONFIGS["released"]  # which reads the encoder's own pooled vector and no token
    assert torch.allclose(a, fusion.embed_image(image), atol=1e-4) == pooled


def test_a_fusion_says_what_it_can_do(fusion, config):
    assert isinstance(fusion, Capabilities)
    assert fusion.reads_texts == (config.text_width is not None)
    assert fusion.has_streams == isinstance(fusion, Streams) == isinstance(config, CoConfig)
    fitted = {name.split("_")[0] for name in fusion.state_dict() if "standardise" in name}
    assert set(fusion.standardisers) == fitted
    for side, layer in fusion.standardisers.items():
        assert layer is getattr(fusion, f"{side}_standardise")


def test_images_alone_have_no_parts_of_texts(alone):
    parts = {part for name in alone.state_dict() for part in name.split(".")}
    assert not [part for part in parts if part.startswith(("text", "cross", "norm_cross")) or part.endswith("pool")]
    assert "log_scale" not in dict(alone.named_parameters())


def test_images_alone_give_tokens_and_an_embedding_of_their_own(alone, alone_config):
    image = images(alone_config, 2)
    fused = alone(image)
    assert (fused.text, fused.joint, fused.text_embedding) == (None, None, None)
    assert fused.image.values.shape == (2, image.values.shape[1], alone_config.width)
    assert (fused.image.grid, fused.image.prefix) == (image.grid, image.prefix)
    torch.testing.assert_close(fused.image_embedding, alone.embed_image(image))


def test_a_text_given_to_a_fusion_of_images_alone_is_refused(alone, alone_config):
    image, text = images(alone_config, 2), texts(CONFIGS["cross"], [3, 4])
    calls = [
        lambda: alone(image, text),
        lambda: alone(text=text),
        lambda: alone.embed_text(text),
        lambda: alone.fuse(image, text),
    ]
    if alone.has_streams:
        calls += [lambda: alone.streams(image, text), lambda: alone.streams_at([1], text=text)]
    for call in calls:
        with pytest.raises(InputError, match=r"`text`: expected images alone.*but got a text\. Leave texts out"):
            call()


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


def test_unequal_batches_are_refused(pair_fusion, pair_config):
    with pytest.raises(InputError, match=r"as many texts as images \(2\), but got 3"):
        pair_fusion(images(pair_config, 2), texts(pair_config, [1, 2, 3]))


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
