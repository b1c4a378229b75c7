"""From an image and a text to logits: encoders that are tuned, fusion, head."""

from copy import deepcopy

from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.fusion import Fusion
from adaptmed.layers.standardise import Standardise
from adaptmed.tasks.image_classifier import train_used
from adaptmed.tasks.online import OnlineEncoders
from adaptmed.types import Batch, Tokens


def pair_head(width: int, outputs: int, *, hidden: int | None = None) -> nn.Sequential:
    """Build the head of M3AE and UMD: Linear, LayerNorm, GELU, Linear.

    Args:
        width: Of the joint vector.
        outputs: Classes, labels or answers.
        hidden: Width between the two layers; ``None`` is that of the joint vector.

    Example:
        >>> pair_head(512, 5)(torch.zeros(1, 512)).shape
        torch.Size([1, 5])
    """
    hidden = hidden or width
    return nn.Sequential(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs))


class PairClassifier(nn.Module):
    """A fusion and a head on its joint vector, and before them the encoders that are tuned.

    Args:
        fusion: Reads the pair; stays as it is where nothing in it is trained.
        head: From the joint vector to logits.
        online: Encoders with LoRA, which then read pixels and word ids; ``None`` where Tokens come from the bank.
    """

    def __init__(self, fusion: Fusion, head: nn.Module, *, online: OnlineEncoders | None = None) -> None:
        super().__init__()
        self.fusion, self.head, self.online = fusion, head, online

    def forward(self, inputs: Batch) -> Float[Tensor, "batch output"]:
        """Return logits in fp32."""
        return self.head(self.joint(inputs)).float()

    def joint(self, inputs: Batch) -> Float[Tensor, "batch joint_width"]:
        """Encode what is encoded in the loop, and fuse the pairs."""
        if self.online is not None:
            inputs = self.online(inputs)
        assert inputs.image is not None  # whoever reads pairs reads both sides
        assert inputs.text is not None
        return self.fusion.fuse(inputs.image, inputs.text)[2]

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

    def joint(self, inputs: Tensor) -> Float[Tensor, "batch width"]:
        """Standardise the features."""
        return self.standardise(inputs)


def trainable_pair_fusion(fusion: Fusion, image: Tokens, text: Tokens) -> Fusion:
    """Copy a fusion; of the copy only the parameters that the joint vector depends on can be trained.

    Args:
        fusion: Never changed.
        image: Any image Tokens it takes.
        text: Text Tokens of the same items.
    """
    copy = deepcopy(fusion).requires_grad_(True).eval()
    device = next(copy.parameters()).device
    train_used(copy, copy.fuse(image.to(device), text.to(device))[2])
    return copy


def joint_width(fusion: Fusion) -> int:
    """Width of the joint vector: both sides of the fusion."""
    return 2 * fusion.width
