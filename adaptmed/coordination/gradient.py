r"""GM-Coord: the modality that already answers alone learns more slowly, so that the other catches up.

Zhang et al. 2024 (UMD), arXiv:2404.06057, after OGM-GE (Peng et al. 2022, arXiv:2203.15332). In every step:

1. Score each modality alone: :math:`s_u = \sum_n \mathrm{softmax}(z_u)_n[y_n]`, where :math:`z_u` are the head's
   logits with the other modality's half set to zero (``adaptmed.coordination.scores``).
2. Turn the ratio of the scores into factors (:func:`coefficients`).
3. Scale the gradients of each modality's parameters and add noise (:func:`modulate`): once per step of the optimiser,
   after gradients are unscaled and before they are clipped. The released code does it after every micro-batch, on
   gradients that accumulate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.errors import InputError, sentence

Modality = Literal["image", "text"]
ALPHA = 0.1
_TABLE_SIZE = 2**22
_LEAST_SPREAD = 1e-8
_TABLE_SIZE = 2**22


def coefficients(
    image_score: Float[Tensor, ""], text_score: Float[Tensor, ""], *, alpha: float = ALPHA
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Return the factors on the gradients of image and text: 1 for the weaker, less for the stronger.

    .. math:: \rho_t = s_t / s_i, \quad k_t = 1 - \tanh(\alpha \rho_t) \text{ if } \rho_t > 1
        \text{ else } k_i = 1 - \tanh(\alpha / \rho_t)

    As published the factor jumps at a tie, where the image counts as the stronger, from 1 to :math:`1 - \tanh \alpha`.
    Where nothing is labelled both are 1.

    Args:
        image_score: Of ``class_score`` or ``label_score`` over the whole batch, 0 or more.
        text_score: Likewise.
        alpha: How much the stronger is held back; 0.1 in the released code.

    Example:
        >>> coefficients(torch.tensor(1.0), torch.tensor(1.0))
        (tensor(0.9003), tensor(1.))
    """
    one = torch.ones_like(image_score)
    image = 1 - torch.tanh(alpha * image_score / text_score)
    text = 1 - torch.tanh(alpha * text_score / image_score)
    stronger = text_score > image_score
    nothing = (image_score == 0) & (text_score == 0)
    return torch.where(stronger | nothing, one, image), torch.where(stronger & ~nothing, text, one)


def modality_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], prefixes: Mapping[Modality, Sequence[str]]
) -> dict[Modality, list[nn.Parameter]]:
    """Sort trained parameters by modality: its LoRA, its projection and its layers of the fusion.

    Args:
        parameters: With their names, as ``named_parameters()`` gives them; frozen ones are passed over.
        prefixes: Of the names of each modality's modules.

    Raises:
        InputError: If a prefix names no trained parameter, or a parameter belongs to both modalities.

    Example:
        >>> layers = nn.ModuleDict({"image": nn.Linear(2, 2), "text": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        >>> groups = modality_groups(layers.named_parameters(), {"image": ["image"], "text": ["text"]})
        >>> [(modality, len(group)) for modality, group in groups.items()]
        [('image', 2), ('text', 2)]
    """
    trained = [(f"{name}.", parameter) for name, parameter in parameters if parameter.requires_grad]
    groups: dict[Modality, list[nn.Parameter]] = {modality: [] for modality in prefixes}
    taken: dict[int, str] = {}
    for modality, starts in prefixes.items():
        for start in starts:
            found = [(name, parameter) for name, parameter in trained if name.startswith(f"{start}.")]
            if not found:
                fix = "Name a module that is trained."
                raise InputError(sentence(f"prefixes[{modality}]", expected="names of modules", got=start, fix=fix))
            for name, parameter in found:
                if taken.setdefault(id(parameter), f"{modality} {start}") != f"{modality} {start}":
                    fix = "GM-Coord needs layers of their own for each modality."
                    got = f"{name[:-1]} under {taken[id(parameter)]} and {modality} {start}"
                    raise InputError(sentence("prefixes", expected="each parameter once", got=got, fix=fix))
                groups[modality].append(parameter)
    return groups


@torch.no_grad()
def modulate(
    groups: Mapping[Modality, Sequence[nn.Parameter]],
    factors: Mapping[Modality, Float[Tensor, ""]],
    *,
    noise_seed: int | None = None,
) -> None:
    r"""Scale the gradients of each modality in place and add noise: :math:`g \leftarrow k g + N(0, \mathrm{std}(g)^2)`.

    The noise goes to both modalities, also where k is 1; the deviation is the gradient's before it is scaled, plus
    1e-8. It comes from a generator of its own, so that replicas with equal gradients stay bit-equal and nothing else
    that is random moves. On the CPU, where drawing a normal number for every parameter would be a tenth of a step, it
    is read from a table of four million, from a place drawn for every gradient, as evolution strategies do (Salimans
    et al. 2017, arXiv:1703.03864). Parameters without gradient or of a single element are left alone, as in the
    released code.

    Args:
        groups: Parameters on one device, as :func:`modality_groups` sorts them.
        factors: Of :func:`coefficients`.
        noise_seed: Of this step; ``None`` adds no noise.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([1.0, -2.0])
        >>> modulate({"image": [weight]}, {"image": torch.tensor(0.5)})
        >>> weight.grad
        tensor([ 0.5000, -1.0000])
    """
    generator = None if noise_seed is None else torch.Generator().manual_seed(noise_seed)
    for modality, parameters in groups.items():
        gradients = [p.grad for p in parameters if p.grad is not None and p.grad.numel() > 1]
        if gradients and gradients[0].is_cuda:
            _modulate_at_once(gradients, factors[modality].to(gradients[0]), generator)
        else:
            _modulate_in_turn(gradients, float(factors[modality]), generator)


def _modulate_at_once(gradients: list[Tensor], factor: Float[Tensor, ""], generator: torch.Generator | None) -> None:
    """All gradients in a few kernels, whose start is what costs on a GPU."""
    if generator is None:
        torch._foreach_mul_(gradients, factor)
        return
    drawn = [_normal(gradient, generator) for gradient in gradients]
    noise = torch._foreach_mul(drawn, (_spread(gradients) + _LEAST_SPREAD).tolist())
    torch._foreach_mul_(gradients, factor)
    torch._foreach_add_(gradients, noise)


def _modulate_in_turn(gradients: list[Tensor], factor: float, generator: torch.Generator | None) -> None:
    """One gradient after the other, each of which stays in the cache of a CPU."""
    for gradient in gradients:
        if generator is None:
            gradient.mul_(factor)
        else:
            spread = _deviation(gradient) + _LEAST_SPREAD
            gradient.mul_(factor).add_(_normal(gradient, generator), alpha=spread)


def _deviation(gradient: Tensor) -> float:
    """Standard deviation; on the CPU two plain passes are faster than torch's own."""
    return float((gradient - gradient.mean()).norm()) / math.sqrt(gradient.numel() - 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal numbers in the shape of a tensor, on its device; to be read, they may be part of the table."""
    count = like.numel()
    if like.is_cuda or count > _TABLE_SIZE:
        seed = int(torch.randint(2**62, (), generator=generator))
        return torch.empty_like(like).normal_(generator=torch.Generator(like.device).manual_seed(seed))
    start = int(torch.randint(_TABLE_SIZE - count + 1, (), generator=generator))
    return _table()[start : start + count].view(like.shape).to(like.dtype)


@cache
def _table() -> Float[Tensor, " normal"]:
    return torch.empty(_TABLE_SIZE).normal_(generator=torch.Generator().manual_seed(0))


def _spread(gradients: list[Tensor]) -> Float[Tensor, " gradient"]:
    """Standard deviation of every gradient, from norms, which are fused over all of them.

    The sum of ``g`` is twice the 1-norm of its positive part, less its own. Off by about 1e-3 of the root mean square
    where a gradient is constant.
    """
    count = torch.tensor([float(gradient.numel()) for gradient in gradients])
    absolute, positive, square = (
        torch.stack(torch._foreach_norm(tensors, order)).float()
        for tensors, order in ((gradients, 1), (torch._foreach_clamp_min(gradients, 0.0), 1), (gradients, 2))
    )
    count = count.to(absolute.device, non_blocking=True)
    squares = square.square() - (2 * positive - absolute).square() / count
    return (squares.clamp(min=0) / (count - 1)).sqrt()
