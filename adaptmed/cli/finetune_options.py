"""Which options of ``adaptmed finetune`` belong to which task."""

from collections.abc import Mapping

from adaptmed.errors import InputError, sentence

_MASKS, _ANSWERS, _CLASSES = "segmentation", "answering", "image-text-classification"
_TASKS = {
    "decoder": (_MASKS,),
    "mask_labels": (_MASKS,),
    "steps": (_MASKS,),
    "window_slices": (_MASKS,),
    "loss": (_MASKS, _ANSWERS),
    "text_lora": (_ANSWERS, _CLASSES),
    "coordinate_gradients": (_ANSWERS, _CLASSES),
    "gradient_noise": (_ANSWERS, _CLASSES),
    "unimodal_scores": (_ANSWERS, _CLASSES),
    "answers_from": (_ANSWERS,),
    "frozen_beside": (_ANSWERS, _CLASSES),
    "class_weights": (_CLASSES,),
}
_LOSSES = {_MASKS: ("dice-cross-entropy", "dice-focal", "paper"), _ANSWERS: ("binary", "cross-entropy")}


def refuse_foreign(task: str, given: Mapping[str, object]) -> None:
    """Refuse options that say nothing for a task.

    Args:
        task: What is learnt.
        given: Options by name; ``None`` where one was left out.

    Raises:
        InputError: One belongs to another task.
    """
    for name, value in given.items():
        if value is not None and task not in _TASKS[name]:
            fix = f"Leave it out; it belongs to --task {' and '.join(_TASKS[name])}."
            raise InputError(sentence(name, expected=f"nothing beside --task {task}", got=value, fix=fix))
    loss = given.get("loss")
    if loss is not None and loss not in _LOSSES[task]:
        expected, fix = f"one of {', '.join(_LOSSES[task])}", "Choose one, or leave it out."
        raise InputError(sentence("loss", expected=expected, got=loss, fix=fix))


def require_coordination(asked: bool) -> None:
    """Refuse to say how gradients are coordinated where they are not.

    Raises:
        InputError: They are not.
    """
    if not asked:
        fix = "Pass it, or leave --gradient-noise and --unimodal-scores out."
        expected = "--coordinate-gradients beside its options"
        raise InputError(sentence("coordinate_gradients", expected=expected, got="none", fix=fix))
