import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from adaptmed.bank import Layout
from adaptmed.bank.layout import arrange_image, arrange_text, to_stored
from adaptmed.errors import BankError, InputError
from adaptmed.types import Tokens


def image(height: int, width: int, prefix: int) -> Tokens:
    values = torch.randn(2, prefix + height * width, 3, generator=torch.Generator().manual_seed(height * 31 + width))
    return Tokens(values, torch.ones(values.shape[:2], dtype=torch.bool), values.mean(1), (height, width), prefix)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_a_grid_of_whole_cells_is_the_mean_of_each_cell(rows, cell, prefix):
    tokens = image(rows * cell, rows * cell, prefix)
    kept = arrange_image(tokens, Layout("grid", rows))
    assert kept.grid == (rows, rows)
    assert torch.equal(kept.values[:, :prefix], tokens.values[:, :prefix])
    assert kept.valid.shape == kept.values.shape[:2]
    for place in range(rows * rows):
        top, left = place // rows * cell, place % rows * cell
        members = [prefix + (top + y) * rows * cell + left + x for y in range(cell) for x in range(cell)]
        assert torch.allclose(kept.values[:, prefix + place], tokens.values[:, members].mean(1), atol=1e-6)


def test_a_smaller_grid_stays_as_it_is():
    tokens = image(3, 9, 1)
    kept = arrange_image(tokens, Layout("grid", 8))
    assert kept.grid == (3, 8)
    same = arrange_image(image(3, 5, 2), Layout("grid", 8))
    assert torch.equal(same.values, image(3, 5, 2).values)
    assert same.prefix == 2


def test_all_and_pooled():
    tokens = image(4, 4, 1)
    assert arrange_image(tokens, Layout("all")) is tokens
    for kept in (arrange_image(tokens, Layout("pooled")), arrange_text(tokens, Layout("pooled"))):
        assert torch.equal(kept.values, tokens.pooled[:, None])
        assert kept.valid.tolist() == [[True], [True]]
    kept = arrange_image(tokens, Layout("pooled"))
    assert (kept.grid, kept.prefix) == ((1, 1), 0)
    assert arrange_text(tokens, Layout("grid", 8)) is tokens


@pytest.mark.parametrize("name", ["grid8", "grid14", "all", "pooled"])
def test_names_lead_back(name):
    assert str(Layout.parse(name)) == name


def test_wrong_layouts():
    with pytest.raises(InputError, match="grid<side>, all or pooled, but got grid"):
        Layout.parse("grid")
    with pytest.raises(InputError, match="at least 1 token, but got 0"):
        Layout("grid", 0)
    with pytest.raises((InputError, TypeCheckError), match="mean"):
        Layout("mean")
    flat = image(2, 2, 0)
    with pytest.raises(BankError, match="grid of tokens, but got None"):
        arrange_image(Tokens(flat.values, flat.valid, flat.pooled), Layout("grid", 1))


def test_range_of_the_stored_dtype():
    assert to_stored(torch.tensor([65504.0]), "float16").item() == 65504
    with pytest.raises(BankError, match=r"range of float16.*got 70000.*--dtype bfloat16"):
        to_stored(torch.tensor([1.0, -7e4]), "float16")
    assert to_stored(torch.tensor([7e4]), "bfloat16").item() == pytest.approx(7e4, rel=1e-2)
    with pytest.raises(BankError, match="finite features, but got nan"):
        to_stored(torch.tensor([float("nan")]), "float32")
