"""The command line as a stranger meets it: help, exit codes, one sentence for an error."""

import json
import subprocess
import sys

import pytest

from adaptmed import __version__, cli
from adaptmed.cli import doctor
from adaptmed.errors import InputError


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    return end.value.code


def fail_with(monkeypatch, error: BaseException) -> int:
    """Run a command whose work raises ``error``."""

    def broken_command() -> None:
        """Fail."""
        raise error

    monkeypatch.setattr(doctor, "doctor", broken_command)
    return run("doctor")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(capsys, name):
    assert run(name, "--help") == 0
    assert f"Usage: adaptmed {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_and_parameter_is_documented(name):
    command = cli.build()[name]
    assert command.help
    assert [
        a.name for a in command.assemble_argument_collection(parse_docstring=True) if a.show and not a.parameter.help
    ] == []


@pytest.mark.parametrize("words", [(), ("--help",)])
def test_the_overview_names_every_command_with_a_sentence(capsys, words):
    assert run(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.COMMANDS:
        assert any(f" {name} " in line and len(line.strip(" │").split()) > 3 for line in lines), name


def test_version(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("words", [("no-such-command",), ("doctor", "--no-such-option")])
def test_what_is_not_understood_is_exit_code_2(words):
    assert run(*words) == 2


def test_an_error_is_one_sentence(monkeypatch, capsys):
    text = "`labels`: expected [0, 1], but got [bold]2[/bold]. " + "A long way out. " * 20
    assert fail_with(monkeypatch, InputError(text)) == 1
    printed = capsys.readouterr()
    assert printed.err == f"Error: {text}\n"
    assert printed.out == ""


def test_torchrun_is_told_the_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run("pretrain", str(tmp_path / "gone"), "--out", str(tmp_path / "run")) == 1
    assert "expected a whole bank" in json.loads((tmp_path / "error.json").read_text())["message"]["message"]


@pytest.mark.parametrize(
    ("command", "refused"), [("study", True), ("predict", True), ("finetune", False), ("pretrain", False)]
)
def test_commands_that_share_no_work_run_in_one_process(monkeypatch, capsys, tmp_path, command, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    run(command, str(tmp_path / "gone"), "--out", str(tmp_path / "out"))
    said = f"`{command}`: expected one process, but got 2 under torchrun"
    assert (said in capsys.readouterr().err) is refused


def test_stopping_is_exit_code_130(monkeypatch, capsys):
    assert fail_with(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "Stopped; run the same command again to continue.\n"


def test_an_unknown_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "doctor", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        cli.main(["doctor"])


def test_a_count_of_failures_becomes_the_exit_code(monkeypatch):
    monkeypatch.setattr(doctor, "doctor", lambda: 1)
    assert run("doctor") == 1


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "adaptmed", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)
