"""From an image and a text to logits: encoders that are tuned, fusion, head."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.features import pooled_path
from adaptmed.fusion import Fusion
from adaptmed.fusion.config import side_widths
from adaptmed.layers.standardise import Standardise
from adaptmed.training.encoders import OnlineEncoders
from adaptmed.training.optimiser import Group, at_rate, parameter_groups
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.tuning import Coordinates, Loss, Objective, Tuning
from adaptmed.types import Batch, Tokens


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
    """

    def __init__(
        self, fusion: Fusion, head: nn.Module, *, online: OnlineEncoders | None = None, beside: Beside | None = None
    ) -> None:
        super().__init__()
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
        return self.head(read).float()

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
    """The same head on features that were computed once, for baselines.

    Args:
        features: Of the rows it is trained on; their mean and deviation are kept.
        outputs: Classes, labels or answers.
        hidden: Width between the two layers of the head.
    """

    def __init__(self, features: Float[Tensor, "n width"], outputs: int, *, hidden: int) -> None:
        super().__init__()
        self.standardise = Standardise(features.shape[1])
        self.standardise.fit(features.mean(dim=0), features.std(dim=0, correction=0))
        self.head = pair_head(features.shape[1], outputs, hidden=hidden)

    def read(self, inputs: Tensor) -> Float[Tensor, "batch width"]:
        """Standardise the features."""
        return self.standardise(inputs)

    def logits(self, read: Float[Tensor, "batch width"]) -> Float[Tensor, "batch output"]:
        """Return logits of standardised features in fp32."""
        return self.head(read).float()

    def groups(self, settings: FinetuneSettings) -> list[Group]:
        """Parameter groups of the head."""
        return at_rate(parameter_groups(self.head, settings.weight_decay), settings.learning_rate)


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
    coordinator: Coordinates | None = None,
) -> Tuning:
    """Prepare the training of a model of pairs, or of a head on features.

    Args:
        model: From inputs to logits.
        settings: Optimiser settings.
        loss: Of logits and targets.
        seed: Of dropout, noise and the order of the pairs.
        items: How many pairs it is trained on.
        coordinator: Changes gradients before each step; ``None`` leaves them alone.
    """
    objective = Objective(
        loss=loss,
        groups=model.groups(settings),
        steps=settings.steps_of(items),
        warmup_share=settings.warmup_share,
        seed=seed,
    )
    return Tuning(model, objective, accumulate=settings.accumulate, coordinator=coordinator)
