"""What a fresh interpreter loads: nothing slow for ``import adaptmed`` and for every ``--help``."""

import json
import subprocess
import sys

import pytest

from adaptmed.cli import COMMANDS

HEAVY = {"torch", "timm", "peft", "transformers", "open_clip", "lightning", "monai", "torchmetrics", "datasets"}
SLOW = HEAVY | {"numpy", "pandas", "pyarrow", "sklearn", "matplotlib"}
PRINT_MODULES = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"


def loaded(code: str) -> set[str]:
    """Run ``code`` in a fresh interpreter and return which of the slow libraries it loaded."""
    run = subprocess.run([sys.executable, "-c", f"{code}\n{PRINT_MODULES}"], capture_output=True, text=True, check=True)
    return SLOW & set(json.loads(run.stdout.splitlines()[-1]))


def command(*words: str) -> str:
    """Code that runs ``adaptmed`` with these words and insists on exit code 0."""
    return (
        "from adaptmed.cli import main\n"
        f"try: main({list(words)})\n"
        "except SystemExit as end: assert end.code == 0, end.code"
    )


def test_the_probe_sees_what_is_loaded():
    assert loaded("import torch, datasets") >= {"torch", "datasets", "pandas"}


def test_import_adaptmed_loads_nothing_slow():
    assert loaded("import adaptmed; dir(adaptmed)") == set()


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",)])
def test_the_overview_loads_nothing_slow(words):
    assert loaded(command(*words)) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_loads_nothing_slow(name):
    assert loaded(command(name, "--help")) == set()


def test_adaptor_loads_torch_and_nothing_else_slow():
    assert loaded("from adaptmed import Adaptor") == {"torch", "numpy"}


def test_an_unknown_public_name_is_said():
    import adaptmed

    with pytest.raises(AttributeError, match="no attribute 'Adapter'; it has Adaptor"):
        _ = adaptmed.Adapter
