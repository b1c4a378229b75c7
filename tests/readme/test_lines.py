"""Every line of the README's shell blocks is a command that adaptmed understands, or is known to be another's."""

import re
from pathlib import Path

import pytest

from adaptmed.cli import build
from tests.readme_lines import COMMANDS, OTHERS, README, lines_of, out_of, read_by

ROOT = Path(__file__).parents[2]


def test_every_line_is_a_command_or_known_to_be_anothers():
    assert [line for line in lines_of(README) if line not in COMMANDS and line not in OTHERS] == []
    assert [line for line in OTHERS if line not in lines_of(README)] == []
    assert len(COMMANDS) == len(lines_of(README)) - len(OTHERS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood_and_names_no_placeholder(line):
    assert "…" not in line
    build().parse_args(COMMANDS[line], exit_on_error=False, print_error=False)


def test_no_two_commands_write_the_same_folder():
    outs = [out for words in COMMANDS.values() if (out := out_of(words)) is not None]
    assert len(outs) == len(set(outs))


def test_a_command_reads_what_an_earlier_one_wrote():
    written: set[str | None] = set()
    for line, words in COMMANDS.items():
        assert read_by(words) <= written, line
        written.add(out_of(words))


def test_the_layout_names_the_rooms_there_are():
    table = README.split("## Repository layout\n\n")[1].split("\n\n")[0]
    named = set(re.findall(r"`adaptmed/([a-z_]+(?:\.py)?)`", table))
    package = ROOT / "adaptmed"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    files = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    assert named == folders | files
