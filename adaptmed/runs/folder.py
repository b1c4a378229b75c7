"""A run folder: resolved configuration, one line of metrics per epoch, checkpoints, and the patients it has seen."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adaptmed.errors import InputError, sentence
from adaptmed.files import is_unfinished, write_text_whole

CONFIG, METRICS, SEEN = "config.json", "metrics.jsonl", "patients_seen.json"
LAST, BEST = Path("checkpoints/last.safetensors"), Path("checkpoints/best.safetensors")
PREVIOUS = Path("checkpoints/previous.safetensors")


def open_run(
    out: Path, config: Mapping[str, Any], *, upgrade: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
) -> None:
    """Start a run folder, or find the one that was started with the same configuration.

    Args:
        out: The run folder.
        config: Everything that decides the result, as JSON values.
        upgrade: Makes of a configuration that an older version wrote what is written today.

    Raises:
        InputError: If the folder holds a run with another configuration, or files that are no run.
    """
    wanted = json.loads(json.dumps(config))
    path = out / CONFIG
    if path.exists():
        found = upgrade(json.loads(path.read_text()))
        differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if differing:
            got = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in differing)
            raise InputError(
                sentence(
                    str(out),
                    expected="a run with the same configuration, to resume",
                    got=got,
                    fix="Name another --out, or delete this one.",
                )
            )
        return
    if out.exists() and not all(map(is_unfinished, out.iterdir())):
        raise InputError(
            sentence(str(out), expected="an empty folder or a run", got="other files", fix="Name another.")
        )
    write_text_whole(path, json.dumps(wanted, indent=2) + "\n")


def write_seen(out: Path, digests: Iterable[str]) -> None:
    """Record the digests of the patients a run reads, before it reads them."""
    write_text_whole(out / SEEN, json.dumps(sorted(digests)) + "\n")


def read_seen(run: Path) -> frozenset[str] | None:
    """Return the digests of the patients a run has read.

    Args:
        run: The run folder, or the saved adaptor inside it.

    Returns:
        The digests; ``None`` when neither folder says, for an adaptor that left its run folder.
    """
    for path in (run / SEEN, run.parent / SEEN):
        if path.exists():
            return frozenset(json.loads(path.read_text()))
    return None


def read_config(run: Path) -> dict[str, Any] | None:
    """Return the configuration a run was started with.

    Args:
        run: The run folder, or the saved adaptor inside it.

    Returns:
        The configuration; ``None`` when neither folder is a run's, for an adaptor that left its run folder.
    """
    for path in (run / CONFIG, run.parent / CONFIG):
        found = json.loads(path.read_text()) if path.exists() else None
        if isinstance(found, dict) and "command" in found:  # a model's folder may have a config.json too
            return found
    return None


def append_metrics(out: Path, line: Mapping[str, Any]) -> None:
    """Append one line, in place of lines of the same or a later step that a stopped run had left."""
    path = out / METRICS
    kept = (
        [old for old in path.read_text().splitlines() if json.loads(old)["step"] < line["step"]]
        if path.exists()
        else []
    )
    write_text_whole(path, "\n".join([*kept, json.dumps(line)]) + "\n")


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the metrics lines of a run, oldest first."""
    path = out / METRICS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
