"""GM-Coord inside a training: scores are gathered over the batches of a step, gradients are changed once, before it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.adaptor.frozen import SIDES
from adaptmed.coordination.gradient import Modality, coefficients, modality_groups, modulate
from adaptmed.coordination.scores import last_linear_logits, logits_alone
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_text_whole
from adaptmed.fusion.base import Capabilities
from adaptmed.tasks.pairs.goal import Loss
from adaptmed.tasks.pairs.model import PairClassifier
from adaptmed.tasks.pairs.settings import Coordination

COORDINATION = "coordination.jsonl"
_NOISE = 11
"""Set apart from the other things that are drawn from a step's seed."""


class Coordinator:
    """Scores both modalities alone, and scales their gradients by what came out.

    The modality that answers better alone learns more slowly; its parameters are its LoRA, its projection, its
    layers of the fusion and what its encoder adds beside them. Poolers, type vectors and head belong to neither.

    Args:
        groups: Trained parameters of each modality.
        how: Which scores, and whether noise is added.
        score: From logits and targets to how well they answer, summed over items.
        log: File for one line per step, or ``None``; of several processes the first one alone writes.
    """

    def __init__(
        self, groups: dict[Modality, list[nn.Parameter]], how: Coordination, score: Loss, *, log: Path | None = None
    ) -> None:
        self.groups, self.how, self.score, self.log = groups, how, score, log
        self._scores: Float[Tensor, 2] | None = None
        self._opened = False

    @classmethod
    def of(cls, model: PairClassifier, how: Coordination, score: Loss, *, log: Path | None = None) -> "Coordinator":
        """Sort the trained parameters of a model.

        Raises:
            InputError: Its modalities share their layers.
        """
        require_streams(model.fusion)
        prefixes: dict[Modality, list[str]] = {
            side: [f"fusion.{side}_project", f"fusion.{side}_layers"] for side in SIDES
        }
        if model.beside is not None:
            prefixes = {side: [*names, f"beside.{side}"] for side, names in prefixes.items()}
        if model.online is not None:
            loras = {"image": model.online.online.image_lora, "text": model.online.online.text_lora}
            for side in SIDES:
                prefixes[side] += [] if loras[side] is None else [f"online.encoders.{side}"]
        return cls(modality_groups(model.named_parameters(), prefixes), how, score, log=log)

    def add(
        self,
        head: nn.Module,
        joint: Float[Tensor, "batch joint_width"],
        targets: Tensor,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        """Add the scores of one batch to those of the step.

        Args:
            head: From joint vectors to logits.
            joint: Of this process's part of the batch.
            targets: Of the same items.
            gather: From one number of each process to all of them.
        """
        if self.how.scores == "head":
            image, text = logits_alone(head, joint)
        else:
            assert isinstance(head, nn.Sequential)  # the head of pairs
            image, text = last_linear_logits(head[-1], joint.detach())  # type: ignore[arg-type]
        mine = torch.stack([self.score(image.float(), targets), self.score(text.float(), targets)])
        whole = gather(mine).reshape(-1, 2).sum(dim=0)
        self._scores = whole if self._scores is None else self._scores + whole

    def apply(self, step: int, *, seed: int) -> None:
        """Scale the gradients of one step and add noise to them, once.

        Args:
            step: Steps after this one.
            seed: Of this step's noise.
        """
        assert self._scores is not None  # there was a batch
        image, text = self._scores
        k_image, k_text = coefficients(image, text, alpha=self.how.alpha)
        noise_seed = (seed * 31 + _NOISE) % 2**63 if self.how.noise else None
        modulate(self.groups, {"image": k_image, "text": k_text}, noise_seed=noise_seed)
        self._scores = None
        if self.log is not None:
            names = ("image_score", "text_score", "k_image", "k_text")
            said = torch.stack([image, text, k_image, k_text]).tolist()
            self._write(self.log, {"step": step, **dict(zip(names, said, strict=True))})

    def _write(self, path: Path, line: dict[str, Any]) -> None:
        """Append a line; the first one of this process takes the place of what a stopped run had left behind it."""
        if not self._opened:
            old = path.read_text().splitlines(keepends=True) if path.exists() else []
            kept = [text for text in old if text.endswith("\n") and json.loads(text)["step"] < line["step"]]
            write_text_whole(path, "".join(kept))
            self._opened = True
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def require_streams(fusion: Capabilities) -> None:
    """Refuse a fusion whose modalities share their layers.

    Raises:
        InputError: They do.
    """
    if not fusion.has_streams:
        got = "one whose layers are shared: a modality has no gradient of its own there"
        fix = "Pre-train with --fusion co, or leave --coordinate-gradients out."
        raise InputError(sentence("coordinate_gradients", expected="the fusion co", got=got, fix=fix))
