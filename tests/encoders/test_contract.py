"""The laws that every encoder keeps, whatever library it comes from."""

import copy
import math

import pytest
import torch
from torch import nn

from adaptmed.encoders.base import fingerprint
from adaptmed.errors import InputError
from adaptmed.types import ImageEncoder, TextEncoder, TokenIds, Tokens

TEXTS = ["no effusion seen", "small left effusion", "large right nodule seen left", ""]


def pictures(*size_px: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *size_px, generator=torch.Generator().manual_seed(1))


def encode(encoder: ImageEncoder | TextEncoder) -> Tokens:
    if isinstance(encoder, TextEncoder):
        ids = encoder.tokenize(TEXTS)
        return encoder(ids.input_ids, ids.valid)
    return encoder(pictures(112, 112))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def check_tokens(tokens: Tokens, batch: int, width: int) -> None:
    assert tokens.values.shape == (*tokens.valid.shape, width)
    assert tokens.pooled.shape == (batch, width)
    assert tokens.valid.dtype == torch.bool
    assert tokens.values.dtype == tokens.pooled.dtype == torch.float32
    assert tokens.values.isfinite().all()
    assert tokens.pooled.isfinite().all()
    assert tokens.pooled.std(0).max() > 0, "items of a batch differ"


# --- images


def test_image_tokens_keep_their_contract(image_encoder: ImageEncoder) -> None:
    assert isinstance(image_encoder, ImageEncoder)
    with torch.no_grad():
        tokens = image_encoder(pictures(112, 112))
    check_tokens(tokens, 3, image_encoder.width)
    assert tokens.valid.all()
    assert tokens.values.shape[1] == math.prod(tokens.grid) + tokens.prefix
    assert tokens.values[:, 0].std() > 0


def test_any_image_size_works_and_the_grid_follows(image_encoder: ImageEncoder) -> None:
    with torch.no_grad():
        square, wide = image_encoder(pictures(112, 112)), image_encoder(pictures(112, 224))
    check_tokens(wide, 3, image_encoder.width)
    assert wide.grid[0] == square.grid[0]
    assert abs(wide.grid[1] - 2 * square.grid[1]) <= 1, "a stride rounds up or down"
    assert wide.values.shape[1] == math.prod(wide.grid) + wide.prefix


def test_left_and_right_keep_their_place_in_the_grid(image_encoder: ImageEncoder) -> None:
    plain = pictures(112, 224, count=1)
    marked = plain.clone()
    marked[..., :48, 176:] += 3.0
    with torch.no_grad():
        tokens = image_encoder(plain)
        change = (image_encoder(marked).values - tokens.values).abs().mean(-1)[0, tokens.prefix :]
    rows, columns = tokens.grid
    change = change.unflatten(0, tokens.grid)
    corners = [
        half[:, side].mean() for half in (change[: rows // 2], change[-(rows // 2) :]) for side in _sides(columns)
    ]
    assert corners.index(max(corners)) == 1, "the upper right corner changes most"


def _sides(columns: int) -> tuple[slice, slice]:
    return slice(0, columns // 2), slice(-(columns // 2), None)


def test_image_taps_have_their_count_and_shapes(image_encoder: ImageEncoder) -> None:
    with torch.no_grad():
        maps = image_encoder.taps(pictures(112, 224), 4)
        assert [tap.shape for tap in image_encoder.taps(pictures(112, 224), 2)] == [maps[i].shape for i in _two(maps)]
    assert len(maps) == 4
    for tap in maps:
        assert tap.shape[0] == 3
        assert abs(tap.shape[3] - 2 * tap.shape[2]) <= 1
        assert tap.isfinite().all()
    assert [tap.shape[2] for tap in maps] == sorted((tap.shape[2] for tap in maps), reverse=True)


def _two(maps: list[torch.Tensor]) -> tuple[int, int]:
    pyramid = maps[0].shape[2] != maps[-1].shape[2]
    return (2, 3) if pyramid else (1, 3)


@pytest.mark.parametrize("count", [0, 99])
def test_an_impossible_number_of_taps_raises(image_encoder: ImageEncoder, count: int) -> None:
    with pytest.raises(InputError, match=r"`count`: expected between 1 and \d+"):
        image_encoder.taps(pictures(112, 112), count)


@pytest.mark.usefixtures("unchecked")
def test_grey_pixels_raise(image_encoder: ImageEncoder) -> None:
    with pytest.raises(InputError, match="Repeat the one channel"):
        image_encoder(torch.zeros(1, 1, 112, 112))


def test_gradients_reach_the_pixels(image_encoder: ImageEncoder) -> None:
    pixels = pictures(112, 112).requires_grad_()
    tokens = image_encoder(pixels)
    (tokens.values.square().sum() + tokens.pooled.square().sum()).backward()
    assert pixels.grad.abs().sum() > 0


def test_image_batch_isolation(image_encoder: ImageEncoder) -> None:
    pixels, order = pictures(112, 112), torch.tensor([2, 0, 1])
    with torch.no_grad():
        whole, permuted, alone = image_encoder(pixels), image_encoder(pixels[order]), image_encoder(pixels[1:2])
    assert close(permuted.values, whole.values[order])
    assert close(permuted.pooled, whole.pooled[order])
    assert close(alone.values, whole.values[1:2])
    assert close(alone.pooled, whole.pooled[1:2])


# --- texts


def test_text_tokens_keep_their_contract(text_encoder: TextEncoder) -> None:
    assert isinstance(text_encoder, TextEncoder)
    with torch.no_grad():
        tokens = encode(text_encoder)
    check_tokens(tokens, 4, text_encoder.width)
    assert tokens.grid is None
    assert tokens.prefix == 0


def test_word_ids_are_padded_on_the_right_to_the_longest(text_encoder: TextEncoder) -> None:
    ids = text_encoder.tokenize(TEXTS)
    lengths = ids.valid.sum(1)
    assert ids.input_ids.shape == ids.valid.shape
    assert lengths.max() == ids.valid.shape[1]
    assert lengths[2] > lengths[1] > lengths[3] >= 1
    assert torch.equal(ids.valid, torch.arange(ids.valid.shape[1]) < lengths[:, None])
    assert not ids.truncated.any()


def test_long_texts_are_truncated_and_marked(text_encoder: TextEncoder) -> None:
    ids = text_encoder.tokenize(["small " * 3, "small " * 600], max_tokens=6)
    whole = text_encoder.tokenize(["small " * 3])
    assert ids.input_ids.shape == (2, 6)
    assert ids.truncated.tolist() == [False, True]
    assert torch.equal(ids.input_ids[:1, : whole.input_ids.shape[1]], whole.input_ids)
    assert ids.input_ids[1, -1] == whole.input_ids[0, -1], "the last special token stays"
    longest = text_encoder.tokenize(["small " * 600])
    assert longest.input_ids.shape == (1, text_encoder.max_tokens)
    assert text_encoder(longest.input_ids, longest.valid).values.isfinite().all()


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_an_impossible_length_raises(text_encoder: TextEncoder, max_tokens: int) -> None:
    with pytest.raises(InputError, match=rf"`max_tokens`: expected between 2 and {text_encoder.max_tokens}"):
        text_encoder.tokenize(TEXTS, max_tokens)


@pytest.mark.usefixtures("unchecked")
def test_texts_that_are_no_strings_raise(text_encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match=r"`texts\[1\]`: expected a string, but got float"):
        text_encoder.tokenize(["seen", float("nan")])
    with pytest.raises(InputError, match="one or more strings"):
        text_encoder.tokenize([])


def test_padding_is_invisible(text_encoder: TextEncoder) -> None:
    ids = text_encoder.tokenize(TEXTS[:3])
    filler = torch.full((3, 4), -1)  # no word at all: ids at padding are not looked at
    more = torch.cat([ids.input_ids, filler], 1), torch.cat([ids.valid, torch.zeros(3, 4, dtype=torch.bool)], 1)
    with torch.no_grad():
        tokens, longer = text_encoder(ids.input_ids, ids.valid), text_encoder(*more)
    assert close(longer.values[:, : ids.valid.shape[1]][ids.valid], tokens.values[ids.valid])
    assert close(longer.pooled, tokens.pooled)


def test_text_batch_isolation(text_encoder: TextEncoder) -> None:
    ids, order = text_encoder.tokenize(TEXTS), torch.tensor([2, 3, 0, 1])
    alone = text_encoder.tokenize(TEXTS[:1])
    with torch.no_grad():
        whole, single = text_encoder(ids.input_ids, ids.valid), text_encoder(alone.input_ids, alone.valid)
        permuted = text_encoder(ids.input_ids[order], ids.valid[order])
    assert close(permuted.values[permuted.valid], whole.values[order][permuted.valid])
    assert close(permuted.pooled, whole.pooled[order])
    assert close(single.pooled, whole.pooled[:1])
    assert close(single.values[single.valid], whole.values[:1, : single.valid.shape[1]][single.valid])


def test_text_taps_have_their_count_and_shapes(text_encoder: TextEncoder) -> None:
    ids: TokenIds = text_encoder.tokenize(TEXTS)
    with torch.no_grad():
        taps = text_encoder.taps(ids.input_ids, ids.valid, 4)
    assert [tap.shape for tap in taps] == [(*ids.valid.shape, text_encoder.width)] * 4
    assert not torch.equal(taps[0], taps[-1])
    with pytest.raises(InputError, match="`count`: expected between 1 and"):
        text_encoder.taps(ids.input_ids, ids.valid, 99)


# --- both


def test_encoding_is_deterministic(encoder: ImageEncoder | TextEncoder) -> None:
    with torch.no_grad():
        first, second = encode(encoder), encode(encoder)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.pooled, second.pooled)


def test_frozen_means_frozen(encoder: ImageEncoder | TextEncoder) -> None:
    before = encoder.fingerprint()
    assert isinstance(encoder, nn.Module)
    nn.Sequential(encoder).train()
    assert not any(part.training for part in encoder.modules())
    probe = nn.Linear(encoder.width, 1)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *probe.parameters()], lr=1.0, weight_decay=0.5)
    probe(encode(encoder).pooled).sum().backward()
    optimiser.step()
    assert encoder.fingerprint() == before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_the_fingerprint_sees_weights_and_statistics_only(encoder: ImageEncoder | TextEncoder) -> None:
    module = copy.deepcopy(encoder.module)
    assert fingerprint(nn.ModuleDict({"renamed": module})) == encoder.fingerprint()
    half = copy.deepcopy(module).half()
    assert fingerprint(half) == fingerprint(copy.deepcopy(half).float())
    floating = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    for tensor in (floating[0], floating[-1]):
        before = fingerprint(module)
        tensor.view(-1)[0] += 1.0
        assert fingerprint(module) != before


def test_roles_name_layers_that_exist(encoder: ImageEncoder | TextEncoder) -> None:
    names = [f".{name}" for name, _ in encoder.module.named_modules()]
    assert set(encoder.roles) <= {"attention", "mlp"}
    for suffixes in encoder.roles.values():
        for suffix in suffixes:
            assert any(name.endswith(f".{suffix}") for name in names), suffix


def test_every_block_of_a_transformer_has_every_role(encoder: ImageEncoder | TextEncoder) -> None:
    known = {id(module): name for name, module in encoder.module.named_modules()}
    if "attention" not in encoder.roles:
        assert len(encoder.blocks) >= 4
        return
    assert set(encoder.roles) == {"attention", "mlp"}
    for block in encoder.blocks:
        inside = [f".{known[id(part)]}" for part in block.modules()]
        for suffixes in encoder.roles.values():
            assert any(name.endswith(f".{suffix}") for name in inside for suffix in suffixes)


def test_blocks_are_passed_in_order(encoder: ImageEncoder | TextEncoder) -> None:
    passed: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: passed.append(index))
        for index, block in enumerate(encoder.blocks)
    ]
    with torch.no_grad():
        encode(encoder)
    for hook in hooks:
        hook.remove()
    assert passed == list(range(len(encoder.blocks)))


def test_bfloat16_autocast_stays_near(encoder: ImageEncoder | TextEncoder) -> None:
    # Fifty convolutions, each rounded to eight bits, cost EfficientNet-Lite0 more than the law's 2e-2; measured 5.1e-2.
    tolerance = 7e-2 if encoder.name == "bundled:efficientnet-lite0" else 2e-2
    with torch.no_grad():
        exact = encode(encoder)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = encode(encoder)
    for found, expected in ((rough.values, exact.values), (rough.pooled, exact.pooled)):
        assert found.isfinite().all()
        error = (found.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < tolerance
