"""A head on disk: its tensors, and last the facts that say what it reads and predicts; damage is refused in words."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_json, write_tensors

Built = TypeVar("Built")


def save_head(folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write ``name.safetensors``, and then ``name.json``.

    Args:
        folder: Run folder.
        name: Of both files.
        tensors: Of the head.
        facts: JSON values.
    """
    write_tensors(folder / f"{name}.safetensors", tensors)
    write_json(folder / f"{name}.json", facts)


def load_head(
    folder: Path, name: str, build: Callable[[dict[str, Any], dict[str, Tensor]], Built], *, task: str
) -> Built:
    """Read a head.

    Args:
        folder: Run folder.
        name: Of both files.
        build: From facts and tensors to the head, filled.
        task: Named in the way out.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path, kind = folder / f"{name}.json", name.replace("_", " ")
    if not path.is_file():
        fix = f"Name the run folder of `adaptmed finetune --task {task}`, and run it to its end."
        raise InputError(sentence(str(folder), expected=f"a {kind} in {path.name}", got="none", fix=fix))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and replaced
            return build(facts, load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        got, fix = f"{type(error).__name__}: {str(error)[:200]}", "Run `adaptmed finetune` again into another --out."
        raise InputError(sentence(str(path), expected=f"a whole {kind}", got=got, fix=fix)) from error
