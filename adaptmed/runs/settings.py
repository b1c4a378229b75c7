"""Settings from JSON values: dataclasses built by name and type, and the file that holds a run's configuration."""

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from adaptmed.errors import InputError, sentence
from adaptmed.runs.precision import Precision

Settings = TypeVar("Settings")
_WORDS: Mapping[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_HEADER = ("command", "run", "bank", "subjects", "tuned", "lora_tuned", "start_sha256", "labels_read")
_CHECKS = re.compile(r".*_(sha256|token_key)")
_FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


@dataclass(frozen=True)
class RunSettings:
    """Settings that every run of training has.

    Attributes:
        seed: Of everything random.
        precision: Of the forward pass.
    """

    seed: int = 0
    precision: Precision = "bf16"

    @classmethod
    def of(cls, held: Mapping[str, Any], *others: str, **given: Any) -> Self:
        """Take what was given, then what a configuration holds, then the defaults.

        Args:
            held: Settings of a configuration.
            others: What it may hold beside these.
            given: Values of the command line; ``None`` where one was left out.

        Raises:
            InputError: The configuration holds something else.
        """
        own = [field.name for field in fields(cls)]
        check_names("config", held, (*others, *own))
        values = {name: held[name] for name in own if name in held}
        return build_settings(cls, "config", values | {name: v for name, v in given.items() if v is not None})


def build_settings(kind: type[Settings], name: str, values: Mapping[str, Any]) -> Settings:
    """Build a dataclass of settings from JSON values; what is left out takes its default.

    Args:
        kind: A dataclass whose fields are numbers, words, switches, sequences of them or such dataclasses.
        name: What errors call it.
        values: By the names of its fields.

    Raises:
        InputError: A name is unknown (the nearest one is told) or missing, or a value has another type.

    Example:
        >>> from adaptmed.lora import LoRA
        >>> build_settings(LoRA, "lora", {"rank": 4, "roles": ["mlp"]})
        LoRA(rank=4, alpha=None, roles=('mlp',), dropout=0.0)
    """
    known: Iterable[Field[Any]] = fields(kind)  # type: ignore[arg-type]
    check_names(name, values, [field.name for field in known])
    for field in known:
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(sentence(f"{name}.{field.name}", expected="a value", got="none", fix="Add it."))
    hints = get_type_hints(kind)
    return kind(**{field: _read(f"{name}.{field}", value, hints[field]) for field, value in values.items()})


def check_names(where: str, found: Iterable[str], known: Collection[str], *, fix: str = "Check the spelling.") -> None:
    """Refuse unknown names, and tell the nearest known one.

    Raises:
        InputError: One is unknown.
    """
    for name in found:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
            told = f"Did you mean {near[0]}?" if near else fix
            raise InputError(sentence(where, expected=f"one of {', '.join(known)}", got=str(name), fix=told))


def read_settings(path: Path | None, command: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what the ``config.json`` of a run holds, as JSON or YAML.

    Args:
        path: The file; ``None`` holds nothing.
        command: The command that repeats the run.

    Returns:
        What the run was made from (``run``, ``bank``, ``start_sha256``, …), and its settings. Hashes of what it read
        are left out: the command that repeats it may read something else.

    Raises:
        InputError: There is no such file, it is damaged, or holds the configuration of another command.
    """
    if path is None:
        return {}, {}
    expected, fix = f"a configuration of `adaptmed {command}`", "Name the config.json of such a run, or a copy of it."
    try:
        found = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(sentence(str(path), expected=expected, got=str(error).split("\n")[0], fix=fix)) from error
    if not isinstance(found, dict) or found.get("command", command) != command:
        got = f"one of `adaptmed {found['command']}`" if isinstance(found, dict) else type(found).__name__
        raise InputError(sentence(str(path), expected=expected, got=got, fix=fix))
    header = {name: found[name] for name in _HEADER if name in found}
    held = {name: value for name, value in found.items() if name not in header and not _CHECKS.fullmatch(name)}
    return header, held


def task_of(task: str | None, held: dict[str, Any], usual: str) -> str:
    """Return the task that was asked for, or else that of a configuration, which then is taken out of it.

    Raises:
        InputError: The configuration is that of another task.
    """
    own = held.pop("task", usual) if held else None
    if task is not None and own not in (None, task):
        fix = "Leave --task out, or name the config.json of such a run."
        raise InputError(sentence("config", expected=f"a configuration of --task {task}", got=own, fix=fix))
    return task or own or usual


def bank_of(bank: Path | None, header: Mapping[str, Any]) -> Path:
    """Return the bank that was named, or else the one that a configuration names.

    Raises:
        InputError: Neither is.
    """
    named = bank or header.get("bank")
    if named is None:
        fix = "Name the bank that `adaptmed embed` wrote."
        raise InputError(sentence("bank", expected="a bank", got="none", fix=fix))
    return Path(named)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, which YAML 1.1 takes for a word."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def _read(name: str, value: Any, hint: Any) -> Any:
    """Return a JSON value as the type of its setting; a whole number is a number too."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in kinds:
        if _fits(kind, value):
            return _converted(name, value, kind)
    expected = " or ".join(_expected(kind) for kind in kinds)
    raise InputError(sentence(name, expected=expected, got=repr(value), fix="Choose one of that kind."))


def _fits(kind: Any, value: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return value in get_args(kind)
    if origin in (tuple, Sequence):
        return isinstance(value, list | tuple)
    if origin is not None:
        return isinstance(value, Mapping)
    if is_dataclass(kind):
        return isinstance(value, Mapping) or type(value) is kind
    if kind is type(None):
        return value in (None, "none")  # a command line knows words alone
    return type(value) in ((int, float) if kind is float else (kind,))


def _converted(name: str, value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if origin in (tuple, Sequence):
        return tuple(_read(name, one, get_args(kind)[0]) for one in value)
    if origin is not None and isinstance(value, Mapping):
        key, each = get_args(kind)  # JSON knows words alone as names
        return {int(k) if key is int else k: _read(f"{name}.{k}", v, each) for k, v in value.items()}
    if isinstance(value, Mapping):
        return build_settings(kind, name, value)
    if kind is type(None):
        return None
    return float(value) if kind is float else value


def _expected(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind is type(None):
        return "none"
    several = get_origin(kind) in (tuple, Sequence)
    return _WORDS.get(kind, "several of them" if several else "names with their values")


def refuse_foreign(task: str, owner: str, options: Mapping[str, object]) -> None:
    """Refuse options of one task that were given to another, where they would be ignored.

    Args:
        task: What was asked for.
        owner: The task that has these options.
        options: Their values by name; ``None`` or empty where one was left out.

    Raises:
        InputError: One was given although ``task`` is not ``owner``.

    Example:
        >>> refuse_foreign("segmentation", "segmentation", {"steps": 20})
    """
    for name, value in options.items():
        if task != owner and value is not None and value != ():
            expected, fix = f"an option that --task {task} has", f"Leave it out; it belongs to --task {owner}."
            raise InputError(sentence(name, expected=expected, got=value, fix=fix))
