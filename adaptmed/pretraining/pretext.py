"""Pretext modules of a run: built for a method, and kept in a file that calibration and re-ranking read."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_tensors
from adaptmed.pretext.matching import MatchingHead
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.views import Sizes

PRETEXT = "pretext.safetensors"
_MATCHING = "matching."


def build_pretext(method: Method, sizes: Sizes) -> nn.ModuleDict:
    """Build the modules that the terms of a method train, by the name of the term.

    Args:
        method: Terms.
        sizes: What their modules are shaped by.

    Example:
        >>> from adaptmed import methods
        >>> list(build_pretext(methods.adaptor(), Sizes(width=16)))
        ['matching']
    """
    built = {term.name: term.pretext(method, sizes) for term in method.terms}
    return nn.ModuleDict({name: module for name, module in built.items() if module is not None})


def save_pretext(run: Path, modules: nn.Module, *, before: Path | None = None) -> None:
    """Write the pretext modules of a run, whole or not at all.

    Args:
        run: Run folder.
        modules: Of ``build_pretext``.
        before: Run folder this one went on from: what it trained and ``modules`` lack is kept as it was.
    """
    kept = {} if before is None else load_file(before / PRETEXT)
    write_tensors(run / PRETEXT, kept | modules.state_dict())


def load_pretext(run: Path, modules: nn.Module) -> None:
    """Fill pretext modules with what a run has trained; what else the file holds is left alone.

    Args:
        run: Run folder.
        modules: Of ``build_pretext`` for a method of the same sizes.

    Raises:
        InputError: There is no such file, or it lacks a tensor or holds one of another shape.
    """
    found, own = _tensors(run), modules.state_dict()
    other = [name for name, tensor in own.items() if name not in found or found[name].shape != tensor.shape]
    if other:
        fix = "Use the same encoders, --image-size-px and --grid as the run's bank."
        expected = "the pretext modules of this method and bank"
        got = f"{len(other)} others, {other[0]} first"
        raise InputError(sentence(str(run / PRETEXT), expected=expected, got=got, fix=fix))
    modules.load_state_dict({name: found[name] for name in own})


def has_matching(run: Path) -> bool:
    """Whether a run folder holds a matching head; a method without it leaves none, nor the file where it is all."""
    path = run / PRETEXT
    return path.is_file() and any(name.startswith(_MATCHING) for name in _tensors(run))


def load_matching(run: Path, width: int) -> MatchingHead:
    """Read the matching head of a run, in evaluation mode.

    Args:
        run: Run folder of a method that matches.
        width: Of the fusion's joint vector.

    Raises:
        InputError: The run has trained none, or one of another width.
    """
    found = {name.removeprefix(_MATCHING): t for name, t in _tensors(run).items() if name.startswith(_MATCHING)}
    head = MatchingHead(width)
    shapes = {name: tensor.shape for name, tensor in head.state_dict().items()}
    if {name: tensor.shape for name, tensor in found.items()} != shapes:
        fix = "Pre-train with a method that matches: every preset does, without --faithful."
        expected, got = f"a matching head {width} wide", "another" if found else "none"
        raise InputError(sentence(str(run / PRETEXT), expected=expected, got=got, fix=fix))
    head.load_state_dict(found)
    return head.eval()


def _tensors(run: Path) -> dict[str, Tensor]:
    path = run / PRETEXT
    if not path.is_file():
        fix = "Name the run folder of a finished `adaptmed pretrain`, not the adaptor inside."
        raise InputError(sentence(str(run), expected=f"a run folder with {PRETEXT}", got="none", fix=fix))
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
