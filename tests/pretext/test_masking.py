"""Words and patches are hidden per item: no batch, padding or process changes that; no special token is hidden."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from adaptmed.encoders.bundled import minilm_l6
from adaptmed.errors import InputError
from adaptmed.pretext.masking import Vocabulary, continuations, hidden_patches, kept_patches, mask_words

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(20)), *(f"##p{n}" for n in range(20))]
SPECIAL = [0, 1, 2, 3]
PIECES = Vocabulary.of(WORDS, special_ids=SPECIAL, mask_id=3)
SINGLE = Vocabulary.of(WORDS, special_ids=SPECIAL, mask_id=3, whole_words=False)


def padded(texts, longest=None):
    """Ids and validity; padding holds an id that no vocabulary has."""
    longest = longest or max(map(len, texts))
    ids = torch.tensor([[*text, *[10_000] * (longest - len(text))] for text in texts])
    return ids, torch.arange(longest)[None] < torch.tensor([len(text) for text in texts])[:, None]


def masked(texts, vocabulary=PIECES, *, items=None, longest=None, seed=0, share=0.15):
    ids, valid = padded(texts, longest)
    items = torch.arange(len(texts)) if items is None else torch.tensor(items)
    return mask_words(ids, valid, vocabulary, items=items, seed=seed, share=share)


def words_of(text):
    """Places of each word's pieces, in plain Python."""
    words, before = [], False
    for place, number in enumerate(text):
        if number >= 4:
            if number >= 24 and before:
                words[-1].append(place)
            else:
                words.append([place])
        before = number >= 4
    return words


texts = st.lists(st.lists(st.integers(1, 43), min_size=1, max_size=25), min_size=1, max_size=6)


@given(texts, st.floats(0.01, 1.0), st.integers(0, 99))
@settings(deadline=None)
def test_whole_words_are_hidden_in_the_share_asked_for(texts, share, seed):
    ids, valid = padded(texts)
    hidden, targets = masked(texts, seed=seed, share=share)
    assert torch.equal(hidden[targets < 0], ids[targets < 0])
    assert torch.equal(targets[targets >= 0], ids[targets >= 0])
    assert not (targets >= 0)[~valid].any()
    for item, text in enumerate(texts):
        words = words_of(text)
        fully = [all(targets[item, place] >= 0 for place in word) for word in words]
        partly = [any(targets[item, place] >= 0 for place in word) for word in words]
        assert fully == partly
        assert sum(fully) == (max(1, round(len(words) * share)) if words else 0)
        assert (targets[item] >= 0).sum() == sum(len(w) for w, chosen in zip(words, fully, strict=True) if chosen)
    assert not torch.isin(targets, torch.tensor(SPECIAL)).any()


@given(texts, st.integers(0, 99))
@settings(deadline=None)
def test_the_choice_is_the_items_own_in_any_batch_and_padding(texts, seed):
    together = masked(texts, items=range(50, 50 + len(texts)), longest=40, seed=seed)
    for item, text in enumerate(texts):
        alone = masked([text], items=[50 + item], seed=seed)
        for whole, one in zip(together, alone, strict=True):
            assert torch.equal(whole[item, : len(text)], one[0])


def test_seed_and_item_change_the_choice():
    text = list(range(4, 24))
    targets = masked([text], items=[5])[1]
    assert not torch.equal(targets, masked([text], items=[6])[1])
    assert not torch.equal(targets, masked([text], items=[5], seed=1)[1])


def test_eighty_ten_ten_and_words_are_replaced_by_any_ordinary_one():
    text = [number for number in range(4, 24) for _ in range(2)]
    hidden, targets = masked([[1, *text, 2]] * 4000, SINGLE)
    ids = torch.tensor([[1, *text, 2]]).expand_as(hidden)
    counts = torch.bincount(hidden[targets >= 0], minlength=len(WORDS))
    total = counts.sum().item()
    assert total == 4000 * 6
    assert counts[3] / total == pytest.approx(0.8, abs=0.01)
    assert counts[:3].sum() == 0
    replaced = hidden[(targets >= 0) & (hidden != 3) & (hidden != ids)]
    assert len(replaced) / total == pytest.approx(0.1 * 39 / 40, abs=0.01)
    assert chisquare(torch.bincount(replaced, minlength=44)[24:].numpy()).pvalue > 0.001  # pieces never are the word
    kept = (targets >= 0) & (hidden == ids)
    assert kept.sum() / total == pytest.approx(0.1 + 0.1 / 40, abs=0.01)
    positions = (targets >= 0).sum(0)[1:-1]
    assert chisquare(positions.numpy()).pvalue > 0.001


def test_the_pieces_of_a_word_share_its_fate():
    text = [4, 24, 25, 5, 26, 27]
    hidden, targets = masked([text] * 3000)
    of_word = (hidden == 3)[targets >= 0].reshape(-1, 3)
    assert (of_word.all(1) | ~of_word.any(1)).all()
    stayed = (hidden == torch.tensor(text))[targets >= 0].reshape(-1, 3)
    assert stayed.all(1).float().mean() == pytest.approx(0.1, abs=0.02)
    assert (stayed.any(1) & ~stayed.all(1)).float().mean() < 0.02  # a random word that happens to be the same


def test_a_text_without_words_stays_as_it_is():
    hidden, targets = masked([[1, 2], [1, 5, 2]])
    assert hidden[0].tolist() == [1, 2, 10_000]
    assert targets[0].tolist() == [-1, -1, -1]
    assert targets[1].tolist() == [-1, 5, -1]


def test_a_piece_behind_a_special_token_starts_a_word():
    assert masked([[1, 24, 25, 2]])[1].tolist() == [[-1, 24, 25, -1]]


def vocabulary_of(tokenizer, special, mask):
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary, key=vocabulary.get)
    return Vocabulary.of(words, special_ids=[vocabulary[word] for word in special], mask_id=vocabulary[mask])


def words_hidden(vocabulary, ids, words, *, seeds=40):
    """The sets of texts of words that are hidden together, each seed one word."""
    ids = torch.tensor([ids])
    found = set()
    for seed in range(seeds):
        valid = torch.ones_like(ids, dtype=torch.bool)
        targets = mask_words(ids, valid, vocabulary, items=torch.tensor([0]), seed=seed, share=0.01)[1][0]
        found.add(" ".join(words[place] for place in range(len(words)) if targets[place] >= 0))
    return found


def test_whole_words_of_a_real_wordpiece_tokenizer():
    tokenizer = minilm_l6().tokenizer
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    vocabulary = Vocabulary.of(words, special_ids=tokenizer.all_special_ids, mask_id=tokenizer.mask_token_id)
    ids = tokenizer("small pneumothorax, no cardiomegaly")["input_ids"]
    found = words_hidden(vocabulary, ids, tokenizer.convert_ids_to_tokens(ids))
    assert found == {"small", "p ##ne ##um ##otho ##ra ##x", ",", "no", "card ##iom ##ega ##ly"}
    assert vocabulary.continues.sum() == sum(word.startswith("##") for word in words)


def test_whole_words_of_a_byte_level_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["the left lung is clear", "no effusion in the lung", "the heart is normal in size"] * 5
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    vocabulary = vocabulary_of(tokenizer, ["<s>", "</s>", "<mask>"], "<mask>")
    encoded = tokenizer.encode("lungs clear, small effusion.")
    ids = [0, *encoded.ids, 1]
    assert len(ids) > 9  # several words fall into pieces
    found = words_hidden(vocabulary, ids, ["<s>", *encoded.tokens, "</s>"])
    whole = {group.replace(" ", "").replace("Ġ", "") for group in found}
    assert whole == {"lungs", "clear", ",", "small", "effusion", "."}


def test_vocabularies_are_told_apart_by_the_sign_most_entries_carry():
    assert continuations(["▁lung", "s", "▁", "!"]).tolist() == [False, True, False, False]
    assert continuations(["Ġ", "Ġa", "Ġb", "##a", "é"]).tolist() == [False, False, False, True, True]
    with pytest.raises(InputError, match=r"mark where words start or go on .* but got \['lu', 's</w>', 'a</w>'\]"):
        continuations(["Ġ</w>", "Ġ", "lung</w>", "lu", "s</w>", "a</w>"])
    with pytest.raises(InputError, match="Mask single tokens instead"):
        continuations(["a", "b"])


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(InputError, match="expected the id of the mask token, but got None"):
        Vocabulary.of(WORDS, special_ids=SPECIAL, mask_id=None)
    for share in (0.0, 1.5):
        with pytest.raises(InputError, match=r"expected a share in \(0, 1\]"):
            masked([[4]], share=share)


@pytest.mark.parametrize(
    ("grid", "ratio", "kept"),
    [((18, 18), 0.75, 81), ((24, 24), 0.75, 144), ((5, 10, 10), 0.55, 224), ((2, 2), 0.75, 1), ((3, 3), 0.0, 9)],
)
def test_as_many_patches_are_kept_as_published(grid, ratio, kept):
    """288 px and 384 px in patches of 16: M3AE keeps 81 of 324, UMD 144 of 576."""
    places = kept_patches(torch.arange(7), grid, seed=3, ratio=ratio)
    assert places.shape == (7, kept)
    assert (places.diff(dim=1) > 0).all()
    hidden = hidden_patches(places, torch.tensor(grid).prod().item())
    assert (~hidden).sum(1).tolist() == [kept] * 7
    assert not hidden.gather(1, places).any()


def test_the_patches_are_the_items_own_and_all_equally_likely():
    items = torch.tensor([8, 3, 5])
    together = kept_patches(items, (6, 6), seed=1)
    assert torch.equal(together[1:2], kept_patches(items[1:2], (6, 6), seed=1))
    assert not torch.equal(together[:1], kept_patches(items[:1], (6, 6), seed=2))
    assert not torch.equal(together[0], together[1])
    counts = torch.bincount(kept_patches(torch.arange(4000), (6, 6), seed=0).flatten(), minlength=36)
    assert chisquare(counts.numpy()).pvalue > 0.001


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 0.9])
def test_a_ratio_that_leaves_no_patch_is_refused(ratio):
    with pytest.raises(InputError, match="leaves at least one of 4 patches, but got"):
        kept_patches(torch.arange(2), (2, 2), seed=0, ratio=ratio)
