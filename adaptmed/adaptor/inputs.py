"""Raw images and texts as an adaptor takes them: lists, whose items are checked before anything is computed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.types import Preprocessing, Side, Tokens

Images = Tokens | Float[Tensor, "batch 3 height width_px"] | Sequence[str | Path | np.ndarray | Image.Image]
Texts = Tokens | Sequence[str]
_WANTED = {
    "image": (
        "files, arrays or Pillow images",
        "a file, an array or a Pillow image",
        "Pass arrays (height, width[, 3]), or one Tensor (batch, 3, height, width) of normalised pixels.",
    ),
    "text": ("strings", "a string", "Leave rows without text out, or give the empty string."),
}


def pixels_of(
    images: Sequence[str | Path | np.ndarray | Image.Image], inputs: Preprocessing
) -> Float[Tensor, "batch 3 height width_px"]:
    """Read files, Pillow images or arrays (height, width[, 3]), and make them an encoder's input.

    Raises:
        InputError: One cannot be read, or the list is empty or none.
    """
    from adaptmed.data.images import as_array, prepare

    items = listed(images, "image", (str, Path, np.ndarray, Image.Image))
    return torch.stack([prepare(as_array(item), inputs) for item in items])


def listed(found: object, kind: Side, types: tuple[type, ...]) -> list[Any]:
    """Return the items of a list of images or texts.

    Args:
        found: What was given.
        kind: Which of the two.
        types: Of its items.

    Raises:
        InputError: It is a single image or text, an empty list, or a list of something else.
    """
    some, one, fix = _WANTED[kind]
    if isinstance(found, (bytes, *types)) or not isinstance(found, Iterable):
        got = f"a single {type(found).__name__}"
        raise InputError(sentence(f"{kind}s", expected=f"a list of {some}", got=got, fix=f"Pass a list: [{kind}]."))
    items = list(found)
    if not items:
        raise InputError(sentence(f"{kind}s", expected="at least one of them", got="none", fix="Pass a list of some."))
    for index, item in enumerate(items):
        if not isinstance(item, types):
            raise InputError(sentence(f"{kind}s[{index}]", expected=one, got=type(item).__name__, fix=fix))
    return items
