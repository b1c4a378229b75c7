"""What moves when pairs are tuned, what a step of GM-Coord does to it, and what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from adaptmed.adaptor.model import Adaptor
from adaptmed.coordination.scores import class_score
from adaptmed.errors import InputError, NonFiniteLossError
from adaptmed.lora import LoRA
from adaptmed.runs.folder import LAST
from adaptmed.tasks.pairs.coordination import Coordinator
from adaptmed.tasks.pairs.settings import Coordination, PairChoices
from adaptmed.training.checkpoint import SafetensorsCheckpointIO
from tests.online_bank import write_online_bank
from tests.tasks.pairs.asked import SETTINGS, save_adaptor, tune, write_asked_bank

QUIET = Coordination(noise=False)
STILL = replace(SETTINGS, epochs=1, learning_rate=0.0, fusion_learning_rate=0.0, clip=1e9, augment=False)
TEXT_AND_IMAGE = "image-text-classification"


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    return write_asked_bank(tmp_path_factory.mktemp("banks") / "bank")


@pytest.fixture(scope="module")
def run(bank, tmp_path_factory):
    return save_adaptor(bank, tmp_path_factory.mktemp("runs") / "run", dropout=0.0)


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    bank = write_online_bank(folder)
    return bank, save_adaptor(bank, folder / "run", dropout=0.0)


def lines_of(out):
    return [json.loads(line) for line in (out / "coordination.jsonl").read_text().splitlines()]


class Applied(Callback):
    """Keeps what the gradients were before and after they were coordinated, in every step."""

    def on_train_start(self, _trainer, pl_module):
        self.steps, coordinator = [], pl_module.coordinator
        apply = coordinator.apply

        def watched(step, *, seed):
            before = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            apply(step, seed=seed)
            after = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.requires_grad}
            self.steps.append((before, after))

        coordinator.apply = watched


def side_of(name):
    for side in ("image", "text"):
        if (
            any(f".{side}_{part}." in name for part in ("project", "layers"))
            or f"encoders.{side}." in name
            or f"beside.{side}." in name
        ):
            return side
    return None


@pytest.mark.parametrize("fusion", ["co", "cross"])
def test_head_and_what_the_joint_vector_needs_of_the_fusion_move_and_nothing_else(bank, tmp_path, fusion):
    run = save_adaptor(bank, tmp_path / "run", fusion=fusion)
    result = tune(bank, run, tmp_path / "out")
    before, after = (Adaptor.from_pretrained(f, load_encoders=False).fusion for f in (run, tmp_path / "out"))
    names = {name for name, _ in before.named_parameters()}
    same = {n for n, value in after.state_dict().items() if torch.equal(value, before.state_dict()[n])}
    unused = {"image_out.weight", "image_out.bias", "text_out.weight", "text_out.bias", "log_scale"} & names
    if fusion == "cross":  # the pair's vector is the mean of tokens; the layers behind it serve embeddings alone
        assert same & names <= unused
    else:
        assert same & names == set()
    assert result["trainable_parameters"] > 0
    state = SafetensorsCheckpointIO().load_checkpoint(tmp_path / "out" / LAST)["state_dict"]
    assert {name.split(".")[1] for name in state} == {"fusion", "head", "beside"}
    assert not any("standardise" in name for name in state)


def test_without_its_fusion_the_head_alone_moves(bank, run, tmp_path):
    tune(bank, run, tmp_path / "out", train_fusion=False)
    before, after = (Adaptor.from_pretrained(f, load_encoders=False).fusion for f in (run, tmp_path / "out"))
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())


@pytest.mark.parametrize(("image", "text"), [(True, True), (True, False), (False, True)])
def test_lora_is_tuned_inside_the_encoders_that_are_asked_for(online, tmp_path, image, text):
    bank, run = online
    sides = {"image_lora": LoRA(rank=2) if image else None, "text_lora": LoRA(rank=2) if text else None}
    watch = Applied()
    out = tmp_path / "out"
    tune(bank, run, out, task=TEXT_AND_IMAGE, coordination=QUIET, callbacks=(watch,), **sides)
    assert (out / "adaptor" / "image_lora").exists() is image
    assert (out / "adaptor" / "text_lora").exists() is text
    trained = watch.steps[0][0]
    assert any("encoders.image" in name for name in trained) is image
    assert any("encoders.text" in name for name in trained) is text
    assert all("lora_" in name for name in trained if ".encoders." in name)
    state = SafetensorsCheckpointIO().load_checkpoint(out / LAST)["state_dict"]
    assert state.keys() == trained.keys()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_of_the_stronger_side_are_scaled_once_per_step_and_nothing_else(online, tmp_path, accumulate):
    bank, run = online
    sides = {"image_lora": LoRA(rank=2), "text_lora": LoRA(rank=2)}
    watch, settings = Applied(), replace(STILL, batch_size=4, accumulate=accumulate, encoder_learning_rate=0.0)
    tune(
        bank, run, tmp_path / "out", task=TEXT_AND_IMAGE, coordination=QUIET, settings=settings, callbacks=(watch,),
        **sides,
    )  # fmt: skip
    lines = lines_of(tmp_path / "out")
    assert len(lines) == len(watch.steps) == (6 if accumulate == 1 else 2)
    for line, (before, after) in zip(lines, watch.steps, strict=True):
        ratio = max(line["image_score"], line["text_score"]) / min(line["image_score"], line["text_score"])
        held = 1 - math.tanh(0.1 * ratio)
        factors = (1.0, held) if line["text_score"] > line["image_score"] else (held, 1.0)
        assert (line["k_image"], line["k_text"]) == pytest.approx(factors, rel=1e-5)
        for name, gradient in before.items():
            factor = {"image": factors[0], "text": factors[1], None: 1.0}[side_of(name)]
            torch.testing.assert_close(after[name], factor * gradient, rtol=1e-5, atol=1e-12)
        assert {side_of(name) for name in before} == {"image", "text", None}


def test_a_step_of_several_batches_is_scored_over_all_of_them(bank, run, tmp_path):
    for accumulate, batch_size in ((1, 24), (3, 8)):
        settings = replace(STILL, batch_size=batch_size, accumulate=accumulate)
        tune(bank, run, tmp_path / str(accumulate), coordination=QUIET, settings=settings)
    one, three = lines_of(tmp_path / "1"), lines_of(tmp_path / "3")
    assert len(one) == len(three) == 4
    for left, right in zip(one, three, strict=True):
        assert right == pytest.approx(left, rel=1e-5)


def coordinated(targets, logits_image, logits_text, how=QUIET, seed=0):
    """Pass known logits of each side through a whole step of a coordinator; return its factors and gradients."""
    head = torch.nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.stack([logits_text, logits_image], dim=1))
    image, text, other = (torch.nn.Parameter(torch.zeros(50)) for _ in range(3))
    generator = torch.Generator().manual_seed(1)
    for parameter in (image, text, other):
        parameter.grad = torch.randn(50, generator=generator)
    before = [parameter.grad.clone() for parameter in (image, text, other)]
    coordinator = Coordinator({"image": [image], "text": [text]}, how, class_score)
    coordinator.add(head, torch.ones(len(targets), 2), targets, lambda part: part)
    coordinator.apply(1, seed=seed)
    return before, [parameter.grad for parameter in (image, text, other)]


@pytest.mark.parametrize(
    ("image", "text", "factors"),
    [
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], (0.9003, 1.0)),  # a tie falls to the image
        ([math.log(2), 0.0, 0.0], [math.log(4), 0.0, 0.0], (1.0, 1 - math.tanh(0.1 * (4 / 6) / (2 / 4)))),
        ([40.0, 0.0, 0.0], [-40.0, 0.0, 0.0], (0.0, 1.0)),  # a ratio without end
    ],
)
def test_the_factors_of_known_logits_reach_the_gradients(image, text, factors):
    targets = torch.tensor([0, 0, -1])
    before, after = coordinated(targets, torch.tensor(image), torch.tensor(text))
    for gradient, was, factor in zip(after, before, (*factors, 1.0), strict=True):
        torch.testing.assert_close(gradient, factor * was, rtol=1e-4, atol=1e-5)


def test_what_is_outside_the_vocabulary_is_not_scored():
    outside = torch.full((4,), -1)
    before, after = coordinated(outside, torch.tensor([9.0, 0, 0]), torch.zeros(3))
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))


def test_noise_goes_to_both_sides_and_comes_from_the_seed_alone():
    logits = torch.zeros(3), torch.ones(3)
    plain = coordinated(torch.tensor([0]), *logits)[1]
    found = [coordinated(torch.tensor([0]), *logits, how=Coordination(), seed=seed)[1] for seed in (0, 0, 1)]
    for place in (0, 1):
        assert torch.equal(found[0][place], found[1][place])
        assert not torch.equal(found[0][place], found[2][place])
        assert (found[0][place] - plain[place]).std().item() == pytest.approx(1.0, abs=0.35)
    assert torch.equal(found[0][2], plain[2])


def test_noise_is_a_switch(bank, run, tmp_path):
    settings = replace(SETTINGS, epochs=1)
    states = {}
    for name, how in {"none": None, "quiet": QUIET, "noisy": Coordination(), "again": Coordination()}.items():
        tune(bank, run, tmp_path / name, coordination=how, settings=settings)
        states[name] = Adaptor.from_pretrained(tmp_path / name, load_encoders=False).fusion.state_dict()
    layer = "image_project.weight"
    assert torch.equal(states["noisy"][layer], states["again"][layer])
    assert len({states[name][layer].sum().item() for name in ("none", "quiet", "noisy")}) == 3
    assert not (tmp_path / "none" / "coordination.jsonl").exists()


def test_the_released_scores_are_an_option(bank, run, tmp_path):
    for name in ("head", "last-linear"):
        tune(bank, run, tmp_path / name, coordination=Coordination(noise=False, scores=name), settings=STILL)
    assert lines_of(tmp_path / "head")[0] != lines_of(tmp_path / "last-linear")[0]


@pytest.mark.parametrize("fusion", ["cross", "released"])
def test_a_fusion_with_shared_layers_is_refused(bank, tmp_path, fusion):
    adaptor = Adaptor.from_bank(bank, fusion="cross", width=16, heads=2, faithful=fusion == "released")
    adaptor.save_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match=r"the fusion co, but got one whose layers are shared: a modality has no grad"):
        tune(bank, tmp_path / "run", tmp_path / "out", coordination=QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_weights": "balanced"}, "`class_weights`: expected an option that the task answering"),
        ({"task": TEXT_AND_IMAGE, "loss": "binary"}, "`loss`: expected an option that the task image-text"),
        ({"task": TEXT_AND_IMAGE, "kinds": False}, "`kinds`: expected an option that the task image-text"),
        ({"dropout": 1.0}, "`dropout`: expected a share in"),
        ({"label_smoothing": -0.1}, "`label_smoothing`: expected a share in"),
        ({"task": TEXT_AND_IMAGE, "answers_from": "all"}, "`answers_from`: expected an option that the task"),
        ({"coordination": QUIET, "train_fusion": False}, "a fusion that is trained, but got a frozen one"),
    ],
)
def test_options_that_say_nothing_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        PairChoices(**{"task": "answering", **wrong})


def test_class_weights_need_classes(bank, run, tmp_path):
    with pytest.raises(InputError, match="a bank with a class column, but got label columns"):
        tune(bank, run, tmp_path / "out", task=TEXT_AND_IMAGE, class_weights="balanced")


class Broken(Callback):
    """Breaks a gradient, and leaves the loss alone."""

    def on_after_backward(self, _trainer, pl_module):
        pl_module.model.head[0].weight.grad[0, 0] = math.nan


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(bank, run, tmp_path):
    with pytest.raises(NonFiniteLossError, match="`gradient at step 0`"):
        tune(bank, run, tmp_path / "out", callbacks=(Broken(),))
    assert not (tmp_path / "out" / LAST).exists()
