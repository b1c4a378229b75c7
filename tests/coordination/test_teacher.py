"""The teacher follows what is trained, shares what is frozen, and is never trained itself."""

import copy

import pytest
import torch
from torch import nn

from adaptmed import lora
from adaptmed.coordination.teacher import Teacher
from adaptmed.encoders.bundled import minilm_l6


class Student(nn.Module):
    """A frozen encoder with its own statistics, a trained layer, dropout, and a method beside ``forward``."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).requires_grad_(False).eval()
        self.fusion = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x):
        return self.dropout(self.fusion(self.encoder(x)))


class Whole(nn.Module):
    """What a training task looks like: a student and its teacher side by side."""

    def __init__(self):
        super().__init__()
        self.student = Student()
        self.teacher = Teacher(self.student)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return Student()


@pytest.mark.parametrize("steps", [1, 10, 138])
def test_the_average_by_the_published_formula(steps):
    """From 0 towards a constant 1: 1 - 0.995^n; half of the way after 138 updates."""
    student = nn.Linear(1, 1).double()
    nn.init.zeros_(student.weight)
    teacher = Teacher(student)
    nn.init.ones_(student.weight)
    for _ in range(steps):
        teacher.follow(student)
    assert teacher.model.weight.item() == pytest.approx(1 - 0.995**steps, rel=1e-12)
    if steps == 138:
        assert teacher.model.weight.item() == pytest.approx(0.5, abs=0.002)


def test_it_starts_as_a_copy_of_the_student_without_dropout(student):
    x = torch.randn(5, 4)
    torch.testing.assert_close(Teacher(student.train())(x), copy.deepcopy(student).eval()(x))


def test_only_what_is_trained_is_copied(student):
    teacher = Teacher(student)
    assert teacher.model.fusion.weight.data_ptr() != student.fusion.weight.data_ptr()
    assert teacher.model.encoder[0].weight is student.encoder[0].weight
    assert teacher.model.encoder[1].running_mean is student.encoder[1].running_mean
    before = copy.deepcopy(student.encoder.state_dict())
    with torch.no_grad():
        student.fusion.weight.add_(1)
    teacher.follow(student)
    assert all(torch.equal(before[name], value) for name, value in student.encoder.state_dict().items())
    torch.testing.assert_close(student.fusion.weight - teacher.model.fusion.weight, torch.full((3, 4), 0.995))


def test_it_stays_in_evaluation_mode_as_a_part_of_a_trained_module():
    whole = Whole().train()
    assert whole.student.dropout.training
    assert not any(module.training for module in whole.teacher.modules())


def test_it_is_never_in_a_gradient(student):
    teacher = Teacher(student)
    x = torch.randn(5, 4, requires_grad=True)
    assert not teacher(x).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student(x).sum().backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.fusion.weight.requires_grad  # the student's own parameters are left as they were


def test_the_state_dict_holds_no_frozen_weight_and_loads_strictly():
    whole, other = Whole(), Whole()
    state = whole.state_dict()
    of_teacher = {name for name in state if name.startswith("teacher.")}
    averages = {"teacher.model.fusion.weight", "teacher.model.fusion.bias"}
    assert of_teacher == averages | {f"teacher.model.{name}" for name, _ in whole.student.named_buffers()}
    with torch.no_grad():
        whole.teacher.model.fusion.weight.add_(1)
    other.load_state_dict(whole.state_dict(), strict=True)
    assert torch.equal(other.teacher.model.fusion.weight, whole.teacher.model.fusion.weight)
    assert torch.equal(other.teacher.model.encoder[0].weight, whole.student.encoder[0].weight)
    alone = Teacher(Student())
    alone.load_state_dict(whole.teacher.state_dict(), strict=True)
    assert torch.equal(alone.model.fusion.weight, whole.teacher.model.fusion.weight)


def test_a_missing_weight_of_a_student_called_model_is_still_an_error():
    whole = nn.ModuleDict({"model": Student()})
    whole["teacher"] = Teacher(whole["model"])
    state = whole.state_dict()
    del state["model.encoder.0.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "model\.encoder\.0\.weight"\.'):
        whole.load_state_dict(state, strict=True)


def test_a_missing_average_is_still_an_error():
    whole = Whole()
    state = whole.state_dict()
    del state["teacher.model.fusion.bias"]
    with pytest.raises(RuntimeError, match=r"teacher\.model\.fusion\.bias"):
        whole.load_state_dict(state, strict=True)


@pytest.mark.parametrize("moved", [False, True])
def test_buffers_are_the_students_after_moving_loading_and_following(moved):
    whole, loaded = Whole(), Whole()
    if moved:
        whole.double()
        loaded.double()
    whole.student.encoder[1].running_mean.fill_(5.0)
    whole.teacher.follow(whole.student)
    loaded.load_state_dict(whole.state_dict(), strict=True)
    for teacher in (whole.teacher, loaded.teacher):
        assert teacher.model.encoder[1].running_mean.tolist() == [5.0] * 4
        assert teacher.model.count.item() == 3  # integers are taken over, not averaged


def test_moving_the_whole_keeps_shared_tensors_shared():
    whole = Whole().double()
    assert whole.teacher.model.encoder[0].weight is whole.student.encoder[0].weight
    assert whole.teacher(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_stopping_and_going_on_equals_not_stopping(student):
    teacher = Teacher(student)
    for step in range(6):
        with torch.no_grad():
            student.fusion.weight.add_(torch.randn(3, 4, generator=torch.Generator().manual_seed(step)))
        teacher.follow(student)
        if step == 2:
            resumed, copied = Teacher(copy.deepcopy(student)), copy.deepcopy(student)
            resumed.load_state_dict(teacher.state_dict())
        elif step > 2:
            copied.load_state_dict(student.state_dict())
            resumed.follow(copied)
    assert torch.equal(resumed.model.fusion.weight, teacher.model.fusion.weight)


def test_tied_parameters_stay_tied():
    student = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    student[1].weight = student[0].weight
    teacher = Teacher(student, decay=0.5)
    assert teacher.model[0].weight is teacher.model[1].weight
    before = teacher.model[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(2)
    teacher.follow(student)
    torch.testing.assert_close(teacher.model[1].weight, before + 1)


def test_an_encoder_with_lora_is_copied_without_its_frozen_weights():
    encoder = minilm_l6()
    lora.attach(encoder, lora.LoRA(rank=2, roles=("attention",)))
    teacher = Teacher(encoder, decay=0.5)
    before = encoder.fingerprint()
    own = {parameter.data_ptr() for parameter in teacher.parameters()} - {p.data_ptr() for p in encoder.parameters()}
    assert len(own) == len(list(encoder.lora.parameters()))
    with torch.no_grad():
        for parameter in encoder.lora.parameters():
            parameter.add_(0.1)
    words = encoder.tokenize(["small left effusion"])
    untouched = teacher(words.input_ids, words.valid).values
    teacher.follow(encoder)
    with torch.no_grad():
        differences = [
            (teacher(words.input_ids, words.valid).values - other).abs().max()
            for other in (untouched, encoder(words.input_ids, words.valid).values)
        ]
    assert min(differences) > 1e-3
    assert encoder.fingerprint() == before
    assert all("lora" in name for name in teacher.state_dict())
