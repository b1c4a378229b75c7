"""How a text model of the Hugging Face hub pools its tokens, as its sentence-transformers files say."""

import json
from pathlib import Path
from typing import Literal

from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from adaptmed.errors import InputError, sentence

Pooling = Literal["mean", "cls", "pooler"]
_FILE, _MODULES = "1_Pooling/config.json", "modules.json"


def pooling_of(source: str, revision: str | None) -> Pooling:
    """Return what the sentence-transformers files of a folder or repository say, ``mean`` where there are none.

    Args:
        source: A local folder, or ``ORG/NAME``.
        revision: Of a repository; ``None`` is its main branch.

    Raises:
        InputError: A pooling that is neither the mean nor the first token, or a model whose ``modules.json`` announces
            a pooling that can neither be found here nor fetched.
    """
    path = _pooling_file(source, revision)
    if path is None:
        return "mean"
    facts = json.loads(path.read_text(encoding="utf-8"))
    modes = {key for key, value in facts.items() if key.startswith("pooling_mode_") and value is True}
    modes |= {f"pooling_mode_{facts['pooling_mode']}"} if "pooling_mode" in facts else set()
    if modes in ({"pooling_mode_mean_tokens"}, {"pooling_mode_mean"}):
        return "mean"
    if modes in ({"pooling_mode_cls_token"}, {"pooling_mode_cls"}):
        return "cls"
    fix = "Edit the file, or use a model with one of these."
    raise InputError(sentence(str(path), expected="mean or cls pooling", got=sorted(modes), fix=fix))


def _pooling_file(source: str, revision: str | None) -> Path | None:
    """Find the file in a folder, in the hub or in the hub's cache; ``None`` where the model has none."""
    folder = Path(source)
    if folder.is_dir():
        if (folder / _FILE).is_file():
            return folder / _FILE
        modules = folder / _MODULES
    else:
        try:
            return Path(hf_hub_download(source, _FILE, revision=revision))
        except LocalEntryNotFoundError:  # no network; a kind of EntryNotFoundError, which says that there is no file
            if try_to_load_from_cache(source, _FILE, revision=revision) is _CACHED_NO_EXIST:
                return None
            modules = Path(str(try_to_load_from_cache(source, _MODULES, revision=revision)))
        except EntryNotFoundError:
            return None
    if not modules.is_file() or "Pooling" not in modules.read_text(encoding="utf-8"):
        return None
    expected = f"{_FILE} in the local cache or the folder, because {_MODULES} announces a pooling"
    fix = "Load it once with network, or copy the model's whole folder to this machine."
    raise InputError(sentence(f"hf:{source}", expected=expected, got="no such file", fix=fix))
