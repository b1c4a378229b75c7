"""From fused text tokens to words: the heads of masked language modelling.

Both read whatever places they are given. Give them the hidden ones alone: logits over a vocabulary are large.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class TiedWordHead(nn.Module):
    """Compares each token, projected, with the text encoder's own frozen word embeddings: the ``light`` head.

    The embeddings are shared with the encoder, not copied; no gradient reaches them, and they are not part of the
    state dict. Trained are the projection (linear, GELU, norm) and one bias per word.

    Args:
        width: Width of the tokens.
        embeddings: The encoder's word embeddings, one row per id.

    Example:
        >>> import torch
        >>> head = TiedWordHead(8, torch.randn(100, 6))
        >>> head(torch.randn(5, 8)).shape, "embeddings" in head.state_dict()
        (torch.Size([5, 100]), False)
    """

    embeddings: Tensor

    def __init__(self, width: int, embeddings: Float[Tensor, "word embedding_width"]) -> None:
        super().__init__()
        self.project = _transform(width, embeddings.shape[1])
        self.bias = nn.Parameter(embeddings.new_zeros(len(embeddings)))
        self.register_buffer("embeddings", embeddings.detach(), persistent=False)

    def forward(self, tokens: Float[Tensor, "*place width"]) -> Float[Tensor, "*place word"]:
        """Return one logit per word."""
        return nn.functional.linear(self.project(tokens), self.embeddings, self.bias)

    def start_at_frequencies(self, counts: Int[Tensor, " word"]) -> None:
        """Start every word's bias at the log of its share, so that no step is spent on learning how common words are.

        Reports use a few hundred of an encoder's 30,000 words. On phantom seed 2024 a fusion of 3 layers, 128 wide,
        trained on hidden words alone, had a loss of 3.9 over the first 200 steps of 32 reports instead of 6.2.

        Args:
            counts: How often each word stands in the training texts; every word counts for 0.1 more.
        """
        share = (counts + 0.1) / (counts + 0.1).sum()
        with torch.no_grad():
            self.bias.copy_(share.log())


class WordHead(nn.Module):
    """Linear, GELU, norm, and a decoder of its own that is not tied to any embedding: the ``paper`` head.

    Args:
        width: Width of the tokens.
        words: Size of the vocabulary.
    """

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.transform = _transform(width, width)
        self.out = nn.Linear(width, words)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, tokens: Float[Tensor, "*place width"]) -> Float[Tensor, "*place word"]:
        """Return one logit per word."""
        return self.out(self.transform(tokens))


def _transform(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), nn.LayerNorm(out))
