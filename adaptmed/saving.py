"""A saved adaptor on disk: closed-schema JSON, one safetensors file, a card; never a frozen weight, never a pickle."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.records import EncoderRecord
from adaptmed.types import Preprocessing

SCHEMA = 1
CONFIG_FILE = "adaptmed_config.json"
TENSOR_FILE = "adaptor.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdaptorConfig:
    """The whole of ``adaptmed_config.json``.

    Attributes:
        schema: Version of this layout.
        versions: Library versions it was written with.
        fusion: Kind and shape of the fusion.
        image: The image encoder.
        text: The text encoder.
        layout: How image Tokens are laid out before the fusion, as the bank stores them: ``all``, ``pooled``, or
            ``gridN`` for an N × N grid.
        labels: Names of the labels the adaptor was judged on, if any.
    """

    schema: int = SCHEMA
    versions: dict[str, str]
    fusion: dict[str, Any]
    image: EncoderRecord
    text: EncoderRecord
    layout: str
    labels: tuple[str, ...] = ()


def library_versions() -> dict[str, str]:
    """Versions of adaptmed and of the libraries whose behaviour a saved adaptor depends on."""
    return {name: version(name) for name in ("adaptmed", "torch", "timm", "open_clip_torch", "transformers")}


def write_adaptor(
    folder: Path, config: AdaptorConfig, tensors: Mapping[str, Tensor], *, metrics: Mapping[str, Any], card: str
) -> None:
    """Write a saved adaptor as a whole: into a folder beside the wanted one, renamed into place at the end.

    Args:
        folder: Where it will stand; an earlier saved adaptor there is replaced, anything else is refused.
        config: Everything that is not a tensor.
        tensors: Trainable tensors and the fusion's own buffers.
        metrics: Written to ``metrics.json``.
        card: Written to ``README.md``.

    Raises:
        InputError: If ``folder`` holds something that is not a saved adaptor.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
        raise InputError(
            sentence(str(folder), expected="an empty folder or a saved adaptor", got="other files", fix="Name another.")
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / TENSOR_FILE)
        (fresh / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=2) + "\n")
        (fresh / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        (fresh / "README.md").write_text(card)
        fresh.chmod(0o755)
        earlier = fresh.with_name(f"{fresh.name}-earlier")
        if folder.exists():
            folder.rename(earlier)
        fresh.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def find_adaptor(folder: Path) -> Path:
    """Return the saved adaptor that ``folder`` is, or that the run folder ``folder`` holds.

    Raises:
        InputError: If there is none.
    """
    for candidate in (folder, folder / "adaptor"):
        if (candidate / CONFIG_FILE).is_file():
            return candidate
    raise InputError(
        sentence(
            str(folder),
            expected=f"a saved adaptor (a folder with {CONFIG_FILE}) or a finished run",
            got="neither" if folder.exists() else "no such folder",
            fix="Run `adaptmed pretrain` to its end, or name another folder.",
        )
    )


def read_adaptor(folder: Path) -> tuple[AdaptorConfig, dict[str, Tensor]]:
    """Read a saved adaptor.

    Raises:
        InputError: If there is none, its schema is another one, or a field is unknown or missing.
    """
    folder = find_adaptor(folder)
    found = json.loads((folder / CONFIG_FILE).read_text())
    if found.get("schema") != SCHEMA:
        raise InputError(
            sentence(
                f"{folder / CONFIG_FILE}: schema",
                expected=str(SCHEMA),
                got=found.get("schema"),
                fix=f"It was written with {found.get('versions', {}).get('adaptmed', 'an unknown version')}; use that.",
            )
        )
    values = _closed(AdaptorConfig, found, folder)
    values["labels"] = tuple(values["labels"])
    for side in ("image", "text"):
        record = _closed(EncoderRecord, values[side], folder)
        if record["preprocessing"] is not None:
            record["preprocessing"] = preprocessing_from_json(record["preprocessing"])
        values[side] = EncoderRecord(**record)
    return AdaptorConfig(**values), load_file(folder / TENSOR_FILE)


def preprocessing_from_json(found: Mapping[str, Any]) -> Preprocessing:
    """Rebuild Preprocessing from the lists and numbers a JSON file holds."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return Preprocessing(**values)


def _closed(kind: type[AdaptorConfig] | type[EncoderRecord], found: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    if set(found) != known:
        raise InputError(
            sentence(
                f"{folder / CONFIG_FILE}",
                expected=f"exactly the fields {', '.join(sorted(known))}",
                got=f"missing {sorted(known - set(found))}, unknown {sorted(set(found) - known)}",
                fix="Save the adaptor again with this version.",
            )
        )
    return dict(found)
