"""How an encoder is tuned, and what stands on one that is."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from adaptmed.errors import InputError, sentence
from adaptmed.types import Role


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """How an encoder is tuned.

    Attributes:
        rank: Rank of every update; at least 1.
        alpha: The update is scaled by ``alpha / rank``; ``None`` is twice the rank.
        roles: What is tuned: ``attention``, ``mlp`` or both.
        dropout: On the input of the update, in [0, 1); ``nn.MultiheadAttention`` (open_clip) takes none.

    Example:
        >>> LoRA.parse("rank=4,roles=attention+mlp").roles
        ('attention', 'mlp')
    """

    rank: int = 8
    alpha: float | None = None
    roles: tuple[Role, ...] = ("attention",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(sentence("rank", expected="at least 1", got=self.rank, fix="Try 8."))
        if self.alpha is not None and not self.alpha > 0:
            raise InputError(sentence("alpha", expected="above 0", got=self.alpha, fix="Try 16."))
        if not 0 <= self.dropout < 1:
            raise InputError(sentence("dropout", expected="a share in [0, 1)", got=self.dropout, fix="Try 0."))
        unknown = [role for role in self.roles if role not in ("attention", "mlp")]
        if unknown or not self.roles:
            fix = "Depthwise convolutions and norms take no LoRA."
            got = ", ".join(map(str, unknown)) or "none"
            raise InputError(sentence("roles", expected="attention, mlp or both", got=got, fix=fix))

    @property
    def scale(self) -> float:
        """Factor on every update."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``rank=8,alpha=16,roles=attention+mlp,dropout=0.1``, in any order and any part of it.

        Raises:
            InputError: An unknown name or a value that is no number.
        """
        readers: dict[str, Callable[[str], Any]] = {
            "rank": int,
            "alpha": float,
            "dropout": float,
            "roles": lambda value: tuple(value.split("+")),
        }
        values: dict[str, Any] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                values[name.strip()] = readers[name.strip()](value.strip())
            except (KeyError, ValueError) as error:
                expected = "rank=8,alpha=16,roles=attention+mlp,dropout=0.1 or a part of it"
                raise InputError(sentence("LoRA", expected=expected, got=part, fix="Mend this part.")) from error
        return cls(**values)


@dataclass
class Attached:
    """What stands on an encoder that has LoRA.

    Attributes:
        model: peft's own model around the library's module, which it changed in place.
        merged: While LoRA is merged into the weights: what puts everything back.
    """

    model: PeftModel
    merged: "Merged | None" = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """The LoRA tensors: everything on the module that does not belong to the pretrained network."""
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                for group in (layer.lora_A, layer.lora_B):
                    yield from group.parameters()

    def train(self, mode: bool) -> None:
        """Switch LoRA's own dropout on or off; the pretrained network around it keeps its mode."""
        for layer in self.model.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_dropout.train(mode)

    def digest(self) -> str:
        """Return the sha256 over every LoRA here, settings and tensors."""
        found = hashlib.sha256()
        for name, config in sorted(self.model.peft_config.items()):
            found.update(f"{name} {config.r} {config.lora_alpha} {config.target_modules}".encode())
        for parameter in self.parameters():
            found.update(parameter.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Merged:
    """The pretrained weights under LoRA, and every LoRA with its tensors, by adapter; ``active`` was in use."""

    weights: Mapping[str, Tensor]
    adapters: Mapping[str, tuple[PeftConfig, Mapping[str, Tensor]]]
    active: str


@runtime_checkable
class Tunable(Protocol):
    """A frozen encoder of either kind."""

    name: str
    roles: Mapping[Role, tuple[str, ...]]
    lora: Attached | None

    @property
    def module(self) -> nn.Module:
        """The library's own module."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its blocks in order."""
        ...

    def fingerprint(self) -> str:
        """Return the sha256 over the frozen weights."""
        ...
