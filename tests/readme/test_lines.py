"""Every line of the README's shell blocks is a command that adaptmed understands, or is known to be another's."""

import re
import shlex
from pathlib import Path

import pytest

from adaptmed.cli import build

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHERS = {
    "make demo": "it makes a virtual environment from a package index; tests/cli/test_whole_way.py runs the demo",
    "make test": "it runs these tests",
    "python examples/brain_volumes.py --out runs/brain-volumes": "it takes ten minutes; tests/examples runs it small",
}


def lines_of(readme: str) -> list[str]:
    """Every line of the ``sh`` blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def words_of(line: str) -> list[str] | None:
    """The words after ``adaptmed``, which torchrun may start; None for another program."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        words = words[words.index("-m") + 1 :]
    return words[1:] if words[0] == "adaptmed" else None


COMMANDS = {line: words for line in lines_of(README) if (words := words_of(line)) is not None}


def test_every_line_is_a_command_or_known_to_be_anothers():
    assert [line for line in lines_of(README) if line not in COMMANDS and line not in OTHERS] == []
    assert [line for line in OTHERS if line not in lines_of(README)] == []
    assert len(COMMANDS) == len(lines_of(README)) - len(OTHERS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood_and_names_no_placeholder(line):
    assert "…" not in line
    build().parse_args(COMMANDS[line], exit_on_error=False, print_error=False)


def test_no_two_commands_write_the_same_folder():
    outs = [words[words.index("--out") + 1] for words in COMMANDS.values() if "--out" in words]
    assert len(outs) == len(set(outs))


def test_a_command_reads_what_an_earlier_one_wrote():
    written: set[str] = set()
    for line, words in COMMANDS.items():
        read = {word for word in words if word.startswith(("bank", "runs/")) and not word.startswith("bundled")}
        out = {words[words.index("--out") + 1]} if "--out" in words else set()
        assert {word for word in read if ":" not in word} - out <= written, line
        written |= out


def test_the_layout_names_the_rooms_there_are():
    table = README.split("## Repository layout\n\n")[1].split("\n\n")[0]
    named = set(re.findall(r"`adaptmed/([a-z_]+(?:\.py)?)`", table))
    package = ROOT / "adaptmed"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == folders | files
