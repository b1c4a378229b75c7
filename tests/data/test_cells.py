"""Cells as other programs write them: long ones, truth values, words for nothing, blank splits, names in use."""

import csv
import math

import numpy as np
import pytest

from adaptmed.data.manifest import Manifest
from adaptmed.errors import InputError


def table(tmp_path, text, name="m.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["m.csv", "m.tsv"])
def test_a_cell_may_be_long(tmp_path, name):
    before = csv.field_size_limit()
    text = "word " * 50_000
    delimiter = "\t" if name == "m.tsv" else ","
    manifest = Manifest.read(table(tmp_path, f"image{delimiter}text\na.png{delimiter}{text}\n", name))
    assert manifest.frame["text"].tolist() == [text.strip()]
    assert csv.field_size_limit() == before


def test_truth_values_and_words_for_nothing_in_label_columns(tmp_path):
    lines = ["True,1,nan,NaN", "FALSE,nan,true,NA", "false,NaN,false,null", ",0,NA,None", "true,None,Null,"]
    cells = "\n".join(f"{number}.png,{line}" for number, line in enumerate(lines))
    path = table(tmp_path, f"image,a,b,c,d\n{cells}\n")
    manifest = Manifest.read(path)
    assert manifest.labels == ("a", "b", "c")
    assert manifest.left_out == {"d": "blank in every row"}
    nan = math.nan
    np.testing.assert_array_equal(manifest.frame["a"], [1, 0, 0, nan, 1])
    np.testing.assert_array_equal(manifest.frame["b"], [1, nan, nan, 0, nan])
    np.testing.assert_array_equal(manifest.frame["c"], [nan, 1, 0, nan, nan])
    assert Manifest.read(path, labels=("a", "c")).frame[["a", "c"]].equals(manifest.frame[["a", "c"]])


def test_the_same_words_stay_as_they_are_in_texts_and_classes(tmp_path):
    manifest = Manifest.read(table(tmp_path, "text,kind\nTrue,none\nNA,true\nnull,\n"), class_column="kind")
    assert manifest.frame["text"].tolist() == ["True", "NA", "null"]
    assert (manifest.classes, manifest.frame["kind"].tolist()) == (("none", "true"), [0, 1, -1])


def test_infinity_is_still_no_label(tmp_path):
    path = table(tmp_path, "image,a\na.png,inf\nb.png,1\n")
    assert Manifest.read(path).left_out == {"a": "not only 0, 1 and blank, see row 1"}
    with pytest.raises(InputError, match="`column a`: expected finite numbers or blank, but got 'inf' in row 1"):
        Manifest.read(path, labels=("a",))


def test_rows_without_a_split_are_rejects(tmp_path):
    manifest = Manifest.read(table(tmp_path, "text,split,a\nx,train,1\ny, ,7\n,test,1\nz,test,0\n,,\n"))
    assert manifest.frame["row"].tolist() == ["1", "4"]
    assert manifest.labels == ("a",)
    assert manifest.rejects == [
        {"row": "2", "reason": "expected train, validate or test in split, but got blank"},
        {"row": "3", "reason": "expected text, but got blank"},
        {"row": "5", "reason": "expected text, but got blank"},
    ]


@pytest.mark.parametrize("name", ["row", "image_index", "text_index", "slices"])
def test_names_in_use_are_no_labels(tmp_path, name):
    path = table(tmp_path, f"image,{name},a\na.png,1,1\nb.png,0,0\n")
    manifest = Manifest.read(path)
    assert manifest.labels == ("a",)
    assert manifest.left_out[name].startswith("the name is used for ")
    assert manifest.left_out[name].endswith("; rename the column to use it")
    assert Manifest.read(path, labels=("a",)).left_out[name] == manifest.left_out[name]
    for asked in ({"labels": (name,)}, {"class_column": name}):
        with pytest.raises(InputError, match=rf"`{name}`: expected a column .*, but got a name used for .* Rename"):
            Manifest.read(path, **asked)
