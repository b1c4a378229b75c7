import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adaptmed.data.mask_labels import as_classes, as_values, labels_of, parse_labels, values_in
from adaptmed.errors import InputError

LABELS = {0: "background", 2: "left", 7: "right"}


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        (("2=left", "7=right"), LABELS),
        (("7= right ", " 2 =left"), LABELS),
        (("0=nothing", "1=tumour = core"), {0: "nothing", 1: "tumour = core"}),
    ],
)
def test_names_of_the_command_line(words, labels):
    assert parse_labels(words) == labels
    assert list(parse_labels(words)) == sorted(labels)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("effusion",), "expected value=name with a value from 0 to 65535, but got 'effusion'"),
        (("1=",), "but got '1='"),
        (("-1=x",), "but got '-1=x'"),
        (("70000=x",), "but got '70000=x'"),
        (("1.0=x",), "but got '1.0=x'"),
        (("1=x", "1=y"), "expected every value and every name once, but got '1=y' again"),
        (("1=x", "2=x"), "but got '2=x' again"),
        (("0=x",), "expected a value above 0, but got none"),
        ((), "expected a value above 0, but got none"),
    ],
)
def test_bad_names(words, sentence):
    with pytest.raises(InputError, match=f"`mask_labels`: .*{sentence}"):
        parse_labels(words)


def test_values_that_nobody_named():
    assert labels_of([3, 0, 1, 3]) == {0: "background", 1: "label 1", 3: "label 3"}
    for nothing in ([], [0, 0]):
        with pytest.raises(InputError, match="`mask`: expected a mask that is not empty, but got only background"):
            labels_of(nothing)


@given(mask=hnp.arrays(st.sampled_from([np.uint8, np.int32, np.int64]), (5, 6), elements=st.sampled_from([0, 2, 7])))
def test_classes_have_no_gaps_and_become_values_again(mask):
    classes = as_classes(mask, LABELS)
    assert classes.tolist() == np.select([mask == 2, mask == 7], [1, 2], 0).tolist()
    np.testing.assert_array_equal(as_values(classes, LABELS), mask)
    assert set(values_in(mask)) == set(mask.ravel().tolist())


def test_other_values_are_refused_by_name():
    with pytest.raises(InputError, match=r"`a\.png`: expected values among 0, 2, 7, but got 1, 3"):
        as_classes(np.array([0, 3, 1, 2]), LABELS, name="a.png")
    with pytest.raises(InputError, match="but got 10, 11, 12, 13, 14, 15, 16, 17 and 2 more"):
        as_classes(np.arange(10, 20), LABELS)
