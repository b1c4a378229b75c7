"""What a masked pass hides: words of a text, patches of an image, chosen for every item by itself.

Both are hidden **before** the encoder. A word hidden behind a bidirectional encoder is read from its neighbours.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.layers.draws import item_draws

_HIDDEN, _REPLACED = 0.8, 0.9  # below the first: [MASK]; below the second: another word; above: left as it is


def continuations(words: Sequence[str]) -> Bool[Tensor, " word"]:
    """Say which entries of a vocabulary continue a word, by the sign that most entries carry.

    WordPiece marks continuations (``##ing``); byte-level BPE (``Ġlung``) and SentencePiece (``▁lung``) mark starts.
    There, punctuation without a sign starts a word too, else the full stop would belong to the word before it.

    Args:
        words: Every entry, in the order of its ids.

    Raises:
        InputError: The entries carry none of these signs, or mark the end of words (``lung</w>``, as CLIP does).

    Example:
        >>> continuations(["[PAD]", "effusion", "##s"]).tolist()
        [False, False, True]
        >>> continuations(["Ġeffusion", "s", "."]).tolist()
        [False, True, False]
    """
    piece = [word.startswith("##") and len(word) > 2 for word in words]
    start = [word.startswith(("Ġ", "Ċ", "▁")) for word in words]
    if max(sum(piece), sum(start)) <= sum(word.endswith("</w>") for word in words):
        fix = "Mask single tokens instead (whole_words=False)."
        expected = "entries that mark where words start or go on (##, Ġ or ▁)"
        raise InputError(sentence("vocabulary", expected=expected, got=list(words[-3:]), fix=fix))
    if sum(piece) > sum(start):
        return torch.tensor(piece)
    letters = [any(sign.isalnum() or not sign.isascii() for sign in word) for word in words]
    return torch.tensor([inside and not begins for inside, begins in zip(letters, start, strict=True)])


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows about a tokenizer; made once, with :meth:`of`.

    Attributes:
        mask_id: The id that hides a word.
        special: True at ids that are never hidden and never replace a word.
        continues: True at ids that continue the word before them; all False when single tokens are masked.
    """

    mask_id: int
    special: Bool[Tensor, " word"]
    continues: Bool[Tensor, " word"]

    @classmethod
    def of(
        cls, words: Sequence[str], *, special_ids: Iterable[int], mask_id: int | None, whole_words: bool = True
    ) -> Self:
        """Build it from a tokenizer's vocabulary.

        Args:
            words: Every entry in the order of its ids; of transformers,
                ``tokenizer.convert_ids_to_tokens(range(len(tokenizer)))``.
            special_ids: Of transformers, ``tokenizer.all_special_ids``.
            mask_id: Of transformers, ``tokenizer.mask_token_id``.
            whole_words: Hide all pieces of a word together.

        Raises:
            InputError: There is no mask token, or whole words were asked for and the entries do not mark them.

        Example:
            >>> Vocabulary.of(["[MASK]", "effusion", "##s"], special_ids=[0], mask_id=0).continues.tolist()
            [False, False, True]
        """
        if mask_id is None:
            fix = "Use a text encoder with a [MASK] token, as BERT and RoBERTa have."
            raise InputError(sentence("mask_id", expected="the id of the mask token", got=None, fix=fix))
        special = torch.zeros(len(words), dtype=torch.bool)
        special[[*special_ids, mask_id]] = True
        return cls(mask_id, special, continuations(words) if whole_words else torch.zeros_like(special))

    def to(self, device: torch.device | str) -> Self:
        """Return the same vocabulary on another device."""
        return type(self)(self.mask_id, self.special.to(device), self.continues.to(device))


def mask_words(
    input_ids: Int[Tensor, "batch token"],
    valid: Bool[Tensor, "batch token"],
    vocabulary: Vocabulary,
    *,
    items: Int[Tensor, " batch"],
    seed: int,
    share: float = 0.15,
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"]]:
    """Hide a random share of every text's words, and say what they were.

    Of ``n`` words ``round(share n)``, at least one, are chosen. Of these 80 % become the mask token, 10 % other words,
    10 % stay as they are. The pieces of a word share its fate: BERT draws it per piece, and then one piece that stayed
    tells the word. Special tokens and padding are never chosen; other words are never special tokens. The choice
    depends on seed and item alone: not on the batch, its padding or its process.

    Args:
        input_ids: Word ids; those at padding are not looked at and come back as they were.
        valid: False at padding.
        vocabulary: Of the tokenizer.
        items: Number of every item.
        seed: Of this step.
        share: In (0, 1].

    Returns:
        The ids to encode, and the ids to predict: -1 where nothing is to be predicted.

    Raises:
        InputError: If the share is not in (0, 1].

    Example:
        >>> words = Vocabulary.of(["[MASK]", "left", "effusion", "##s"], special_ids=[0], mask_id=0)
        >>> ids, every = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.bool)
        >>> hidden, targets = mask_words(ids, every, words, items=torch.tensor([0]), seed=1)
        >>> hidden.tolist(), targets.tolist()
        ([[1, 0, 0]], [[-1, 2, 3]])

    References:
        Devlin et al. 2019, arXiv:1810.04805.
    """
    if not 0 < share <= 1:
        raise InputError(sentence("share", expected="a share in (0, 1]", got=share, fix="Try 0.15."))
    table = vocabulary.to(input_ids.device)
    ids = torch.where(valid, input_ids, table.mask_id)
    of_word, fate, other = item_draws(items, 3 * ids.shape[1], seed=seed).unflatten(1, (-1, 3)).unbind(2)
    ordinary = ~table.special[ids]
    chosen, first = _chosen_words(ordinary, table.continues[ids], of_word, share)
    fate = fate.gather(1, first)  # all pieces of a word take the draw of its first
    replacements = (~table.special).nonzero()[:, 0]
    replacement = replacements[(other.double() * len(replacements)).long()] if len(replacements) else ids
    hidden = torch.where(chosen & (fate < _HIDDEN), table.mask_id, input_ids)
    hidden = torch.where(chosen & (fate >= _HIDDEN) & (fate < _REPLACED), replacement, hidden)
    return hidden, input_ids.masked_fill(~chosen, -1)


def _chosen_words(
    ordinary: Bool[Tensor, "batch token"],
    continues: Bool[Tensor, "batch token"],
    draws: Float[Tensor, "batch token"],
    share: float,
) -> tuple[Bool[Tensor, "batch token"], Int[Tensor, "batch token"]]:
    """Say which tokens belong to chosen words, and where each token's word starts."""
    after_ordinary = torch.cat([torch.zeros_like(ordinary[:, :1]), ordinary[:, :-1]], dim=1)
    starts = ordinary & ~(continues & after_ordinary)
    count = (starts.sum(1, keepdim=True).double() * share).round().clamp(min=1)
    place = draws.masked_fill(~starts, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    position = torch.arange(starts.shape[1], device=starts.device)
    first = torch.where(starts, position, 0).cummax(1).values
    return ordinary & (place.gather(1, first) < count), first


def kept_patches(
    items: Int[Tensor, " batch"], grid: tuple[int, ...], *, seed: int, ratio: float = 0.75
) -> Int[Tensor, "batch kept"]:
    """Choose the patches of every image that its encoder sees: ``int(patches (1 - ratio))`` of them.

    The choice depends on seed and item alone: not on the batch or its process.

    Args:
        items: Number of every item.
        grid: Patches along each side.
        seed: Of this step.
        ratio: Share that is hidden, in [0, 1).

    Returns:
        Places in the grid, row by row, in rising order.

    Raises:
        InputError: If the ratio leaves no patch, or is not in [0, 1).

    Example:
        >>> kept_patches(torch.tensor([4, 9]), (18, 18), seed=0).shape  # 288 px in patches of 16
        torch.Size([2, 81])

    References:
        He et al. 2022, arXiv:2111.06377.
    """
    patches = math.prod(grid)
    count = int(patches * (1 - ratio))  # as published, rounding errors included
    if not (0 <= ratio < 1 and count):
        expected = f"a ratio in [0, 1) that leaves at least one of {patches} patches"
        raise InputError(sentence("ratio", expected=expected, got=ratio, fix="Try 0.75, or a larger image."))
    order = item_draws(items, patches, seed=seed).argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values


def hidden_patches(kept: Int[Tensor, "batch kept"], patches: int) -> Bool[Tensor, "batch patch"]:
    """Say which of an image's patches are hidden.

    Example:
        >>> hidden_patches(torch.tensor([[0, 2]]), 4).tolist()
        [[False, True, False, True]]
    """
    return torch.ones(len(kept), patches, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
