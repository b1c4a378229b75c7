"""Lines of the README's shell blocks: which there are, and which are commands of adaptmed."""

import re
import shlex
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
OTHERS = {
    "make demo": "it makes a virtual environment from a package index; tests/cli/test_whole_way.py runs the demo",
    "make test": "it runs these tests",
    "python examples/brain_volumes.py --out runs/brain-volumes": "it takes ten minutes; tests/examples runs it small",
}
"""Lines that no test runs as they stand, and why."""


def lines_of(readme: str) -> list[str]:
    """Return every line of the ``sh`` blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def words_of(line: str) -> list[str] | None:
    """Return the words after ``adaptmed``, which torchrun may start; None for another program."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[0] == "adaptmed" else None


def out_of(words: list[str]) -> str | None:
    """Return the folder that a command writes, where it is said."""
    return words[words.index("--out") + 1] if "--out" in words else None


def read_by(words: list[str]) -> set[str]:
    """Return the banks and runs that a command reads."""
    named = {word for word in words if word.startswith(("bank", "runs/")) and ":" not in word}
    return named - {out_of(words)}


COMMANDS = {line: words for line in lines_of(README) if (words := words_of(line)) is not None}
