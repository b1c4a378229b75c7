"""Laws of the house beside the way of its imports; ``python -m tests.house`` prints the figures behind them."""

from pathlib import Path
from typing import Annotated

import pytest
from cyclopts import App, Parameter

from adaptmed import cli
from tests import house

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "adaptmed"
DEEPEST_CHAIN, BIGGEST_ROOM, FULLEST_FOLDER, PLAIN_OPTIONS = 18, 0.20, 14, 16
SWAPS = {"files.py", "adaptor/saving.py", "cli/demo.py", "training/callbacks.py"}
"""Where a path is renamed: the one writer, and the places that swap folders or take a checkpoint back."""

# What still breaks a law. An entry that is no longer needed fails the test, so that these only shrink.
KNOWN_FOLDERS: dict[str, int] = {}
KNOWN_COMMANDS: dict[str, int] = {}
KNOWN_TASKS: set[str] = set()
KNOWN_FUSIONS: set[str] = set()
KNOWN_NEGATIVES: set[str] = set()
KNOWN_CLI: set[str] = set()
KNOWN_WIDE = {
    "adaptmed.adaptor.model.Adaptor.from_bank": 7,
    "adaptmed.adaptor.model.Adaptor.from_encoders": 10,
    "adaptmed.bank.loader.BankLoader.__init__": 12,
    "adaptmed.bank.loader.epoch_batches": 7,
    "adaptmed.embedding.images.write_images": 7,
    "adaptmed.embedding.texts._write_texts": 7,
    "adaptmed.objectives.overlap.dice_cross_entropy": 7,
    "adaptmed.objectives.overlap.dice_focal": 8,
    "adaptmed.pretraining.calibrate.calibrate": 11,
    "adaptmed.pretraining.module.Pretraining.__init__": 7,
    "adaptmed.pretraining.pretrain.pretrain": 12,
    "adaptmed.pretraining.pretrain.run_job": 9,
    "adaptmed.study.classification.study.study": 8,
    "adaptmed.study.segmentation.arms._trained": 7,
    "adaptmed.study.segmentation.study.study_segmentation": 8,
    "adaptmed.study.statistics.retrieval_records": 8,
    "adaptmed.tasks.classification.head.finetune_head": 11,
    "adaptmed.tasks.retrieval.judging.judge_retrieval": 9,
    "adaptmed.tasks.retrieval.reranking.pair_logits": 7,
    "adaptmed.tasks.retrieval.reranking.pair_logits_both_ways": 7,
}


def test_chains_rooms_and_folders_stay_small():
    assert len(house.chain(PACKAGE)) <= DEEPEST_CHAIN
    assert house.big_rooms(PACKAGE, BIGGEST_ROOM) == set()
    assert house.full_folders(PACKAGE, FULLEST_FOLDER) == KNOWN_FOLDERS


def test_no_module_imports_itself_by_way_of_others():
    assert house.circles(PACKAGE) == []


@pytest.mark.parametrize(
    ("measure", "known"),
    [
        (house.task_imports, KNOWN_TASKS),
        (house.part_imports, set()),
        (house.fusion_names, KNOWN_FUSIONS),
        (house.renames, SWAPS),
        (house.negatives, KNOWN_NEGATIVES),
        (house.wide, KNOWN_WIDE),
    ],
    ids=["tasks", "parts", "fusions", "renames", "negatives", "arguments"],
)
def test_laws(measure, known):
    assert measure(PACKAGE) == known


def test_a_file_of_the_command_line_is_a_command():
    assert house.odd_files_of_cli(PACKAGE, cli.COMMANDS) == KNOWN_CLI


def test_a_command_shows_few_options_outside_groups():
    assert house.crowded(cli.build(), cli.COMMANDS, PLAIN_OPTIONS) == KNOWN_COMMANDS


def test_no_test_imports_a_conftest():
    assert house.conftest_imports(ROOT / "tests") == set()


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write a package called adaptmed."""
    for file, code in files.items():
        path = folder / "adaptmed" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return folder / "adaptmed"


@pytest.mark.parametrize(
    ("measure", "file", "code"),
    [
        (house.fusion_names, "study/arms.py", "from adaptmed.fusion.co import CoFusion"),
        (house.fusion_names, "study/arms.py", "isinstance(x, cross.CrossFusion)"),
        (house.renames, "bank/write.py", "path.rename(target)"),
        (house.renames, "bank/write.py", "fresh.with_suffix('.part').replace(target)"),
        (house.renames, "bank/write.py", "os.replace(fresh, target)"),
        (house.negatives, "bank/read.py", "sentence('x', expected=f'nothing beside {y}', got=1, fix='')"),
        (house.negatives, "bank/read.py", "expected, got = 'nothing there', 2"),
        (house.conftest_imports, "bank/test_read.py", "from tests.bank.conftest import one"),
    ],
)
def test_a_breach_of_a_law_is_seen(tmp_path, measure, file, code):
    assert measure(write(tmp_path, {file: code, "types.py": "x = dataclasses.replace(y)"})) == {file}


def test_breaches_among_tasks_are_seen(tmp_path):
    package = write(
        tmp_path,
        {
            "tasks/pairs/judge.py": "from adaptmed.tasks.masks.task import x",
            "tasks/masks/task.py": "from adaptmed.tasks import settings, masks",
            "tasks/settings.py": "def f():\n    import adaptmed.tasks.pairs.judge",
        },
    )
    assert house.task_imports(package) == {"tasks/pairs/judge.py -> masks", "tasks/settings.py -> pairs"}


def test_breaches_among_terms_and_presets_are_seen(tmp_path):
    package = write(
        tmp_path,
        {
            "pretraining/terms/__init__.py": "from adaptmed.pretraining.terms.words import Words",
            "pretraining/terms/patches.py": "from adaptmed.pretraining.terms.words import Words",
            "pretraining/step.py": "def f():\n    from adaptmed.pretraining.terms.words import Words",
            "pretraining/choices.py": "from adaptmed.pretraining.terms import TERMS",
            "methods/__init__.py": "from adaptmed.methods.umd import umd",
            "methods/umd.py": "from adaptmed.pretraining.terms.words import Words",
            "methods/m3ae.py": "from adaptmed.methods.umd import umd",
        },
    )
    assert house.part_imports(package) == {
        "pretraining/terms/patches.py -> words",
        "pretraining/step.py -> words",
        "methods/m3ae.py -> umd",
    }


def test_many_arguments_are_seen_outside_the_command_line(tmp_path):
    code = "class A:\n    def f(self, a, b, c, /, d, *, e, f, g): ..."
    package = write(tmp_path, {"adaptor/model.py": code, "cli/embed.py": code})
    assert house.wide(package) == {"adaptmed.adaptor.model.A.f": 7}


def test_chains_and_circles_are_seen(tmp_path):
    later = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import adaptmed.a\ndef f():\n    import adaptmed.a"
    )
    straight = {"a.py": "from adaptmed import b", "b.py": "import adaptmed.c", "c.py": later}
    package = write(tmp_path / "straight", straight)
    assert (house.chain(package), house.circles(package)) == (["adaptmed.a", "adaptmed.b", "adaptmed.c"], [])
    assert house.rooms(package).total() == 7
    assert house.folders(package) == {".": 3}
    package = write(tmp_path / "round", straight | {"c.py": "from adaptmed.b import x", "d.py": "import adaptmed.c"})
    assert house.circles(package) == ["adaptmed.b", "adaptmed.c"]


def test_big_rooms_and_full_folders_are_seen(tmp_path):
    package = write(tmp_path, {"types.py": "x = 1\n", "bank/read.py": "x = 1\n" * 3, "bank/write.py": "x = 1\n"})
    assert house.big_rooms(package, 0.8) == set()
    assert house.big_rooms(package, 0.79) == {"bank"}
    assert house.full_folders(package, 2) == {}
    assert house.full_folders(package, 1) == {"bank": 2}


def test_a_file_that_is_no_command_is_seen(tmp_path):
    files = dict.fromkeys(("cli/__init__.py", "cli/embed.py", "cli/show.py", "cli/words/embedding.py", "words.py"), "")
    assert house.odd_files_of_cli(write(tmp_path, files), ["embed"]) == {"embedding"}


def test_options_outside_groups_are_counted():
    app = App()

    @app.command
    def plain(first: int = 0, *, second: int = 0, hidden: Annotated[int, Parameter(show=False)] = 0):
        """Two options are shown."""

    @app.command
    def grouped(first: int = 0, *, second: Annotated[int, Parameter(group="Masks")] = 0):
        """One option stands in a group."""

    assert house.crowded(app, ["plain", "grouped"], 1) == {"plain": 2}
    assert house.crowded(app, ["plain", "grouped"], 2) == {}
