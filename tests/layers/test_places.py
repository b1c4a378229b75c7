"""Some tokens of a grid, taken out and put back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.layers.places import put_back, token_places


@given(st.integers(0, 3), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_what_was_taken_out_is_put_back_and_the_rest_is_zero(prefix, cells, items, seed):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.rand(items, prefix + cells, 2, generator=generator) + 1
    count = int(torch.randint(1, cells + 1, (1,), generator=generator))
    kept = torch.rand(items, cells, generator=generator).argsort(1)[:, :count].sort(1).values
    seen = whole.gather(1, token_places(kept, prefix)[..., None].expand(-1, -1, 2)).requires_grad_()
    values, valid = put_back(seen, kept, prefix=prefix, cells=cells)
    assert torch.equal(values, whole * valid[..., None])
    assert valid.sum(1).tolist() == [prefix + count] * items
    assert valid[:, :prefix].all()
    values.sum().backward()
    assert torch.equal(seen.grad, torch.ones_like(seen))
