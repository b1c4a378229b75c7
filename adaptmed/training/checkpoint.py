"""Training checkpoints as one safetensors file: tensors as tensors, the rest as JSON in its header, no pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import safe_open
from torch import Tensor

from adaptmed.files import write_tensors

_TENSOR, _TUPLE, _PAIRS = "__tensor__", "__tuple__", "__pairs__"


def flatten_state(state: Any, tensors: dict[str, Tensor]) -> Any:
    """Move every tensor of a nested state into ``tensors`` and return what is left as JSON values.

    Args:
        state: Dicts, lists, tuples, numbers, strings, ``None``, tensors, nested at will; dict keys may be numbers.
        tensors: Filled with the tensors, under running numbers.

    Raises:
        TypeError: If the state holds anything else: it would need pickle.

    Example:
        >>> flatten_state({0: (1, 2.5)}, {})
        {'__pairs__': [[0, {'__tuple__': [1, 2.5]}]]}
    """
    if isinstance(state, Tensor):
        key = str(len(tensors))
        tensors[key] = state.detach().cpu().contiguous().clone()
        return {_TENSOR: key}
    if isinstance(state, Mapping):
        pairs = [[key, flatten_state(value, tensors)] for key, value in state.items()]
        return dict(pairs) if all(isinstance(key, str) for key, _ in pairs) else {_PAIRS: pairs}
    if isinstance(state, list | tuple):
        values = [flatten_state(value, tensors) for value in state]
        return {_TUPLE: values} if isinstance(state, tuple) else values
    if isinstance(state, os.PathLike):
        return os.fspath(state)
    if state is None or isinstance(state, bool | int | float | str):
        return state
    raise TypeError(f"a checkpoint holds numbers, strings and tensors, but got {type(state).__name__}: {state!r:.80}")


def unflatten_state(found: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo :func:`flatten_state`.

    Example:
        >>> unflatten_state({'__pairs__': [[0, {'__tuple__': [1, 2.5]}]]}, {})
        {0: (1, 2.5)}
    """
    if isinstance(found, dict):
        if _TENSOR in found:
            return tensors[found[_TENSOR]]
        if _TUPLE in found:
            return tuple(unflatten_state(value, tensors) for value in found[_TUPLE])
        if _PAIRS in found:
            return {key: unflatten_state(value, tensors) for key, value in found[_PAIRS]}
        return {key: unflatten_state(value, tensors) for key, value in found.items()}
    if isinstance(found, list):
        return [unflatten_state(value, tensors) for value in found]
    return found


class SafetensorsCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as safetensors, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        """Write a checkpoint."""
        del storage_options  # there is one way to write a file
        tensors: dict[str, Tensor] = {}
        tree = flatten_state(checkpoint, tensors)
        write_tensors(Path(path), tensors, metadata={"tree": json.dumps(tree)})

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; tensors come to the CPU, Lightning moves them on."""
        del map_location, weights_only  # nothing but tensors and JSON is ever in the file
        with safe_open(path, framework="pt") as file:
            tree = json.loads(file.metadata()["tree"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return unflatten_state(tree, tensors)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)
