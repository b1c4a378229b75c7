"""From an image and a text to logits: encoders that are tuned, fusion, head."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.adaptor.features import pooled_path
from adaptmed.fusion import Fusion
from adaptmed.fusion.config import side_widths
from adaptmed.layers.standardise import Standardise
from adaptmed.training.encoders import OnlineEncoders
from adaptmed.training.optimiser import Group, at_rate, parameter_groups
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.tuning import Loss, Objective, Tuning
from adaptmed.types import Batch, Tokens

_SIDE = 256
"""Width of each side of a head on frozen features."""
_UNSEEN = 0.1
"""Added to every count, so that an answer of the vocabulary that no training item has keeps a finite logit."""


def pair_head(width: int, outputs: int, *, hidden: int | None = None) -> nn.Sequential:
    """Build the head of M3AE and UMD: Linear, LayerNorm, GELU, Linear.

    Args:
        width: Of the joint vector.
        outputs: Classes, labels or answers.
        hidden: Width between the two layers; ``None`` is that of the joint vector.

    Example:
        >>> import torch
        >>> pair_head(512, 5)(torch.zeros(1, 512)).shape
        torch.Size([1, 5])
    """
    hidden = hidden or width
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs))


def start_at_frequencies(head: nn.Sequential, targets: Int[Tensor, " n"], *, binary: bool) -> None:
    """Start the last layer of a head at how often each class or answer comes, so that training does not begin wrong.

    The weights are divided by ten: the first logits are the frequencies and little beside them.

    Args:
        head: Of ``pair_head``.
        targets: Class numbers of the training items; -1 where there is none.
        binary: Whether each logit is a question of its own (sigmoid); otherwise one of all is right (softmax).
    """
    last = head[-1]
    assert isinstance(last, nn.Linear)  # as pair_head builds it
    counts = targets[targets >= 0].bincount(minlength=last.out_features).float() + _UNSEEN
    share = counts / (counts.sum() + _UNSEEN)
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.copy_(torch.logit(share) if binary else share.log())


class Beside(nn.Module):
    """Adds to each half of a joint vector what the encoder of that side says of the whole, through one linear layer.

    The papers tune their encoders, so that all they know can reach the joint vector. Here a fusion of few steps passes
    on less of an image than its CLS and mean Tokens hold; this shows the head both. It starts at zero: at first the
    joint vector is the fusion's alone. No half reads the other side, so that each can still be judged alone.

    Images differ little in these beside what all of them share, so they are standardised over images, which the fusion,
    over Tokens, does not do.

    Args:
        image_width: Width of the image encoder's Tokens.
        text_width: Width of the text encoder's Tokens.
        width: Of the fusion, half of the joint vector.
    """

    def __init__(self, image_width: int, text_width: int, width: int) -> None:
        super().__init__()
        self.image_standardise, self.text_standardise = Standardise(2 * image_width), Standardise(text_width)
        self.image, self.text = nn.Linear(2 * image_width, width), nn.Linear(text_width, width)
        for layer in (self.image, self.text):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def fit(self, features: Float[Tensor, "n both_widths"]) -> None:
        """Keep mean and deviation of what ``frozen_features`` reads of the training pairs."""
        mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
        cut = self.image.in_features
        self.image_standardise.fit(mean[:cut], deviation[:cut])
        self.text_standardise.fit(mean[cut:], deviation[cut:])

    def forward(
        self, joint: Float[Tensor, "batch joint_width"], image: Tokens, text: Tokens
    ) -> Float[Tensor, "batch joint_width"]:
        """Add what both encoders say."""
        seen = self.image(self.image_standardise(torch.cat(pooled_path(image), dim=1)))
        read = self.text(self.text_standardise(text.pooled))
        return joint + torch.cat([read, seen], dim=1)


class PairClassifier(nn.Module):
    """A fusion and a head on its joint vector, and before them the encoders that are tuned.

    Args:
        fusion: Reads the pair; stays as it is where nothing in it is trained.
        head: From the joint vector to logits.
        online: Encoders with LoRA, which then read pixels and word ids; ``None`` where Tokens come from the bank.
        beside: Shows the head the encoders' own view beside the fusion's; ``None`` shows the fusion's alone.
        dropout: Share of the values before the last layer of the head that is dropped in training.
    """

    def __init__(
        self,
        fusion: Fusion,
        head: nn.Module,
        *,
        online: OnlineEncoders | None = None,
        beside: Beside | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fusion, self.head, self.online, self.beside = fusion, head, online, beside

    def forward(self, inputs: Batch) -> Float[Tensor, "batch output"]:
        """Return logits in fp32."""
        return self.logits(self.read(inputs))

    def read(self, inputs: Batch) -> Float[Tensor, "batch joint_width"]:
        """Encode what is encoded in the loop, and fuse the pairs."""
        if self.online is not None:
            inputs = self.online(inputs)
        assert inputs.image is not None  # whoever reads pairs reads both sides
        assert inputs.text is not None
        joint = self.fusion.fuse(inputs.image, inputs.text)[2]
        return joint if self.beside is None else self.beside(joint, inputs.image, inputs.text)

    def logits(self, read: Float[Tensor, "batch joint_width"]) -> Float[Tensor, "batch output"]:
        """Return logits of joint vectors in fp32."""
        return _logits(self.head, self.drop, read)

    def groups(self, settings: FinetuneSettings) -> list[Group]:
        """Parameter groups of its parts, each at the rate that the settings give it."""
        parts: list[tuple[nn.Module | None, float, float]] = [
            (self.head, settings.learning_rate, settings.weight_decay),
            (self.fusion, settings.fusion_learning_rate, settings.weight_decay),
            (self.beside, settings.learning_rate, settings.weight_decay),
            (self.online, settings.encoder_learning_rate, settings.encoder_weight_decay),
        ]
        there = [(part, rate, decay) for part, rate, decay in parts if part is not None]
        return [group for part, rate, decay in there for group in at_rate(parameter_groups(part, decay), rate)]

    def train(self, mode: bool = True) -> "PairClassifier":
        """Switch dropout on or off; a frozen fusion has none in training either."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.fusion.parameters()):
            self.fusion.eval()
        return self


class FeatureClassifier(nn.Module):
    """The head on features that were computed once, for baselines: a first layer for each side, then as ``pair_head``.

    One layer over both sides would give the image, whose features are twice as many, twice the say.

    Args:
        features: Of the rows it is trained on; their mean and deviation are kept.
        widths: Of the sides behind each other in them.
        outputs: Classes, labels or answers.
        dropout: Share of the values before the last layer of the head that is dropped in training.
    """

    def __init__(
        self, features: Float[Tensor, "n width"], widths: Sequence[int], outputs: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.widths = list(widths)
        self.standardise = Standardise(features.shape[1])
        self.standardise.fit(features.mean(dim=0), features.std(dim=0, correction=0))
        self.sides = nn.ModuleList(nn.Linear(width, _SIDE) for width in widths)
        inner = _SIDE * len(self.widths)
        self.head = nn.Sequential(nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, outputs))
        self.drop = nn.Dropout(dropout)

    def read(self, inputs: Tensor) -> Float[Tensor, "batch width"]:
        """Standardise the features, and project each side."""
        parts = self.standardise(inputs).split(self.widths, dim=1)
        return torch.cat([side(part) for side, part in zip(self.sides, parts, strict=True)], dim=1)

    def logits(self, read: Float[Tensor, "batch width"]) -> Float[Tensor, "batch output"]:
        """Return logits of projected features in fp32."""
        return _logits(self.head, self.drop, read)

    def groups(self, settings: FinetuneSettings) -> list[Group]:
        """Parameter groups of the head."""
        return at_rate(parameter_groups(self, settings.weight_decay), settings.learning_rate)


def _logits(head: nn.Module, drop: nn.Dropout, read: Tensor) -> Float[Tensor, "batch output"]:
    """Logits of a head that drops values before its last layer; at its entrance it would drop what is rare."""
    *first, last = head.children()
    return last(drop(nn.Sequential(*first)(read))).float()


def joint_width(fusion: Fusion) -> int:
    """Width of the joint vector: both sides of the fusion."""
    return 2 * fusion.width


def token_widths(fusion: Fusion) -> tuple[int, int]:
    """Widths of the image's and the text's Tokens."""
    widths = side_widths(fusion.config)
    return widths["image"], widths["text"]


def tuning_of(
    model: PairClassifier | FeatureClassifier,
    settings: FinetuneSettings,
    loss: Loss,
    *,
    seed: int,
    items: int,
    right: Callable[[Tensor, Tensor], int] | None = None,
) -> Tuning:
    """Prepare the training of a model of pairs, or of a head on features.

    Args:
        model: From inputs to logits.
        settings: Optimiser settings.
        loss: Of logits and targets.
        seed: Of dropout, noise and the order of the pairs.
        items: How many pairs it is trained on.
        right: Counts right answers, to keep the epoch with the most; ``None`` keeps that with the lowest loss.
    """
    objective = Objective(
        loss=loss,
        groups=model.groups(settings),
        steps=settings.steps_of(items),
        warmup_share=settings.warmup_share,
        seed=seed,
        right=right,
    )
    return Tuning(model, objective, accumulate=settings.accumulate)
