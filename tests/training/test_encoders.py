"""Training with encoders in the loop: what moves, what is saved, and that it resumes exactly."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from adaptmed import Manifest, load_image_encoder
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.data.augment import augment
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.errors import InputError
from adaptmed.lora import LoRA, saved_parameters
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.folder import BEST, LAST, read_seen, write_seen
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.subject import prepare
from adaptmed.training.encoders import Online, checkpoint_blocks
from adaptmed.training.pixels import PixelReader
from tests.online_bank import write_online_bank
from tests.short_training import METHOD, StopAfter, drop_seconds

SHORT = replace(METHOD, schedule=replace(METHOD.schedule, epochs=2, batch_size=6))
ONLINE = Online(image_lora=LoRA(rank=2), text_lora=LoRA(rank=2, roles=("attention", "mlp")), workers=2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_online_bank(tmp_path_factory.mktemp("online"))


@pytest.fixture(scope="module")
def whole(bank, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(bank, SHORT, out, device="cpu", checkpoint_every=1, online=ONLINE)
    return out


def tensors(out):
    parts = ("adaptor.safetensors", "image_lora/adapter_model.safetensors", "text_lora/adapter_model.safetensors")
    return {f"{part}: {name}": value for part in parts for name, value in load_file(out / "adaptor" / part).items()}


def test_lora_and_fusion_are_trained_and_saved_and_the_pretrained_weights_are_not(bank, whole):
    adaptor = Adaptor.from_pretrained(whole)
    assert adaptor.encoders.image.fingerprint() == bank.info.images.fingerprint
    assert adaptor.encoders.text.fingerprint() == bank.info.texts.fingerprint
    moved = [value.abs().max() > 0 for name, value in tensors(whole).items() if "lora_B" in name]
    assert len(moved) == 2 * 4 + 4 * 6
    assert all(moved)


def test_checkpoints_hold_no_pretrained_weight(whole):
    for path in (whole / LAST, whole / BEST):
        assert path.stat().st_size < 400_000
    names = set(load_file(whole / "adaptor" / "image_lora" / "adapter_model.safetensors"))
    assert all("lora_" in name for name in names)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_stopped_run_resumes_exactly(bank, whole, tmp_path, step):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        pretrain(bank, SHORT, out, device="cpu", checkpoint_every=1, online=ONLINE, callbacks=(StopAfter(step),))
    pretrain(bank, SHORT, out, device="cpu", checkpoint_every=1, online=ONLINE)
    assert drop_seconds(out) == drop_seconds(whole)
    found = tensors(out)
    for name, value in tensors(whole).items():
        assert torch.equal(value, found[name]), name


@pytest.mark.parametrize("step", [1, 2, 3])
def test_with_gathered_gradients_too(bank, tmp_path, step):
    online = replace(ONLINE, accumulate=3)
    pretrain(bank, SHORT, tmp_path / "whole", device="cpu", checkpoint_every=1, online=online)
    with pytest.raises(KeyboardInterrupt):
        pretrain(
            bank, SHORT, tmp_path / "run", device="cpu", checkpoint_every=1, online=online, callbacks=(StopAfter(step),)
        )
    pretrain(bank, SHORT, tmp_path / "run", device="cpu", checkpoint_every=1, online=online)
    found = tensors(tmp_path / "run")
    for name, value in tensors(tmp_path / "whole").items():
        assert torch.equal(value, found[name]), name


def test_activations_computed_again_give_the_same(bank, whole, tmp_path):
    out = tmp_path / "run"
    pretrain(bank, SHORT, out, device="cpu", online=replace(ONLINE, checkpointing=True))
    found = tensors(out)
    for name, value in tensors(whole).items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_checkpointed_blocks_run_twice_in_training_and_once_without_gradients():
    class Block(torch.nn.Module):
        calls = 0

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)

        def forward(self, x):
            self.calls += 1
            return self.linear(x)

    block = Block()
    checkpoint_blocks([block])
    block(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert block.calls == 2
    with torch.no_grad():
        block(torch.ones(2, 3))
    assert block.calls == 3
    assert set(block.state_dict()) == {"linear.weight", "linear.bias"}


def test_one_side_alone_may_be_tuned(bank, tmp_path):
    adaptor = pretrain(bank, SHORT, tmp_path / "run", device="cpu", online=Online(text_lora=LoRA(rank=2)))
    assert adaptor.encoders.image is None
    assert adaptor.encoders.text.lora is not None
    assert not (tmp_path / "run" / "adaptor" / "image_lora").exists()


def test_pixels_are_those_of_the_bank_and_changed_by_seed_epoch_and_row(bank):
    facts = bank.info.images.preprocessing
    plain, changed = (PixelReader(bank, facts, seed=seed, workers=2) for seed in (None, 7))
    rows = np.array([3, 0])
    encoder = load_image_encoder(bank.info.images.name)
    with torch.no_grad():
        values = encoder(plain(rows, 0)).values
    torch.testing.assert_close(values, bank.image_tokens(rows).values, rtol=1e-4, atol=1e-5)
    assert torch.equal(changed(rows, 1), changed(rows, 1))
    assert torch.equal(changed(rows, 1)[1:], changed(rows[1:], 1))
    assert not torch.equal(changed(rows, 1), changed(rows, 2))


def test_no_picture_is_mirrored():
    picture = torch.zeros(3, 64, 64)
    picture[:, 24:40, 4:20] = 1.0
    for seed in range(30):
        changed = augment(picture, seed=seed)
        assert changed[..., :32].sum() > 5 * changed[..., 32:].sum()


def test_a_table_that_changed_is_refused(bank, tmp_path):
    other = copy.copy(bank)
    other.info = replace(bank.info, manifest_sha256="0" * 64)
    with pytest.raises(InputError, match="the table the bank was made of, but got another table now"):
        pretrain(other, SHORT, tmp_path / "run", device="cpu", online=ONLINE)
    other.info = replace(bank.info, manifest=str(tmp_path / "gone.csv"))
    with pytest.raises(InputError, match="but got nothing there"):
        pretrain(other, SHORT, tmp_path / "other", device="cpu", online=ONLINE)


def test_settings_that_train_no_encoder_are_refused():
    with pytest.raises(InputError, match="`online`: expected LoRA in one encoder or both, but got none"):
        Online()
    with pytest.raises(InputError, match="`accumulate`: expected at least 1"):
        Online(image_lora=LoRA(), accumulate=0)


@pytest.fixture(scope="module")
def tuned_bank(bank, whole, tmp_path_factory):
    encoders = Adaptor.from_pretrained(whole).encoders
    out = tmp_path_factory.mktemp("tuned") / "bank"
    options = EmbedOptions(dtype="float32", precision="fp32", workers=1)
    return embed(Manifest.read(bank.info.manifest), encoders.image, encoders.text, out, options=options)


def test_a_bank_of_tuned_encoders_knows_and_keeps_their_lora(bank, whole, tuned_bank):
    adaptor = Adaptor.from_pretrained(whole)
    assert tuned_bank.info.images.lora == adaptor.encoders.image.lora.digest()
    assert tuned_bank.info.images.fingerprint == bank.info.images.fingerprint
    assert tuned_bank.info.images.parameters == bank.info.images.parameters
    assert tuned_bank.info.images.token_key != bank.info.images.token_key
    assert (tuned_bank.folder / "image_lora" / "adapter_model.safetensors").is_file()
    rows = np.arange(3)
    names = [bank.folder.parent / name for name in bank.rows["image"].iloc[rows]]
    with torch.no_grad():
        torch.testing.assert_close(
            adaptor.embed_images(tuned_bank.image_tokens(rows)), adaptor.embed_images(names), rtol=1e-4, atol=1e-5
        )
    assert not torch.allclose(tuned_bank.image_tokens(rows).values, bank.image_tokens(rows).values, atol=1e-4)


def test_an_adaptor_trained_on_a_tuned_bank_takes_its_lora_along(bank, tuned_bank, tmp_path):
    adaptor = pretrain(tuned_bank, SHORT, tmp_path / "run", device="cpu")
    assert adaptor.encoders.image is None
    other = Adaptor.from_pretrained(tmp_path / "run")
    rows = np.arange(3)
    names = [bank.folder.parent / name for name in bank.rows["image"].iloc[rows]]
    with torch.no_grad():
        expected = adaptor.embed_images(tuned_bank.image_tokens(rows))
        torch.testing.assert_close(other.embed_images(names), expected, rtol=1e-4, atol=1e-5)


def test_the_tuned_run_is_refused_on_the_plain_bank(bank, whole):
    with pytest.raises(
        InputError, match=r"Tokens of .*, LoRA [0-9a-f]{64}\), which .* was trained on, but got Tokens of.*--tuned-bank"
    ):
        prepare(bank, whole, StudySettings(seeds=1, arms=("frozen",)))


def run(words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0


def test_a_table_is_embedded_first(bank, tmp_path):
    folder = bank.folder.parent
    encoders = ["--image-encoder", f"hf:{folder / 'vit'}", "--text-encoder", f"hf:{folder / 'bert'}"]
    words = ["pretrain", str(folder / "m.csv"), *encoders, "--out", str(tmp_path / "run"), "--precision", "fp32"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--epochs", "1", "--batch-size", "6", "--device", "cpu"])
    assert ended.value.code == 0
    written = Bank.open(tmp_path / "run-bank")
    assert written.info.images.fingerprint == bank.info.images.fingerprint
    assert json.loads((tmp_path / "run" / "config.json").read_text())["bank"] == str(written.folder.resolve())


@pytest.mark.parametrize(
    ("source", "words", "message"),
    [
        ("m.csv", [], "--image-encoder beside a table, and --text-encoder for pairs, but got neither"),
        ("m.csv", ["--text-encoder", "bundled:a"], "--text-encoder for pairs, but got bundled:a"),
        ("bank", ["--text-encoder", "bundled:a"], "expected no encoder beside a bank, but got bundled:a"),
        ("gone", [], "expected a whole bank, but got no bank.json"),
    ],
)
def test_a_bank_or_a_table_with_its_encoders(bank, tmp_path, capsys, source, words, message):
    with pytest.raises(SystemExit) as ended:
        main(["pretrain", str(bank.folder.parent / source), "--out", str(tmp_path / "run"), *words])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_lora_parameters_are_counted_without_their_encoder(whole):
    adaptor = Adaptor.from_pretrained(whole)
    counted = sum(saved_parameters(folder) for folder in adaptor.encoders.lora_folders.values())
    assert counted == sum(parameter.numel() for parameter in adaptor.encoders.lora_parameters())
    with pytest.raises(InputError, match=r"LoRA in adapter_model\.safetensors, but got none"):
        saved_parameters(whole)


def test_plain_and_tuned_encoders_are_studied_side_by_side(bank, whole, tuned_bank, tmp_path):
    pretrain(bank, SHORT, tmp_path / "plain", device="cpu")
    words = [bank.folder, "--adaptor", tmp_path / "plain", "--tuned-bank", tuned_bank.folder, "--tuned-adaptor", whole]
    words += ["--fractions", 1, "--seeds", 1, "--arms", "frozen", "lora", "adaptor", "adaptor+lora"]
    run(["study", *map(str, words), "--replicates", "20", "--out", str(tmp_path / "study")])
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    trained = {row["arm"]: row["trainable_parameters"] for row in results["records"]}
    lora = sum(parameter.numel() for parameter in Adaptor.from_pretrained(whole).encoders.lora_parameters())
    assert trained["lora"] == trained["frozen"] + lora
    assert {row["arm"] for row in results["comparisons"]} >= {"lora", "adaptor+lora"}


def test_embedding_by_an_adaptor_takes_its_fit_longest_text_and_layout(bank, tmp_path):
    folder = bank.folder.parent
    encoders = ["--image-encoder", f"hf:{folder / 'vit'}", "--text-encoder", f"hf:{folder / 'bert'}"]
    how = ["--fit", "pad", "--max-tokens", "5", "--grid", "2", "--device", "cpu"]
    run(["embed", bank.info.manifest, *encoders, *how, "--out", str(tmp_path / "plain")])
    run(["pretrain", str(tmp_path / "plain"), "--epochs", "1", "--batch-size", "6", "--out", str(tmp_path / "run")])
    run(["embed", bank.info.manifest, "--adaptor", str(tmp_path / "run"), "--out", str(tmp_path / "again")])
    plain, again = Bank.open(tmp_path / "plain").info, Bank.open(tmp_path / "again").info
    assert again.images.token_key == plain.images.token_key
    assert again.texts.token_key == plain.texts.token_key
    assert (again.images.preprocessing.fit, again.texts.max_tokens, again.layout) == ("pad", 5, "grid2")


def test_the_commands_tune_and_embed(bank, tmp_path):
    words = ["--method", "adaptor", "--epochs", "1", "--batch-size", "6", "--image-lora", "rank=2", "--no-augment"]
    run(["pretrain", str(bank.folder), "--out", str(tmp_path / "run"), *words, "--accumulate", "2", "--device", "cpu"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["online"]["image_lora"]["rank"] == 2
    assert (config["online"]["accumulate"], config["online"]["augment"]) == (2, False)
    out = str(tmp_path / "tuned")
    write_seen(tmp_path / "run", before := [*read_seen(tmp_path / "run"), "d" * 64])
    run(["embed", bank.info.manifest, "--adaptor", str(tmp_path / "run"), "--out", out, "--device", "cpu"])
    assert Bank.open(out).info.images.lora is not None
    assert Bank.open(out).info.texts.lora is None
    pretrain(Bank.open(out), SHORT, tmp_path / "on-tuned", device="cpu")
    assert read_seen(tmp_path / "on-tuned") == set(before)
