"""The co fusion: against a plain reference, layer by layer, with padding; missing sides; what is computed; its size."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.fusion import CoConfig, CoFusion, build_fusion
from adaptmed.layers.attention import CoBlock
from adaptmed.types import Tokens

CONFIG = CoConfig(image_width=6, text_width=5, width=8, layers=4, heads=2, image_prefix=1)
HEADS = CONFIG.heads
VIT_B, BERT_BASE = 85_800_000, 109_500_000


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(w, name, x, context):
    """One item, (token, width), query by query: each of ``x`` reads all of ``context``."""
    query, (key, value) = linear(w, f"{name}.query", x), np.split(linear(w, f"{name}.key_value", context), 2, axis=1)
    size = x.shape[1] // HEADS
    out = np.zeros_like(query)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        for place in range(len(x)):
            score = np.array([math.exp(query[place, part] @ k / math.sqrt(size)) for k in key[:, part]])
            out[place, part] = (score[:, None] * value[:, part]).sum(0) / score.sum()
    return linear(w, f"{name}.out", out)


def layer(w, x, context):
    """BERT's layer with a cross step: every step adds to its input and is normed afterwards."""
    x = layer_norm(w, "norm_attention", x + attention(w, "attention", x, x))
    if context is not None and len(context):
        x = layer_norm(w, "norm_cross", x + attention(w, "cross", x, context))
    hidden = linear(w, "mlp.0", x)
    hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    return layer_norm(w, "norm_mlp", x + linear(w, "mlp.2", hidden))


def under(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def enter(state, side, tokens, item):
    x = tokens.values[item][tokens.valid[item]].numpy()
    x = (x - state[f"{side}_standardise.mean"]) / state[f"{side}_standardise.std"]
    return linear(state, f"{side}_project", x) + state[f"{side}_type"]


def reference(fusion, image, text, item, layers):
    """The streams of one item after ``layers`` layers, valid tokens only; each layer reads what the last one left."""
    state = {name: value.numpy() for name, value in fusion.state_dict().items()}
    x = None if image is None else enter(state, "image", image, item)
    y = None if text is None else enter(state, "text", text, item)
    for number in range(layers):
        of_image, of_text = (under(state, f"{side}_layers.{number}.") for side in ("image", "text"))
        before_x, before_y = x, y
        x = None if before_x is None else layer(of_image, before_x, before_y)
        y = None if before_y is None else layer(of_text, before_y, before_x)
    return x, y


def pooled(fusion, side, first):
    state = {name: value.numpy() for name, value in fusion.state_dict().items()}
    return np.tanh(linear(state, f"{side}_pool", first))


def random_fusion(config=CONFIG):
    """Large, different weights everywhere, so that every term of a formula shows."""
    torch.manual_seed(3)
    fusion = CoFusion(config).double().eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    for standardise in fusion.standardisers.values():
        width = len(standardise.mean)
        standardise.fit(torch.randn(width).double(), 0.5 + torch.rand(width).double())
    return fusion


def padded_pairs():
    """Images of which tokens are hidden anywhere and texts padded in front, behind and in between; NaN stands there."""
    generator = torch.Generator().manual_seed(5)
    grid_valid = torch.tensor([[1, 1, 0, 1, 1], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    text_valid = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1]], dtype=torch.bool)
    parts = []
    for valid, width in ((grid_valid, 6), (text_valid, 5)):
        values = torch.randn(*valid.shape, width, generator=generator).double()
        parts.append((values.masked_fill(~valid[..., None], float("nan")), valid, torch.zeros(3, width).double()))
    return Tokens(*parts[0], (2, 2), 1), Tokens(*parts[1])


@pytest.mark.parametrize("sides", ["pair", "image", "text"])
@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_every_layer_against_a_plain_reference(sides, count):
    fusion, (image, text) = random_fusion(), padded_pairs()
    given = (None if sides == "text" else image, None if sides == "image" else text)
    streams = fusion.streams(*given, layer=count)
    for item in range(3):
        for side, found, tokens, wanted in zip(
            ("image", "text"), streams, given, reference(fusion, *given, item, count), strict=True
        ):
            if tokens is None:
                assert found is None
                continue
            values = found.values[item].detach().numpy()
            valid = tokens.valid[item].numpy()
            np.testing.assert_allclose(values[valid], wanted, rtol=1e-9, atol=1e-10)
            assert not values[~valid].any()
            first = pooled(fusion, side, wanted[0])
            np.testing.assert_allclose(found.pooled[item].detach().numpy(), first, rtol=1e-9, atol=1e-10)
            assert (found.grid, found.prefix) == (tokens.grid, tokens.prefix)


def test_the_whole_against_a_plain_reference():
    fusion, (image, text) = random_fusion(), padded_pairs()
    fused = fusion(image, text)
    for item in range(3):
        x, y = reference(fusion, image, text, item, 4)
        joint = np.concatenate([pooled(fusion, "text", y[0]), pooled(fusion, "image", x[0])])  # text first
        np.testing.assert_allclose(fused.joint[item].detach().numpy(), joint, rtol=1e-9, atol=1e-10)
        for side, found, alone in (
            ("image", fused.image_embedding, reference(fusion, image, None, item, 4)[0]),
            ("text", fused.text_embedding, reference(fusion, None, text, item, 4)[1]),
        ):
            first = pooled(fusion, side, alone[0])
            unit = first / np.linalg.norm(first)
            np.testing.assert_allclose(found[item].detach().numpy(), unit, rtol=1e-9, atol=1e-10)


def test_float32_is_within_a_hundred_thousandth_of_the_reference():
    fusion, (image, text) = random_fusion(), padded_pairs()
    rough = CoFusion(CONFIG).eval()
    rough.load_state_dict(fusion.state_dict())
    exact, found = (
        module.fuse(image.to("cpu", dtype), text.to("cpu", dtype))[2]
        for module, dtype in ((fusion, torch.float64), (rough, torch.float32))
    )
    assert (exact - found).abs().max() < 1e-5


def test_an_item_whose_other_side_is_missing_passes_as_if_alone():
    fusion, (image, text) = random_fusion(), padded_pairs()
    gap = replace(text, valid=text.valid & torch.tensor([[True], [False], [True]]))
    in_batch, in_pair = fusion.fuse(image, gap), fusion.fuse(image, text)
    alone, _ = fusion.streams(image=image)
    torch.testing.assert_close(in_batch[0].values[1], alone.values[1])
    torch.testing.assert_close(in_batch[2][[0, 2]], in_pair[2][[0, 2]])
    nothing = torch.tanh(fusion.text_pool.bias)
    torch.testing.assert_close(in_batch[1].pooled[1], nothing)  # and so no image shows through an absent text


def test_images_without_a_prefix_token_are_pooled_by_the_mean_of_their_valid_grid():
    fusion, (image, _) = random_fusion(replace(CONFIG, image_prefix=0)), padded_pairs()
    image = Tokens(image.values[:, 1:], image.valid[:, 1:], image.pooled, (2, 2), 0)
    found, _ = fusion.streams(image=image)
    for item in range(3):
        wanted, _ = reference(fusion, image, None, item, 4)
        mean = pooled(fusion, "image", wanted.mean(0))
        np.testing.assert_allclose(found.pooled[item].detach().numpy(), mean, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_images_alone_against_a_plain_reference(count):
    """Self-attention and feed-forward alone; the pooled vector is the mean of the valid grid, without the prefix."""
    fusion, (image, _) = random_fusion(replace(CONFIG, text_width=None)), padded_pairs()
    found, nothing = fusion.streams(image, layer=count)
    assert nothing is None
    for item in range(3):
        wanted, _ = reference(fusion, image, None, item, count)
        valid = image.valid[item].numpy()
        np.testing.assert_allclose(found.values[item].detach().numpy()[valid], wanted, rtol=1e-9, atol=1e-10)
        assert not found.values[item].detach().numpy()[~valid].any()
        mean = wanted[1:].mean(0)
        np.testing.assert_allclose(found.pooled[item].detach().numpy(), mean, rtol=1e-9, atol=1e-10)
        if count == 4:
            unit = fusion.embed_image(image)[item].detach().numpy()
            np.testing.assert_allclose(unit, mean / np.linalg.norm(mean), rtol=1e-9, atol=1e-10)


def test_one_pass_gives_several_layers_of_images_alone():
    fusion, (image, _) = random_fusion(replace(CONFIG, text_width=None)), padded_pairs()
    for layer, (found, _) in zip((3, 1), fusion.streams_at([3, 1], image), strict=True):
        assert torch.equal(found.values, fusion.streams(image, layer=layer)[0].values)


@pytest.mark.parametrize(
    ("text_width", "layer", "frozen"),
    [
        (5, None, {"image_pool", "text_pool"}),
        (5, 2, {"image_pool", "text_pool", "image_layers.3"}),
        (5, 4, {"image_pool", "text_pool"}),
        (None, None, set()),
        (None, 2, {"image_layers.2", "image_layers.3"}),
    ],
)
def test_what_reading_streams_leaves_out_is_frozen(text_width, layer, frozen):
    """Exactly the parameters that the text stream and the image stream at that layer do not depend on."""
    fusion, (image, text) = random_fusion(replace(CONFIG, text_width=text_width)), padded_pairs()
    fusion.freeze_unread(image=4 if layer is None else layer, text=4 if text_width else None)
    still = {name.rpartition(".")[0] for name, p in fusion.named_parameters() if not p.requires_grad}
    assert {name for part in still for name in frozen if part.startswith(name)} == frozen
    assert all(part.startswith(tuple(frozen)) for part in still)
    fusion.requires_grad_(requires_grad=True)
    last = fusion.streams(image, text)[1] if text_width else None
    read = fusion.streams(image, text if text_width else None, layer=layer)[0].values.sum()
    read = read if last is None else read + last.values.sum()
    gradients = torch.autograd.grad(read, list(fusion.parameters()), allow_unused=True)
    unread = {n for (n, _), g in zip(fusion.named_parameters(), gradients, strict=True) if g is None}
    assert {name for name in unread if not name.startswith(tuple(frozen) or ("-",))} == set()
    assert {name.rpartition(".")[0] for name in unread} == still


def test_hidden_patches_are_not_computed():
    """M3AE at 288 pixels: of 324 patches 81 are kept, and with CLS the fusion computes 82 image tokens."""
    fusion = CoFusion(replace(CONFIG, layers=2)).eval()
    seen = []
    for block in fusion.modules():
        if isinstance(block, CoBlock):
            block.register_forward_pre_hook(lambda _, given: seen.append(tuple(t.shape[1] for t in given)))
    order = torch.rand(2, 324).argsort(1)
    valid = torch.cat([torch.ones(2, 1, dtype=torch.bool), order < 81], dim=1)
    image = Tokens(torch.randn(2, 325, 6), valid, torch.zeros(2, 6), (18, 18), 1)
    text_valid = torch.arange(64)[None] < torch.tensor([[9], [7]])
    text = Tokens(torch.randn(2, 64, 5), text_valid, torch.zeros(2, 5))
    fused, _ = fusion.streams(image, text)
    assert fused.values.shape == (2, 325, 8)
    assert seen == [(82, 9), (9, 82)] * 2


def test_no_layer_behind_the_one_asked_for_is_computed():
    fusion, (image, text) = random_fusion(), padded_pairs()
    for block in (*fusion.image_layers[3:], *fusion.text_layers[3:]):
        block.register_forward_pre_hook(lambda *_: pytest.fail("computed"))
    fusion.streams(image, text, layer=3)


@pytest.mark.parametrize("layer", [-1, 5])
def test_a_layer_there_is_not_is_refused(layer):
    with pytest.raises(InputError, match=f"`layer`: expected a layer from 0 to 4, but got {layer}"):
        random_fusion().streams(*padded_pairs(), layer=layer)


def test_tokens_of_another_layout_are_refused():
    image, _ = padded_pairs()
    with pytest.raises(InputError, match=r"Tokens with 1 prefix token\(s\), but got 0 prefix token\(s\)"):
        random_fusion().embed_image(replace(image, prefix=0))


@pytest.mark.parametrize(("text_width", "wanted"), [(768, 115_785_216), (None, 43_118_592)])
def test_the_papers_size_has_as_many_parameters_as_counted_by_hand(text_width, wanted):
    dense = 768 * 768 + 768
    attention_and_norm = 4 * dense + 2 * 768
    feed_forward_and_norm = 768 * 3072 + 3072 + 3072 * 768 + 768 + 2 * 768
    alone = dense + 768 + 6 * (attention_and_norm + feed_forward_and_norm)  # in, type, layers
    pair = 2 * (alone + 6 * attention_and_norm + dense)  # with cross steps and a pooler
    with torch.device("meta"):
        paper = build_fusion(CoConfig.paper(text_width=text_width))
    assert sum(p.numel() for p in paper.parameters()) == (alone if text_width is None else pair) == wanted


def test_the_light_size_leaves_room_for_pretraining_under_a_tenth_of_the_encoders():
    with torch.device("meta"):
        light = build_fusion(CoConfig(image_width=768, text_width=768))
    assert sum(p.numel() for p in light.parameters()) == 13_167_104 < 0.07 * (VIT_B + BERT_BASE)


@pytest.mark.parametrize(("width", "std"), [(768, 0.02), (192, 0.04), (48, 0.08)])
def test_it_starts_as_bert_does_and_a_narrower_one_passes_on_as_much(width, std):
    fusion = CoFusion(CoConfig(image_width=64, text_width=64, width=width, heads=4, layers=1))
    weights = torch.cat([p.flatten() for name, p in fusion.named_parameters() if p.ndim == 2])
    assert abs(weights.std() / std - 1) < 0.02
    assert not any(p.any() for name, p in fusion.named_parameters() if name.endswith("bias"))


def test_the_temperature_is_kept_and_is_no_parameter():
    fusion = CoFusion(CONFIG)
    torch.testing.assert_close(fusion.scale(), torch.tensor(1 / 0.07))
    assert "log_scale" in fusion.state_dict()
    assert "log_scale" not in dict(fusion.named_parameters())
