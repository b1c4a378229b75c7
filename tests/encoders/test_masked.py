"""Encoders that leave patches out before their first block: what is hidden cannot be read, what is seen stays right."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from adaptmed import lora
from adaptmed.encoders import drops_patches, masked_tokens, patch_grid
from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.training.encoders import checkpoint_blocks
from tests.encoders.test_contract import close, pictures
from tests.tiny_encoders import PatchEncoder
from tests.tiny_models import IMAGE, vit

DROPPING = [
    *("timm-vit", "timm-registers", "timm-map", "timm-eva", "clip-vit", "hf-vit", "hf-dinov2", "hf-registers"),
    *("hf-clip", "hf-siglip", "bundled-dinov2"),
]
ROTARY = {  # how timm turns queries and keys by their places: mixed by every block, in DINOv3's way, with positions too
    "mixed": "vit_small_patch16_rope_mixed_224",
    "axial": "vit_small_patch16_rope_ape_224",
    "dinov3": "vit_small_patch16_dinov3",
}
CLS = ("timm-registers", "clip-vit", "hf-vit", "hf-dinov2", "hf-registers", "hf-clip", "bundled-dinov2")


@pytest.fixture(scope="module", params=[*DROPPING, *ROTARY])
def encoder(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = IMAGE[request.param]() if request.param in IMAGE else vit(ROTARY[request.param])
    return encoder if request.param.startswith("bundled") else sharpened(encoder)


def sharpened(encoder):
    """Enlarge fresh weights, so that tokens look at each other as those of trained networks do."""
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if name.endswith(("gamma", "lambda1", "gamma_1", "gamma_2")):
                parameter.fill_(1.0)
            elif parameter.ndim == 2:
                parameter.mul_(5.0)
    return encoder


def some(encoder, count=3, share=3, seed=0):
    """Pictures, and for each of them another third of its patches."""
    pixels = pictures(112, 112, count=count)
    with torch.no_grad():
        grid = encoder(pixels[:1]).grid
    patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(count, patches, generator=generator).argsort(1)[:, : patches // share].sort(1).values
    return pixels, kept, grid


def hidden(kept, grid):
    return torch.ones(len(kept), grid[0] * grid[1], dtype=torch.bool).scatter(1, kept, False)


def enlarged(places, grid, pixels):
    """Say which pixels belong to the patches at ``places``."""
    return F.interpolate(places.float().unflatten(1, (1, *grid)), size=pixels.shape[2:], mode="nearest").bool()


def test_the_table_of_encoders_is_whole(image_encoder, request):
    name = request.node.callspec.params["image_encoder"]
    assert drops_patches(image_encoder) == (name in DROPPING)


def test_all_patches_kept_is_the_encoder_itself(encoder):
    pixels, _, grid = some(encoder)
    every = torch.arange(grid[0] * grid[1]).expand(3, -1)
    with torch.no_grad():
        plain, masked = encoder(pixels), masked_tokens(encoder, pixels, every)
    assert close(masked.values, plain.values, 1e-6)
    assert close(masked.pooled, plain.pooled, 1e-6)
    assert masked.valid.all()
    assert (masked.grid, masked.prefix) == (plain.grid, plain.prefix)


def test_hidden_pixels_change_nothing(encoder):
    pixels, kept, grid = some(encoder)
    other = torch.where(enlarged(hidden(kept, grid), grid, pixels), pixels * -7 + 40, pixels)
    assert not torch.equal(other, pixels)
    with torch.no_grad():
        before, after = masked_tokens(encoder, pixels, kept), masked_tokens(encoder, other, kept)
        assert not close(encoder(other).values, encoder(pixels).values), "a pass of all patches sees them"
    assert torch.equal(before.values, after.values)
    assert torch.equal(before.pooled, after.pooled)


def test_every_seen_pixel_counts(encoder):
    pixels, kept, grid = some(encoder)
    pixels.requires_grad_()
    masked_tokens(encoder, pixels, kept).values.square().sum().backward()
    read = pixels.grad.abs().amax(1, keepdim=True) > 0
    assert torch.equal(read, ~enlarged(hidden(kept, grid), grid, pixels))


def test_hidden_places_are_zero_and_not_valid(encoder):
    pixels, kept, grid = some(encoder)
    with torch.no_grad():
        plain, masked = encoder(pixels), masked_tokens(encoder, pixels, kept)
    assert masked.values.shape == plain.values.shape
    assert (masked.grid, masked.prefix) == (plain.grid, plain.prefix)
    seen = torch.cat([torch.ones(3, plain.prefix, dtype=torch.bool), ~hidden(kept, grid)], dim=1)
    assert torch.equal(masked.valid, seen)
    assert torch.equal(masked.values.abs().amax(2) > 0, seen)


def test_a_seen_patch_stands_where_all_patches_stand_when_attention_alone_hides(encoder, monkeypatch):
    """The oracle: every token is computed, and attention looks at the seen ones only."""
    pixels, kept, grid = some(encoder)
    pixels.requires_grad_()  # no fused layer, which would not call this attention
    masked = masked_tokens(encoder, pixels, kept)
    unseen, attention = hidden(kept, grid), F.scaled_dot_product_attention

    def attend(query, key, value, *_, **options):
        before = key.shape[2] - unseen.shape[1]
        looked_at = F.pad(~unseen, (before, 0), value=True)[:, None, None]
        return attention(query, key, value, attn_mask=looked_at, scale=options.get("scale"))

    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    oracle = encoder(pixels)
    assert close(masked.values[masked.valid], oracle.values[masked.valid], 1e-3)


def test_only_prefix_and_kept_patches_pass_the_blocks(encoder):
    pixels, kept, _ = some(encoder)
    passed = []
    hooks = [block.register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0])) for block in encoder.blocks]
    with torch.no_grad():
        prefix = masked_tokens(encoder, pixels, kept).prefix
    for hook in hooks:
        hook.remove()
    assert {tuple(x.shape) for x in passed} == {(3, prefix + kept.shape[1], encoder.width)}
    assert len(passed) == len(encoder.blocks)


def test_what_was_seen_is_pooled_as_the_encoder_pools(encoder, request):
    pixels, kept, _ = some(encoder)
    with torch.no_grad():
        masked, plain = masked_tokens(encoder, pixels, kept), encoder(pixels)
    if request.node.callspec.params["encoder"] in CLS:
        assert close(masked.pooled, masked.values[:, 0])
    assert masked.pooled.isfinite().all()
    assert not close(masked.pooled, plain.pooled, 1e-3)


def test_mean_pooling_is_over_the_kept_patches():
    encoder = vit("vit_tiny_patch16_224", global_pool="avg", fc_norm=False)
    pixels, kept, _ = some(encoder)
    with torch.no_grad():
        masked = masked_tokens(encoder, pixels, kept)
    rows = torch.arange(3)[:, None]
    assert close(masked.pooled, masked.values[rows, kept + masked.prefix].mean(1))


def test_batch_isolation(encoder):
    pixels, kept, _ = some(encoder)
    order = torch.tensor([2, 0])
    with torch.no_grad():
        whole, part = masked_tokens(encoder, pixels, kept), masked_tokens(encoder, pixels[order], kept[order])
    assert close(part.values, whole.values[order])
    assert close(part.pooled, whole.pooled[order])
    assert torch.equal(part.valid, whole.valid[order])


def test_sizes_other_than_the_encoder_s_own(encoder):
    pixels = pictures(112, 224, count=2)
    kept = torch.tensor([[0, 3, 90], [1, 2, 97]])
    with torch.no_grad():
        masked = masked_tokens(encoder, pixels, kept)
        assert masked.grid == encoder(pixels).grid
    assert masked.grid == patch_grid(encoder, (112, 224))
    assert masked.valid.sum(1).tolist() == [masked.prefix + 3] * 2


def test_nothing_of_a_pass_stays_behind(encoder):
    pixels, kept, _ = some(encoder)
    before = encoder.fingerprint(), list(encoder.module.state_dict())
    with torch.no_grad():
        plain = encoder(pixels)
        masked_tokens(encoder, pixels, kept)
        with pytest.raises(InputError, match=r"`kept`: expected places below \d+, but got 50\d\d"):
            masked_tokens(encoder, pixels, kept + 5000)
        assert torch.equal(encoder(pixels).values, plain.values)
    assert (encoder.fingerprint(), list(encoder.module.state_dict())) == before


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_inside_is_used_and_gets_its_gradients(encoder, checkpointing):
    pixels, kept, _ = some(encoder, count=2)
    tuned = copy.deepcopy(encoder)
    lora.attach(tuned, LoRA(rank=2, roles=("mlp",)))
    if checkpointing:
        checkpoint_blocks(tuned.blocks)
    parameters = list(tuned.lora.parameters())
    with torch.no_grad():
        for parameter in parameters:
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        assert not torch.equal(masked_tokens(tuned, pixels, kept).values, masked_tokens(encoder, pixels, kept).values)
    masked_tokens(tuned, pixels, kept).values.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert tuned.fingerprint() == encoder.fingerprint()


def test_checkpointed_blocks_give_the_same_gradients():
    encoder = vit("vit_tiny_patch16_224")
    pixels, kept, _ = some(encoder)
    found = []
    for module in (encoder, copy.deepcopy(encoder)):
        if found:
            checkpoint_blocks(module.blocks)
        images = pixels.clone().requires_grad_()
        masked_tokens(module, images, kept).values.square().sum().backward()
        found.append(images.grad)
    assert torch.equal(*found)


# --- what cannot


def test_a_cnn_says_what_it_can(image_encoder):
    if drops_patches(image_encoder):
        pytest.skip("this one can")
    with pytest.raises(InputError, match=r"can leave patches out.*a CNN can only have its outputs hidden, from which"):
        masked_tokens(image_encoder, pictures(112, 112), torch.zeros(3, 1, dtype=torch.long))


def test_patches_that_have_seen_their_neighbours_cannot_be_left_out():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=16, padding=1), nn.Conv2d(8, 32, 1))
    module = timm.models.vision_transformer.VisionTransformer(
        img_size=112, embed_dim=32, depth=2, num_heads=2, num_classes=0, embed_layer=lambda **_: _stem(stem)
    )
    assert not drops_patches(TimmImageEncoder(module, name="timm:hybrid", image_size_px=112))
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, embed_dim=8, depths=(1, 1, 1, 1))
    assert not drops_patches(TimmImageEncoder(swin, name="timm:swin"))
    assert not drops_patches(PatchEncoder())


def _stem(stem):
    stem.num_patches, stem.img_size, stem.patch_size, stem.strict_img_size = 49, (112, 112), (16, 16), False
    return stem


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kept", [torch.zeros(2, 1).long(), torch.zeros(3, 0).long(), torch.zeros(3).long()])
def test_every_image_has_places(kept):
    with pytest.raises(InputError, match=r"`kept`: expected shape \(3, at least 1\)"):
        masked_tokens(vit("vit_tiny_patch16_224"), pictures(112, 112), kept)


@pytest.mark.parametrize("kept", [[[1, 0]], [[2, 2]], [[-1, 3]]])
def test_places_are_in_rising_order(kept):
    with pytest.raises(InputError, match="`kept`: expected places from 0 in rising order"):
        masked_tokens(vit("vit_tiny_patch16_224"), pictures(112, 112, count=1), torch.tensor(kept))
