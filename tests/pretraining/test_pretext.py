"""What pre-training alone needs: built for what a method uses, kept in one file, and read back or refused."""

import pytest
import torch
from safetensors.torch import load_file

from adaptmed import methods
from adaptmed.encoders import Words
from adaptmed.errors import InputError
from adaptmed.methods import changed
from adaptmed.pretext.matching import MatchingHead
from adaptmed.pretraining.pretext import PRETEXT, build_pretext, load_matching, load_pretext, save_pretext
from adaptmed.pretraining.views import Sizes
from tests.masked_bank import UMD, assert_equal, tiny

WORDS = Words(("[PAD]", "[MASK]", "lung"), (0, 1), 1, torch.randn(5, 6))
NEEDED = {
    "m3ae": (tiny(methods.m3ae()), {"matching", "words", "patches"}),
    "umd": (UMD, {"matching", "words", "patches", "image_features", "text_features"}),
    "umd-faithful": (tiny(methods.umd(faithful=True)), {"matching", "words", "patches", "text_features"}),
    "umd-words": (
        tiny(methods.umd(), image_features={"weight": 0.0}),
        {"matching", "words", "patches", "text_features"},
    ),
    "m3ae-unmatched": (changed(tiny(methods.m3ae()), {"matching": {"weight": 0.0}}), {"words", "patches"}),
    "adaptor": (methods.adaptor(), {"matching"}),
    "adaptor-faithful": (methods.adaptor(faithful=True), set()),
}


def build(method=UMD, width=16):
    return build_pretext(method, Sizes(width, words=WORDS, cell_values=12))


@pytest.mark.parametrize("name", NEEDED)
def test_what_a_method_does_not_use_does_not_exist(name):
    method, needed = NEEDED[name]
    assert set(build(method)) == needed


@pytest.mark.parametrize("tied", [True, False])
def test_the_word_head_has_a_logit_for_every_row_of_the_embeddings(tied):
    head = build(tiny(methods.umd(), words={"tied": tied}))["words"]
    assert head(torch.randn(3, 16)).shape == (3, 5)
    assert any(name.startswith("embeddings") for name, _ in head.named_buffers()) == tied


def test_modules_are_read_back_bit_for_bit(tmp_path):
    saved, read = build(), build()
    save_pretext(tmp_path, saved)
    load_pretext(tmp_path, read)
    assert_equal(read.state_dict(), saved.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [PRETEXT]


def test_what_a_run_does_not_train_is_carried_over(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    before, after = build(), build(changed(UMD, {"matching": {"weight": 0.0}}))
    save_pretext(first, before)
    save_pretext(second, after, before=first)
    found = load_file(second / PRETEXT)
    assert_equal(found, {**before.state_dict(), **after.state_dict()})
    assert_equal(load_matching(second, 32).state_dict(), before["matching"].state_dict())
    assert not load_matching(second, 32).training


def test_other_sizes_and_missing_parts_are_refused(tmp_path):
    save_pretext(tmp_path, build())
    with pytest.raises(InputError, match=r"the pretext modules of this method and bank, but got \d+ others, .* first"):
        load_pretext(tmp_path, build(width=8))
    save_pretext(tmp_path, build(tiny(methods.m3ae())))
    with pytest.raises(InputError, match=r"but got 4 others, image_features\.out\.weight first"):
        load_pretext(tmp_path, build())
    with pytest.raises(InputError, match=r"a run folder with pretext.safetensors, but got none. Name the run folder"):
        load_pretext(tmp_path / "nothing", build())


def test_a_matching_head_that_is_not_there_or_of_another_width_is_refused(tmp_path):
    save_pretext(tmp_path, build())
    assert isinstance(load_matching(tmp_path, 32), MatchingHead)
    with pytest.raises(InputError, match="a matching head 64 wide, but got another"):
        load_matching(tmp_path, 64)
    save_pretext(tmp_path, build(changed(UMD, {"matching": {"weight": 0.0}})))
    with pytest.raises(InputError, match=r"a matching head 32 wide, but got none. Pre-train with a method that"):
        load_matching(tmp_path, 32)
