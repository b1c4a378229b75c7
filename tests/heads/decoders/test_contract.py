"""Laws that hold for every decoder on every kind of encoder it is declared for, in 2-D and 3-D."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from adaptmed.errors import InputError
from adaptmed.heads.decoders import NEEDS, EncoderKind, build_decoder
from adaptmed.heads.decoders.config import CONFIGS
from adaptmed.objectives.overlap import dice_cross_entropy

SIZES = {
    "patch-14": (14, (28, 42)),
    "patch-16": (16, (32, 48)),
    "patch-14-odd": (14, (29, 45)),
    "patch-16-odd": (16, (37, 31)),
}
STRIDES = (3, 6, 14)
WIDTHS = (8, 12, 10)
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One pair of decoder and encoder, for images or volumes of one size."""

    kind: str
    encoder: EncoderKind
    dims: int
    patch: int
    plane: tuple[int, int]

    @property
    def size(self):
        return (3, *self.plane)[3 - self.dims :]

    def grids(self):
        count = 1 if self.kind == "image-concat" else len(WIDTHS)
        strides = STRIDES if self.encoder == "pyramid" else [self.patch] * len(WIDTHS)
        planes = [[math.ceil(side / stride) for side in self.plane] for stride in strides[-count:]]
        return [(*self.size[:-2], *plane) for plane in planes]

    def config(self, **options):
        values = {"widths": WIDTHS[-len(self.grids()) :], "classes": CLASSES, "spatial_dims": self.dims, "channels": 4}
        return CONFIGS[self.kind](**values | options)

    def inputs(self, batch):
        generator = torch.Generator().manual_seed(0)
        maps = [
            torch.randn(batch, width, *grid, generator=generator)
            for width, grid in zip(self.config().widths, self.grids(), strict=True)
        ]
        return maps, torch.randn(batch, 3, *self.size, generator=generator)


CASES = {
    f"{kind}-{encoder}-{dims}d-{name}": Case(kind, encoder, dims, *size)
    for kind, needs in NEEDS.items()
    for encoder in needs.encoders
    for dims in (2, 3)
    for name, size in SIZES.items()
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def decoder(case):
    return build_decoder(case.config())


def test_one_step_trains_every_parameter_and_gives_the_inputs_size(case, decoder):
    maps, pixels = case.inputs(2)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-2, weight_decay=0.0)
    before = [parameter.detach().clone() for parameter in decoder.parameters()]
    logits = decoder(maps, case.size, pixels)
    assert logits.shape == (2, CLASSES, *case.size)
    dice_cross_entropy(logits, torch.randint(CLASSES, (2, *case.size))).backward()
    optimiser.step()
    stuck = [
        name for (name, now), then in zip(decoder.named_parameters(), before, strict=True) if torch.equal(now, then)
    ]
    assert stuck == []


def test_other_items_of_the_batch_do_not_matter(case, decoder):
    maps, pixels = case.inputs(3)
    maps, pixels = [values.double() for values in maps], pixels.double()
    rows = torch.tensor([2, 0])
    decoder.double().eval()  # dropout draws for a batch as a whole, and float32 rounds as its size says
    with torch.no_grad():
        whole = decoder(maps, case.size, pixels)
        part = decoder([values[rows] for values in maps], case.size, pixels[rows])
        alone = decoder([values[1:2] for values in maps], case.size, pixels[1:2])
    torch.testing.assert_close(whole[rows], part, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(whole[1:2], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_training_and_evaluation_give_the_same_and_no_statistics_of_batches(kind, dims):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, dims))
    decoder = build_decoder(case.config())
    norms = [part for part in decoder.modules() if "Norm" in type(part).__name__]
    assert norms
    assert {type(part) for part in norms} == {nn.GroupNorm}
    maps, pixels = case.inputs(2)
    without_dropout = decoder.train()
    for part in without_dropout.modules():
        if "Dropout" in type(part).__name__:
            part.eval()
    with torch.no_grad():
        torch.testing.assert_close(without_dropout(maps, case.size, pixels), decoder.eval()(maps, case.size, pixels))


@pytest.mark.parametrize("kind", NEEDS)
def test_depth_is_mixed(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 3))
    decoder = build_decoder(case.config()).eval()
    maps, pixels = case.inputs(1)
    for norm in (part for part in decoder.modules() if isinstance(part, nn.GroupNorm)):
        norm.forward = lambda x: x  # its statistics mix slices too; only convolutions shall be seen here
    other = [torch.cat([values[:, :, :1] + 1, values[:, :, 1:]], dim=2) for values in maps]
    with torch.no_grad():
        a, b = (decoder(given, case.size, pixels)[:, :, 1] for given in (maps, other))
    assert (a - b).abs().max() > 1e-6


@pytest.mark.parametrize("kind", [kind for kind, needs in NEEDS.items() if needs.pixels])
def test_missing_and_other_pixels_are_refused(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config())
    maps, pixels = case.inputs(1)
    with pytest.raises(InputError, match=r"`pixels`: expected raw images of 3 channel\(s\) and 28 x 42 .* got none"):
        decoder(maps, case.size)
    with pytest.raises(InputError, match=r"got \(3, 28, 41\)"):
        decoder(maps, case.size, pixels[..., :-1])


@pytest.mark.parametrize("kind", [kind for kind, needs in NEEDS.items() if needs.pixels])
def test_pixels_are_read_where_they_are(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config()).eval()
    maps, pixels = case.inputs(1)
    other = pixels.clone()
    other[..., 20, 30] += 9
    with torch.no_grad():
        moved = (decoder(maps, case.size, pixels) - decoder(maps, case.size, other)).abs().sum((0, 1))
    assert divmod(int(moved.argmax()), case.size[1]) == (pytest.approx(20, abs=2), pytest.approx(30, abs=2))


@pytest.mark.parametrize("kind", [kind for kind, needs in NEEDS.items() if not needs.pixels])
def test_what_reads_no_pixels_does_without(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config()).eval()
    maps, pixels = case.inputs(1)
    with torch.no_grad():
        assert torch.equal(decoder(maps, case.size), decoder(maps, case.size, pixels))


@pytest.mark.parametrize("kind", NEEDS)
def test_other_maps_are_refused(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config())
    maps, pixels = case.inputs(1)
    with pytest.raises(InputError, match=r"`maps`: expected \d map\(s\) of .* channels, but got"):
        decoder(maps[:-1], case.size, pixels)
    with pytest.raises(InputError, match="a size and maps of 2 sides"):
        decoder([values[:, :, None] for values in maps], case.size, pixels)


@pytest.mark.parametrize("kind", NEEDS)
def test_the_fused_grid_may_be_coarser_than_the_other_taps(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    maps, pixels = case.inputs(2)
    maps[-1] = maps[-1][..., :1, :1]
    assert build_decoder(case.config())(maps, case.size, pixels).shape == (2, CLASSES, *case.size)


@pytest.mark.parametrize("kind", NEEDS)
def test_the_scale_of_the_features_does_not_matter_once_standardised(kind):
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config()).eval()
    maps, pixels = case.inputs(2)
    logits = []
    for scale, shift in ((1.0, 0.0), (300.0, -40.0)):
        given = [values * scale + shift for values in maps]
        flat = [values.movedim(1, 0).flatten(1) for values in given]
        decoder.enter.fit([(values.mean(1), values.std(1)) for values in flat])
        with torch.no_grad():
            logits.append(decoder(given, case.size, pixels))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", NEEDS)
def test_a_mask_is_learned(kind):
    """What only the maps know (half of the picture) is learned by all."""
    case = next(case for case in CASES.values() if (case.kind, case.dims) == (kind, 2))
    decoder = build_decoder(case.config(classes=1))
    maps, pixels = case.inputs(2)
    for values in maps:
        values[..., values.shape[-1] // 2 :] += 3
    mask = (torch.arange(case.size[1]) >= case.size[1] // 2).long().expand(2, *case.size)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        loss = dice_cross_entropy(decoder(maps, case.size, pixels), mask)
        loss.backward()
        optimiser.step()
    said = decoder(maps, case.size, pixels)[:, 0] > 0
    assert (said == mask.bool()).float().mean() > 0.9
