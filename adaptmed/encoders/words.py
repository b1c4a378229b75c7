"""What masked language modelling needs of a text encoder: its vocabulary, and the embedding of every word."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.types import TextEncoder


@dataclass(frozen=True)
class Words:
    """The vocabulary of a text encoder.

    Attributes:
        entries: Every entry in the order of its ids.
        special_ids: Ids that stand for no word.
        mask_id: The id that hides a word; ``None`` where the tokenizer has none.
        embeddings: The encoder's own frozen word embeddings, one row per id, maybe more rows than entries.
    """

    entries: tuple[str, ...]
    special_ids: tuple[int, ...]
    mask_id: int | None
    embeddings: Float[Tensor, "word embedding_width"]


def words_of(encoder: TextEncoder) -> Words:
    """Read the vocabulary of a text encoder of transformers.

    Args:
        encoder: Loaded.

    Raises:
        InputError: Its tokenizer does not name its entries; CLIP's own does not, and has no mask token either.

    Example:
        >>> from adaptmed.encoders import load_text_encoder
        >>> words = words_of(load_text_encoder("bundled:minilm-l6"))
        >>> words.entries[words.mask_id], len(words.entries), words.embeddings.shape
        ('[MASK]', 30522, torch.Size([30522, 384]))
    """
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    module: Any = encoder.module
    if not hasattr(tokenizer, "convert_ids_to_tokens") or not hasattr(module, "get_input_embeddings"):
        expected, got = "a text encoder whose tokenizer has a mask token", type(encoder).__name__
        fix = "Use one of transformers that has [MASK], as BERT and RoBERTa have (`hf:` or `bundled:minilm-l6`)."
        raise InputError(sentence(encoder.name, expected=expected, got=got, fix=fix))
    embeddings = module.get_input_embeddings().weight.detach()
    entries = tokenizer.convert_ids_to_tokens(range(min(len(tokenizer), len(embeddings))))
    return Words(tuple(entries), tuple(tokenizer.all_special_ids), tokenizer.mask_token_id, embeddings)
