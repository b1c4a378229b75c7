"""The default fusion: against a plain reference, positions on other grids, standardised inputs, refusals."""

import math

import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.fusion import CrossConfig, CrossFusion
from adaptmed.fusion.standardise import channel_statistics
from adaptmed.types import Tokens

CONFIG = CrossConfig(image_width=6, text_width=5, width=8, layers=2, heads=2, image_grid=(2, 2), image_prefix=1)


def layer_norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def reference_layer(w, x, context, heads):
    """One item, (token, width): attention from x to context, then the feed-forward part, both with residuals."""
    q_in = layer_norm(x, w["norm_attention.weight"], w["norm_attention.bias"])
    kv_in = layer_norm(context, w["norm_attention.weight"], w["norm_attention.bias"])
    q = q_in @ w["attention.query.weight"].T + w["attention.query.bias"]
    kv = kv_in @ w["attention.key_value.weight"].T + w["attention.key_value.bias"]
    width = x.shape[-1]
    k, v = kv[:, :width], kv[:, width:]
    size, out = width // heads, np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        score = q[:, part] @ k[:, part].T / math.sqrt(size)
        score = np.exp(score - score.max(-1, keepdims=True))
        out[:, part] = score / score.sum(-1, keepdims=True) @ v[:, part]
    x = x + out @ w["attention.out.weight"].T + w["attention.out.bias"]
    hidden = layer_norm(x, w["norm_mlp.weight"], w["norm_mlp.bias"])
    hidden = gelu(hidden @ w["mlp.0.weight"].T + w["mlp.0.bias"])
    return x + hidden @ w["mlp.2.weight"].T + w["mlp.2.bias"]


def random_tokens(seed, token, width, valid_to, grid=None, prefix=0):
    values = torch.randn(1, token, width, generator=torch.Generator().manual_seed(seed)).double()
    valid = torch.arange(token)[None] < valid_to
    return Tokens(values, valid, values.mean(1), grid, prefix)


def test_against_a_plain_reference():
    torch.manual_seed(3)
    fusion = CrossFusion(CONFIG).double().eval()
    fusion.image_standardise.fit(torch.full((6,), 0.5).double(), torch.full((6,), 2.0).double())
    image, text = random_tokens(0, 5, 6, 5, (2, 2), 1), random_tokens(1, 7, 5, 4)
    state = {name: value.numpy() for name, value in fusion.state_dict().items()}
    layers = [{k.split(".", 2)[2]: v for k, v in state.items() if k.startswith(f"blocks.{i}.")} for i in range(2)]
    x = (image.values[0].numpy() - 0.5) / 2.0 @ state["image_project.weight"].T + state["image_project.bias"]
    x = x + np.concatenate([state["positions.prefix"], state["positions.grid"].reshape(4, 8)])
    y = text.values[0, :4].numpy() @ state["text_project.weight"].T + state["text_project.bias"]

    alone = x
    for w in layers:
        alone = reference_layer(w, alone, alone, 2)
    alone = layer_norm(alone, state["norm.weight"], state["norm.bias"]).mean(0)
    alone = alone @ state["image_out.weight"].T + state["image_out.bias"]
    np.testing.assert_allclose(
        fusion.embed_image(image)[0].detach().numpy(), alone / np.linalg.norm(alone), rtol=1e-9, atol=1e-12
    )

    for w in layers:
        x, y = reference_layer(w, x, y, 2), reference_layer(w, y, x, 2)
    norm = [layer_norm(z, state["norm.weight"], state["norm.bias"]).mean(0) for z in (x, y)]
    joint = fusion.fuse(image, text)[2][0].detach().numpy()
    np.testing.assert_allclose(joint, np.concatenate(norm), rtol=1e-9, atol=1e-12)


def test_positions_follow_another_grid():
    fusion = CrossFusion(CONFIG).eval()
    finer = random_tokens(0, 1 + 12, 6, 13, (3, 4), 1)
    assert fusion.embed_image(Tokens(finer.values.float(), finer.valid, finer.pooled, (3, 4), 1)).isfinite().all()


def test_standardised_input_is_independent_of_the_encoders_scale():
    torch.manual_seed(0)
    fusion = CrossFusion(CONFIG).eval()
    values = torch.randn(64, 5, 6)
    scale, shift = torch.tensor([1e-3, 1.0, 50.0, 3.0, 7.0, 0.1]), torch.tensor([0.0, 9.0, -80.0, 1.0, 0.0, 4.0])
    embeddings = []
    for changed in (values, values * scale + shift):
        tokens = Tokens(changed, torch.ones(64, 5, dtype=torch.bool), changed.mean(1), (2, 2), 1)
        fusion.image_standardise.fit(
            *channel_statistics(lambda rows, t=tokens: t.select(torch.from_numpy(rows)), np.arange(64))
        )
        embeddings.append(fusion.embed_image(tokens))
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=1e-3, atol=1e-3)


def test_channel_statistics_leave_padding_out():
    values = torch.tensor([[[1.0], [3.0], [99.0]]])
    tokens = Tokens(values, torch.tensor([[True, True, False]]), values[:, 0])
    mean, std = channel_statistics(lambda _: tokens, np.arange(1))
    assert (mean.item(), std.item()) == (2.0, 1.0)


def test_a_channel_that_never_varies_keeps_its_scale():
    fusion = CrossFusion(CONFIG)
    fusion.image_standardise.fit(torch.zeros(6), torch.zeros(6))
    assert fusion.image_standardise.std.tolist() == [1.0] * 6


def test_tokens_of_another_layout_are_refused():
    fusion = CrossFusion(CONFIG)
    tokens = random_tokens(0, 4, 6, 4, (2, 2), 0)
    with pytest.raises(InputError, match=r"Tokens with 1 prefix token\(s\)"):
        fusion.embed_image(Tokens(tokens.values.float(), tokens.valid, tokens.pooled, (2, 2), 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "`heads`: expected a divisor of width=8, but got 3"),
        ({"layers": 0}, "`layers`: expected a whole number of at least 1, but got 0"),
        ({"dropout": 1.0}, r"`dropout`: expected a share in \[0, 1\), but got 1.0"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        CrossConfig(**{"image_width": 6, "text_width": 5, "width": 8, "heads": 2, **change})
