"""The teacher: a copy of a student that follows it as an exponential moving average (EMA)."""

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """A copy of a student in evaluation mode whose trained parameters are an average of the student's past ones.

    Only parameters that are trained when the copy is made are copied and averaged. Frozen parameters are the student's
    own, so that two frozen encoders are not held twice; buffers are as the student's. The state dict holds averages and
    buffers, never a frozen weight. Nothing here is ever in a gradient. Call :meth:`follow` once per optimiser step.

    UMD (arXiv:2404.06057): decay 0.995 from the first step. Its released code makes the teacher anew instead of copying
    the student, leaves its dropout on, follows after every micro-batch, and matches tensors by order.

    Args:
        student: Any module; it is not registered here.
        decay: In [0, 1); the teacher looks back over about ``1 / (1 - decay)`` steps.

    Attributes:
        model: The copy, for whatever the student can do; :meth:`forward` calls it without gradient.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = student.weight.data.zero_()
        >>> teacher = Teacher(student, decay=0.9)
        >>> _ = student.weight.data.fill_(1.0)
        >>> teacher.follow(student)
        >>> round(teacher(torch.ones(1)).item(), 6)
        0.1
    """

    def __init__(self, student: nn.Module, *, decay: float = 0.995) -> None:
        super().__init__()
        self.decay = decay
        shared = [parameter for parameter in student.parameters() if not parameter.requires_grad]
        self.model = copy.deepcopy(student, {id(tensor): tensor for tensor in (*shared, *student.buffers())})
        self._names = tuple(_trained(student))
        self.model.requires_grad_(False)
        self.eval()
        self.register_state_dict_post_hook(_keep_averages)
        self.register_load_state_dict_pre_hook(_add_frozen)

    @torch.no_grad()
    def forward(self, *given: Any, **named: Any) -> Any:
        """Call the copy without gradient."""
        return self.model(*given, **named)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """Move every average by ``1 - decay`` towards the student, by name, and take over its buffers.

        Args:
            student: The one the copy was made of.
        """
        theirs, own = dict(student.named_parameters()), dict(self.model.named_parameters())
        names = self._names
        torch._foreach_lerp_([own[name] for name in names], [theirs[name] for name in names], 1 - self.decay)
        for buffer, its in zip(self.model.buffers(), student.buffers(), strict=True):
            if buffer is not its:  # shared at first; no longer once the module has been moved
                buffer.copy_(its)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, also as a part of a module that is trained."""
        del mode
        return super().train(False)


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _keep_averages(teacher: nn.Module, state: dict[str, Any], prefix: str, facts: Mapping[str, Any]) -> None:
    del facts
    for name in _frozen(teacher):
        state.pop(prefix + name, None)


def _add_frozen(teacher: nn.Module, state: dict[str, Any], prefix: str, *others: object) -> None:
    """Frozen parameters are the student's: what is loaded here is what is there."""
    del others
    for name, parameter in _frozen(teacher).items():
        state.setdefault(prefix + name, parameter.detach())


def _frozen(teacher: nn.Module) -> dict[str, Tensor]:
    """Name the parameters of the copy that do not follow, aliases of tied ones included."""
    assert isinstance(teacher, Teacher)
    parameters = teacher.model.named_parameters(remove_duplicate=False)
    return {f"model.{name}": parameter for name, parameter in parameters if name not in teacher._names}
