"""A saved adaptor on disk: closed-schema JSON, one safetensors file, a card; never a frozen weight, never a pickle."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from adaptmed.adaptor.records import EncoderRecord
from adaptmed.errors import InputError, sentence
from adaptmed.files import write_json, write_tensors, write_text_whole
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
        text: The text encoder; ``None`` where images are all there is.
        layout: How image Tokens are laid out before the fusion, as the bank stores them: ``all``, ``pooled``, or
            ``gridN`` for an N × N grid.
        labels: Names of the labels the adaptor was judged on, if any.
    """

    schema: int = SCHEMA
    versions: dict[str, str]
    fusion: dict[str, Any]
    image: EncoderRecord
    text: EncoderRecord | None
    layout: str
    labels: tuple[str, ...] = ()


def library_versions() -> dict[str, str]:
    """Versions of adaptmed and of the libraries whose behaviour a saved adaptor depends on."""
    return {name: version(name) for name in ("adaptmed", "torch", "timm", "open_clip_torch", "transformers", "peft")}


def write_adaptor(
    folder: Path,
    config: AdaptorConfig,
    tensors: Mapping[str, Tensor],
    *,
    metrics: Mapping[str, Any],
    card: str,
    write_lora: Callable[[Path], None],
) -> None:
    """Write a saved adaptor as a whole: into a folder beside the wanted one, renamed into place at the end.

    Args:
        folder: Where it will stand; an earlier saved adaptor there is replaced, anything else is refused.
        config: Everything that is not a tensor.
        tensors: Trainable tensors and the fusion's own buffers.
        metrics: Written to ``metrics.json``.
        card: Written to ``README.md``.
        write_lora: Writes ``image_lora`` and ``text_lora``, where there is LoRA, into the folder it is given.

    Raises:
        InputError: If ``folder`` is a file or holds something that is not a saved adaptor, or a metric is nothing that
            JSON can hold.
    """
    _check_target(folder)
    _check_metrics(metrics)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_tensors(fresh / TENSOR_FILE, tensors)
        write_json(fresh / CONFIG_FILE, asdict(config))
        write_json(fresh / "metrics.json", metrics)
        write_text_whole(fresh / "README.md", card)
        write_lora(fresh)
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
        InputError: If there is none, a file is damaged, its schema is another one, or a field is unknown or missing.
    """
    folder = find_adaptor(folder)
    name = str(folder / CONFIG_FILE)
    values = _closed(AdaptorConfig, _read_config(folder / CONFIG_FILE), name)
    if not isinstance(values["labels"], list):
        raise _damaged(f"{name}: labels", "a list", repr(values["labels"]))
    values["labels"] = tuple(values["labels"])
    values["fusion"] = _named_values(values["fusion"], f"{name}: fusion")
    values["image"] = _record(values["image"], f"{name}: image")
    values["text"] = None if values["text"] is None else _record(values["text"], f"{name}: text")
    return AdaptorConfig(**values), _read_tensors(folder / TENSOR_FILE)


def fill_fusion(fusion: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load saved tensors into a fusion.

    Args:
        fusion: Of the shape that the configuration says.
        tensors: As ``read_adaptor`` gives them.
        name: Of the folder, named in the error.

    Raises:
        InputError: Tensors are missing, unknown, or of another shape.
    """
    own = {key: tensor.shape for key, tensor in fusion.state_dict().items()}
    saved = {key: tensor.shape for key, tensor in tensors.items()}
    other = sorted(key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key))
    if other:
        got = f"another {other[0]}: {saved.get(other[0], 'none')} in place of {own.get(other[0], 'none')}"
        fix = "Copy or save the adaptor again; its two files do not belong together."
        raise InputError(sentence(name, expected="the tensors of this fusion", got=got, fix=fix))
    fusion.load_state_dict(dict(tensors))


def _check_target(folder: Path) -> None:
    """Refuse to write where a file or anything but an earlier saved adaptor stands."""
    standing = next(path for path in (folder, *folder.parents) if path.exists())
    if not standing.is_dir():
        raise InputError(sentence(str(standing), expected="a folder", got="a file", fix="Name another folder."))
    if standing == folder and any(folder.iterdir()) and not (folder / CONFIG_FILE).exists():
        raise InputError(
            sentence(str(folder), expected="an empty folder or a saved adaptor", got="other files", fix="Name another.")
        )


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    for name, value in metrics.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            expected, fix = "finite numbers, strings, lists or None", "Turn it into one of these, or pass None."
            raise InputError(sentence(f"metrics[{name!r}]", expected=expected, got=repr(value), fix=fix)) from error


def _read_config(path: Path) -> Mapping[str, Any]:
    expected = "the whole configuration of a saved adaptor"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(str(path), expected, f"{type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(str(path), expected, f"a {type(found).__name__}")
    if found.get("schema") != SCHEMA:
        versions = found.get("versions")
        written = versions.get("adaptmed") if isinstance(versions, dict) else None
        fix = f"It was written with {written or 'an unknown version'}; use that."
        raise InputError(sentence(f"{path}: schema", expected=str(SCHEMA), got=found.get("schema"), fix=fix))
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    expected = "a whole safetensors file"
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise _damaged(str(path), expected, "nothing there") from error
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), expected, f"{type(error).__name__}: {error}") from error
    return tensors


def _record(found: object, name: str) -> EncoderRecord:
    """Rebuild the record of an encoder."""
    values = _closed(EncoderRecord, found, name)
    if values["preprocessing"] is not None:
        values["preprocessing"] = _preprocessing(values["preprocessing"], f"{name}.preprocessing")
    return EncoderRecord(**values)


def _preprocessing(found: object, name: str) -> Preprocessing:
    """Rebuild Preprocessing from the lists and numbers a JSON file holds."""
    closed = _closed(Preprocessing, found, name)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in closed.items()}
    return Preprocessing(**values)


def _closed(
    kind: type[AdaptorConfig] | type[EncoderRecord] | type[Preprocessing], found: object, name: str
) -> dict[str, Any]:
    """Return the fields of ``kind``; a missing or an unknown one is refused."""
    values = _named_values(found, name)
    known = {field.name for field in fields(kind)}
    if set(values) != known:
        raise InputError(
            sentence(
                name,
                expected=f"exactly the fields {', '.join(sorted(known))}",
                got=f"missing {sorted(known - set(values))}, unknown {sorted(set(values) - known)}",
                fix="Save the adaptor again with this version.",
            )
        )
    return values


def _named_values(found: object, name: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _damaged(name, "an object of named values", repr(found))
    return dict(found)


def _damaged(name: str, expected: str, got: str) -> InputError:
    return InputError(sentence(name, expected=expected, got=got, fix="Copy or save the adaptor again."))
