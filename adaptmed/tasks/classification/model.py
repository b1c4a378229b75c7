"""From images to logits through whichever parts are there: image encoder, fusion, head."""

from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.features import image_features
from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.fusion import Fusion
from adaptmed.objectives.supervised import masked_bce, masked_cross_entropy
from adaptmed.training.batches import Inputs
from adaptmed.training.optimiser import Group, at_rate, parameter_groups
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.tuning import Objective, Tuning
from adaptmed.types import ImageEncoder, Tokens


class ImageClassifier(nn.Module):
    """An image encoder, a fusion and a head, one behind the other; parts in which nothing trains stay as they are.

    Args:
        head: Features to logits.
        variant: Which features the head reads, as in ``image_features``.
        fusion: ``None`` when the head reads the encoder's Tokens, or when the inputs are features already.
        encoder: ``None`` when the inputs are Tokens or features.
        layout: How the encoder's Tokens are laid out: that of the bank the head was fitted on.
    """

    def __init__(
        self,
        head: nn.Module,
        variant: str,
        *,
        fusion: Fusion | None = None,
        encoder: ImageEncoder | None = None,
        layout: str = "all",
    ) -> None:
        super().__init__()
        self.head, self.variant, self.fusion, self.encoder = head, variant, fusion, encoder
        self.layout = Layout.parse(layout)

    def forward(self, inputs: Inputs) -> Float[Tensor, "batch output"]:
        """Return logits in fp32."""
        return self.logits(self.read(inputs))

    def read(self, inputs: Inputs) -> Float[Tensor, "batch features"]:
        """Return the features that the head reads."""
        if self.encoder is not None:
            assert isinstance(inputs, Tensor)  # whoever gives an encoder reads pixels
            inputs = arrange_image(self.encoder(inputs), self.layout)
        return image_features(self.fusion, inputs, self.variant) if isinstance(inputs, Tokens) else inputs

    def logits(self, read: Float[Tensor, "batch features"]) -> Float[Tensor, "batch output"]:
        """Return logits of features in fp32."""
        return self.head(read).float()

    def groups(self, settings: FinetuneSettings) -> list[Group]:
        """Parameter groups of its parts, each at the rate that the settings give it."""
        groups = at_rate(parameter_groups(self.head, settings.weight_decay), settings.learning_rate)
        if self.fusion is not None:
            groups += at_rate(parameter_groups(self.fusion, settings.weight_decay), settings.fusion_learning_rate)
        if self.encoder is not None:
            inside = parameter_groups(self.encoder.module, settings.encoder_weight_decay)
            groups += at_rate(inside, settings.encoder_learning_rate)
        return groups

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Switch dropout on or off; a frozen fusion has none in training either."""
        super().train(mode)
        if self.fusion is not None and not any(parameter.requires_grad for parameter in self.fusion.parameters()):
            self.fusion.eval()
        return self


def tuning_of(model: ImageClassifier, settings: FinetuneSettings, *, seed: int, images: int) -> Tuning:
    """Prepare the training of a classifier.

    Args:
        model: From inputs to logits.
        settings: Optimiser settings.
        seed: Of dropout and of the order of the images.
        images: How many images it is trained on.
    """
    objective = Objective(
        loss=label_loss,
        groups=model.groups(settings),
        steps=settings.steps_of(images),
        warmup_share=settings.warmup_share,
        seed=seed,
    )
    return Tuning(model, objective, accumulate=settings.accumulate)


def label_loss(logits: Float[Tensor, "batch output"], labels: Tensor) -> Float[Tensor, ""]:
    """Binary cross-entropy of labels ``(batch, output)``, cross-entropy of classes ``(batch,)``; masked."""
    return masked_bce(logits, labels) if labels.ndim == 2 else masked_cross_entropy(logits, labels)
