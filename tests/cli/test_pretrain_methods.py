"""The options of `adaptmed pretrain` become a method: a preset or a configuration, changed value by value."""

import json
from types import SimpleNamespace

import pytest
import yaml

from adaptmed import methods
from adaptmed.cli import main
from adaptmed.methods import changed, preset_of, to_json
from tests.tiny_bank import write_tiny_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_tiny_bank(tmp_path_factory.mktemp("tiny") / "bank").folder


@pytest.fixture
def asked(bank, tmp_path, monkeypatch):
    """Return the method and the options that a command line asks for, or what it is refused with."""
    made = SimpleNamespace(print_trainable_parameters=lambda: None)

    def asked(*words, source=(str(bank),)):
        found = []

        def take(bank, method, _out, **options):
            found.append((method, options | {"bank": bank.folder}))
            return made

        monkeypatch.setattr("adaptmed.pretraining.pretrain.pretrain", take)
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", *source, "--out", str(tmp_path / "run"), *words])
        return found[0] if ended.value.code == 0 else ended.value.code

    return asked


@pytest.mark.parametrize("name", methods.PRESETS)
@pytest.mark.parametrize("size", ["light", "paper"])
def test_a_preset_by_its_name(asked, name, size):
    assert asked("--method", name, "--size", size)[0] == preset_of(name, size=size)


def test_every_value_can_be_set(asked):
    words = ["patches.ratio=0.5", "words.share=0.3", "words.whole=false", "patches.layer=2", "matching.negatives=hard"]
    found, _ = asked("--method", "m3ae", *(part for word in words for part in ("--set", word)), "--epochs", "3")
    changes = {"patches": {"ratio": 0.5, "layer": 2}, "words": {"share": 0.3, "whole": False}}
    changes |= {"matching": {"negatives": "hard"}, "schedule": {"epochs": 3, "least_steps": 0}}
    assert found == changed(methods.m3ae(), changes)


def test_quick_options_and_the_released_arrangement(asked):
    found, _ = asked("--batch-size", "8", "--learning-rate", "0.01", "--set", "schedule.ema=0.9")
    assert found == changed(methods.adaptor(), {"schedule": {"batch_size": 8, "learning_rate": 0.01, "ema": 0.9}})
    assert asked("--method", "umd", "--faithful")[0] == methods.umd(faithful=True)
    bare = asked("--method", "umd", "--set", "text_features.weight=0", "--set", "image_features.weight=0")[0]
    assert bare.teacher_decay is None


def test_the_line_of_the_readme_for_an_image_encoder_alone(asked):
    left_out = [f"{name}.weight=0" for name in ("matching", "words", "image_features", "text_features")]
    found, _ = asked("--method", "umd", *(p for word in ["patches.beside=none", *left_out] for p in ("--set", word)))
    assert list(found.weights) == ["patches"]
    assert not found.reads_texts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "mae"], "`method`: expected one of adaptor, m3ae, umd, but got mae"),
        (["--method", "m3ae", "--faithful"], "`faithful`: expected a method that has this option (adaptor, umd)"),
        (["--set", "wrods.share=1"], "`set`: expected one of fusion, contrastive, matching, words, patches"),
        (["--set", "patches.ratio=0.5"], "`patches`: expected a term of the method adaptor, but got one it has not"),
        (["--method", "umd", "--set", "words.share=0"], "`words.share`: expected a share above 0 and below 1"),
        (["--set", "words"], "`set`: expected part.field=value"),
        (["--config", "missing.yaml"], "`missing.yaml`: expected a configuration of `adaptmed pretrain`"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(asked, capsys, tmp_path, words, message):
    assert asked(*words) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def shown(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", *words, "--show"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_shown_is_what_is_used_and_repeats_it(asked, capsys, tmp_path):
    words = ("--method", "umd", "--set", "words.share=0.2", "--seed", "5", "--text-lora", "rank=4", "--accumulate", "3")
    words += ("--precision", "bf16")
    values = shown(capsys, *words)
    method, options = asked(*words)
    assert values["method"] == to_json(method)
    assert (values["seed"], values["precision"]) == (options["seed"], options["precision"]) == (5, "bf16")
    for name, text in (("run.json", json.dumps(values)), ("run.yaml", yaml.safe_dump(values))):
        (tmp_path / name).write_text(text)
        again, others = asked("--config", str(tmp_path / name))
        assert again == method
        assert {**others, "bank": 0} == {**options, "bank": 0}
        varied, others = asked("--config", str(tmp_path / name), "--set", "words.share=0.3", "--seed", "6")
        assert varied == changed(method, {"words": {"share": 0.3}})
        assert (others["seed"], others["online"]) == (6, options["online"])
        assert asked("--config", str(tmp_path / name), "--method", "m3ae")[0] == methods.m3ae()


def test_the_configuration_of_a_run_names_its_bank(asked, bank, capsys, tmp_path):
    values = shown(capsys) | {"bank": str(bank), "image_token_key": "ab", "manifest_sha256": "cd", "start_sha256": None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    method, options = asked("--config", str(tmp_path / "config.json"), source=())
    assert (method, options["bank"]) == (methods.adaptor(), bank)
    (tmp_path / "config.json").write_text(json.dumps(values | {"start_sha256": "ef"}))
    assert asked("--config", str(tmp_path / "config.json"), source=()) == 1
    assert "`start`: expected the run that this one started from, but got none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"command": "study"}', "expected a configuration of `adaptmed pretrain`, but got one of `adaptmed study`"),
        ("[1]", "expected a configuration of `adaptmed pretrain`, but got list"),
        ("{", "expected a configuration of `adaptmed pretrain`"),
        (
            '{"command": "pretrain", "sede": 3}',
            "`config`: expected one of method, online, seed, precision, but",
        ),
        ('{"seed": "many"}', "`config.seed`: expected a whole number, but got 'many'"),
        ('{"method": {"name": "umd"}}', "expected the fields of a method"),
        ('{"method": "umd"}', "`method`: expected the fields of a method, but got 'umd'"),
    ],
)
def test_a_configuration_of_something_else_is_refused(asked, capsys, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert asked("--config", str(tmp_path / "run.yaml")) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_a_bank_or_a_folder_it_says_what_is_missing(capsys, bank):
    for words, message in (
        ([str(bank)], "`out`: expected a run folder"),
        (["--out", "x"], "`source`: expected a bank"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["pretrain", *words])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err
