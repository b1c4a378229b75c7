"""Image feature term: a teacher's features of hidden cells, predicted from what is left of the image."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from adaptmed.objectives.reconstruction import image_feature_loss
from adaptmed.pretext.feature import ImageFeatureHead, released_image_features
from adaptmed.pretraining.beside import require_term
from adaptmed.pretraining.cells import decoded_cells, masked_cells, patch_decoder, visible_tokens
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Needs, Sizes, check_decay, check_weight


@dataclass(frozen=True, kw_only=True)
class ImageFeatures:
    """Distance of the decoded features of hidden cells to those of a teacher that sees the whole pair.

    Attributes:
        weight: Weight of its loss; 0 leaves it, its head and its teacher out.
        teacher_decay: Per step, of the average of past students that is the teacher.
        faithful: Compare features as the released code does (see ``adaptmed.pretext.feature``).

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "image_features"
    hides: ClassVar[None] = None
    weight: float = 0.5
    teacher_decay: float = 0.995
    faithful: bool = False

    def __post_init__(self) -> None:
        check_weight("image_features.weight", self.weight)
        check_decay("image_features.teacher_decay", self.teacher_decay)

    def needs(self, method: Method) -> Needs:
        """The view of the patch term, and a teacher."""
        patches = require_term(method, self.name, needed="patches")
        return Needs(views=patches.needs(method).views, teacher_decay=self.teacher_decay)

    def pretext(self, method: Method, sizes: Sizes) -> ImageFeatureHead | None:
        """Build the head from the patch decoder's width to the fusion's; the released code has none."""
        if self.faithful:
            return None
        return ImageFeatureHead(require_term(method, self.name, needed="patches").decoder_width, sizes.width)

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``image_features``."""
        [view] = step.views[self.name]
        image, _ = step.teacher
        target, masked = image.values[:, image.prefix :], masked_cells(step, view)
        if self.faithful:
            stream = step.stream(view)
            kept = visible_tokens(stream, masked.kept)[:, stream.prefix :]
            pair = released_image_features(patch_decoder(step), kept, masked.kept, target)
        else:
            pair = step.pretext[self.name](decoded_cells(step, view), target)
        loss = image_feature_loss(*pair, masked.hidden, faithful=self.faithful)
        return {"image_features": step.cut.mean_of(loss, masked.hidden.sum())}
