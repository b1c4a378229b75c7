"""Checkpoints without pickle: any nesting of plain values and tensors comes back as it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.errors import InputError
from adaptmed.runs.folder import append_metrics, open_run, read_metrics, read_seen, write_seen
from adaptmed.training.checkpoint import SafetensorsCheckpointIO, flatten_state, unflatten_state

plain = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8)
keys = st.integers(-5, 5) | st.text(max_size=5).filter(lambda key: not key.startswith("__"))
nested = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(nested)
@settings(deadline=None, max_examples=60)
def test_plain_values_come_back_from_a_file(tmp_path_factory, state):
    path = tmp_path_factory.mktemp("checkpoint") / "last.safetensors"
    plugin = SafetensorsCheckpointIO()
    plugin.save_checkpoint({"state": state, "one": torch.ones(2)}, path)
    found = plugin.load_checkpoint(path)
    assert found["state"] == state
    assert torch.equal(found["one"], torch.ones(2))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_keep_their_dtype_and_may_share_storage():
    shared = torch.arange(4, dtype=torch.int64)
    state = {"a": shared, "b": (shared[:2], torch.tensor(1.5, dtype=torch.bfloat16))}
    tensors = {}
    found = unflatten_state(flatten_state(state, tensors), tensors)
    assert found["a"].dtype == torch.int64
    assert found["b"][1].dtype == torch.bfloat16
    assert torch.equal(found["b"][0], shared[:2])


def test_anything_that_would_need_pickle_is_refused():
    with pytest.raises(TypeError, match="a checkpoint holds numbers, strings and tensors, but got object"):
        flatten_state({"x": object()}, {})


def test_metrics_of_a_later_step_give_way_to_the_resumed_run(tmp_path):
    for step in (4, 8, 12):
        append_metrics(tmp_path, {"step": step, "value": step})
    append_metrics(tmp_path, {"step": 8, "value": -1})
    assert read_metrics(tmp_path) == [{"step": 4, "value": 4}, {"step": 8, "value": -1}]


def test_a_run_folder_refuses_other_files_and_other_configurations(tmp_path):
    open_run(tmp_path / "run", {"seed": 0})
    open_run(tmp_path / "run", {"seed": 0})
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        open_run(tmp_path / "run", {"seed": 1})
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="an empty folder or a run, but got other files"):
        open_run(tmp_path, {"seed": 0})


def test_seen_patients_round_trip(tmp_path):
    assert read_seen(tmp_path) is None
    write_seen(tmp_path, ["b", "a"])
    assert read_seen(tmp_path) == {"a", "b"}
