"""Zero-shot prompts: from label names to sentences, and from their embeddings to probabilities.

A temperature comes from the fusion's contrastive training. The probabilities of a label compare its positive with its
negative prompts; they are scores to rank by and are not calibrated.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from adaptmed.errors import InputError, sentence

Prompts = Mapping[str, Mapping[str, Sequence[str]]]

_POSITIVE = ("{name}.", "There is {name}.", "{name} is present.")
_NEGATIVE = ("No {name}.", "There is no {name}.", "No evidence of {name}.")
_CLASS = ("{name}.", "An image of {name}.", "This image shows {name}.")


def load_prompts(path: Path) -> Prompts:
    """Read prompts that replace the generic ones.

    Args:
        path: JSON of the form ``{"edema": {"positive": ["..."], "negative": ["..."]}}``; a class that excludes the
            others needs only ``positive``.

    Raises:
        InputError: The file is not there or not of that form; the message names the entry.
    """
    expected, fix = '{"label": {"positive": [...], "negative": [...]}}', "Write one entry per label, texts in lists."
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(sentence(str(path), expected=expected, got=error, fix=fix)) from error
    if not isinstance(prompts, dict):
        raise InputError(sentence(str(path), expected=expected, got=type(prompts).__name__, fix=fix))
    for label, entry in prompts.items():
        sides = entry if isinstance(entry, dict) else {}
        if (
            "positive" not in sides
            or not set(sides) <= {"positive", "negative"}
            or not all(map(_texts, sides.values()))
        ):
            raise InputError(sentence(f"{path}, {label}", expected=expected, got=entry, fix=fix))
    return prompts


def prompts_for(label: str, prompts: Prompts | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the positive and the negative prompts of a label.

    Args:
        label: A column name; underscores are read as spaces.
        prompts: Entries of ``load_prompts``; a side that an entry lacks stays generic.

    Example:
        >>> positive, negative = prompts_for("pleural_effusion")
        >>> positive[1], negative[0]
        ('There is pleural effusion.', 'No pleural effusion.')
    """
    entry = (prompts or {}).get(label, {})
    positive = tuple(entry.get("positive", ())) or _filled(_POSITIVE, label)
    return positive, tuple(entry.get("negative", ())) or _filled(_NEGATIVE, label)


def class_prompts_for(name: str, prompts: Prompts | None = None) -> tuple[str, ...]:
    """Return the prompts of one of several classes that exclude each other: its ``positive`` entry, or generic ones."""
    return tuple((prompts or {}).get(name, {}).get("positive", ())) or _filled(_CLASS, name)


def prompt_embedding(embeddings: Float[Tensor, "prompt width"]) -> Float[Tensor, " width"]:
    """Average the L2-normalised embeddings of the prompts that mean the same, and normalise again."""
    return functional.normalize(functional.normalize(embeddings, dim=-1).mean(dim=0), dim=-1)


def label_directions(
    positive: Float[Tensor, "label width"], negative: Float[Tensor, "label width"]
) -> Float[Tensor, "label width"]:
    """From the negative to the positive prompt of each label: the prior of a text-informed probe."""
    return positive - negative


def class_directions(prompts: Float[Tensor, "class width"]) -> Float[Tensor, "class width"]:
    """From the classes' mean prompt to each class's: the prior of a multi-class text-informed probe."""
    return prompts - prompts.mean(dim=0)


def zero_shot_multilabel(
    images: Float[Tensor, "n width"],
    positive: Float[Tensor, "label width"],
    negative: Float[Tensor, "label width"],
    temperature: float,
) -> Float[Tensor, "n label"]:
    """Softmax over each label's positive and negative prompt; the probability of the positive one.

    Args:
        images: L2-normalised image embeddings.
        positive: One L2-normalised embedding per label.
        negative: One L2-normalised embedding per label.
        temperature: Above 0; of the contrastive training.

    Example:
        >>> axis = torch.tensor([[1.0, 0.0]])
        >>> zero_shot_multilabel(axis, axis, -axis, temperature=1.0)
        tensor([[0.8808]])
    """
    return torch.sigmoid(images @ label_directions(positive, negative).T / temperature)


def zero_shot_multiclass(
    images: Float[Tensor, "n width"], prompts: Float[Tensor, "class width"], temperature: float
) -> Float[Tensor, "n class"]:
    """Softmax over the classes' prompts.

    Args:
        images: L2-normalised image embeddings.
        prompts: One L2-normalised embedding per class.
        temperature: Above 0; of the contrastive training.
    """
    return torch.softmax(images @ prompts.T / temperature, dim=-1)


def _filled(templates: Sequence[str], label: str) -> tuple[str, ...]:
    name = label.replace("_", " ").strip()
    filled = [template.format(name=name) for template in templates]
    return tuple(text[:1].upper() + text[1:] for text in filled)


def _texts(side: object) -> bool:
    return isinstance(side, list) and len(side) > 0 and all(isinstance(text, str) and text for text in side)
