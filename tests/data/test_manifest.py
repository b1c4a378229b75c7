import csv
import hashlib
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adaptmed.data.manifest import Manifest
from adaptmed.errors import InputError

FORMATS = ("csv", "tsv", "jsonl", "parquet")
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ROWS = st.lists(
    st.fixed_dictionaries({"text": UNICODE, "edema": st.sampled_from([0, 1, None]), "mass": st.sampled_from([0, 1])}),
    min_size=1,
    max_size=8,
)


def write(path, rows):
    """Write rows in the format of the suffix, by other code than that which reads."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def table(tmp_path, text, name="m.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@given(rows=ROWS, suffix=st.sampled_from(FORMATS))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, rows, suffix):
    rows = [{"image": f"{number}.png", **row} for number, row in enumerate(rows)]
    manifest = Manifest.read(write(tmp_path / f"m.{suffix}", rows))
    frame = manifest.frame
    assert frame["text"].tolist() == [row["text"].strip() for row in rows]
    assert frame["row"].tolist() == [str(number) for number in range(1, len(rows) + 1)]
    assert frame["mass"].tolist() == [row["mass"] for row in rows]
    if all(row["edema"] is None for row in rows):
        assert manifest.left_out["edema"] == "blank in every row"
        assert manifest.labels == ("mass",)
    else:
        assert set(manifest.labels) == {"edema", "mass"}
        want = [math.nan if row["edema"] is None else row["edema"] for row in rows]
        np.testing.assert_array_equal(frame["edema"], want)
        assert frame["edema"].dtype == np.float64


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_formats_give_the_same_manifest(tmp_path, suffix):
    rows = [
        {"image": "a.png", "text": "NaN", "patient": 12, "split": "train", "effusion": 1.0, "age": 61},
        {"image": "b.png", "text": "", "patient": None, "split": "test", "effusion": None, "age": 40},
    ]
    path = write(tmp_path / f"m.{suffix}", rows)
    manifest = Manifest.read(path)
    assert manifest.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert manifest.root == tmp_path
    assert manifest.frame["text"].tolist() == ["NaN", ""]
    assert manifest.frame["patient"][0] == "12"
    assert manifest.frame["patient"][1].startswith("row-")
    assert manifest.frame["split"].tolist() == ["train", "test"]
    assert manifest.taken == {n: n for n in ("image", "text", "patient", "split")} | {"effusion": "label"}
    assert manifest.left_out == {"age": "not only 0, 1 and blank, see row 1"}
    assert manifest.notes == ("1 rows without patient: each is its own patient.",)
    assert manifest.has_patients
    assert (manifest.frame[["mask", "question", "answer"]] == "").all(axis=None)


def test_bom_quotes_crlf_blank_lines_and_spaces(tmp_path):
    text = '\ufeff image , text ,mass\r\n a.png ,"says ""no"", and\r\nmore", 1 \r\n\r\nb.png,Größe ≥ 5\u00a0mm,0.0\r\n'
    frame = Manifest.read(table(tmp_path, text)).frame
    assert frame["image"].tolist() == ["a.png", "b.png"]
    assert frame["text"].tolist() == ['says "no", and\r\nmore', "Größe ≥ 5\u00a0mm"]
    assert frame["mass"].tolist() == [1.0, 0.0]
    assert frame["row"].tolist() == ["1", "2"]


def test_rows_that_cannot_be_used_are_rejects(tmp_path):
    manifest = Manifest.read(table(tmp_path, "image,text,mass\na.png,x,1\n,  ,1\nb.png,x,1,9\nc.png\nd.png,,0\n"))
    assert manifest.frame["row"].tolist() == ["1", "5"]
    assert manifest.rejects == [
        {"row": "2", "reason": "expected image or text, but got blank"},
        {"row": "3", "reason": "expected 3 cells as in the header, but got 4"},
        {"row": "4", "reason": "expected 3 cells as in the header, but got 1"},
    ]


def test_bad_json_lines_are_rejects(tmp_path):
    text = '{"text": "a", "k": {"x": [1]}}\nnonsense\n[1]\n{"text": "\\ud800"}\n{"text": "b", "k": true}\n' + "[" * 9999
    manifest = Manifest.read(table(tmp_path, text, "m.jsonl"))
    assert manifest.frame["text"].tolist() == ["a", "b"]
    assert [reject["row"] for reject in manifest.rejects] == ["2", "3", "4", "6"]
    assert manifest.rejects[1]["reason"] == "expected a JSON object, but got a list"


@pytest.mark.parametrize(
    ("uncertain", "value"), [("ignore", math.nan), ("zero", 0.0), ("one", 1.0)], ids=["ignore", "zero", "one"]
)
@pytest.mark.parametrize("named", [(), ("edema",)])
def test_a_raw_minus_one_needs_a_meaning(tmp_path, uncertain, value, named):
    path = table(tmp_path, "image,edema\na.png,1\nb.png,\nc.png,-1.0\nd.png,-1\n")
    with pytest.raises(
        InputError,
        match=r"`column edema`: expected 0, 1 or blank, but got '-1.0' in row 3.*--uncertain ignore\|zero\|one",
    ):
        Manifest.read(path, labels=named)
    frame = Manifest.read(path, labels=named, uncertain=uncertain).frame
    np.testing.assert_array_equal(frame["edema"], [1.0, math.nan, value, value])


def test_labels_by_name(tmp_path):
    path = table(tmp_path, "image,a,b,score,kind\nx.png,1,0,2.5,cat\ny.png,0,1,,dog\nz.png,0,1,7,\n")
    assert Manifest.read(path).labels == ("a", "b")
    manifest = Manifest.read(path, labels=("score", "a"))
    assert manifest.labels == ("a", "score")
    np.testing.assert_array_equal(manifest.frame["score"], [2.5, math.nan, 7])
    assert manifest.left_out["b"] == "not among the labels that were named"
    with pytest.raises(InputError, match=r"`column kind`: expected finite numbers or blank, but got 'cat' in row 1"):
        Manifest.read(path, labels=("kind",))
    with pytest.raises(InputError, match=r"`c`: .* but got no such column among \['a', 'b', 'score', 'kind'\]"):
        Manifest.read(path, labels=("c",))
    with pytest.raises(InputError, match="`image`: expected a column that can hold labels"):
        Manifest.read(path, class_column="image")


def test_class_column(tmp_path):
    path = table(tmp_path, "image,kind,grade,one,bad\nx.png,cat,10,k,-1\ny.png,,9,k,0\nz.png,ant,-3,k,1\n")
    manifest = Manifest.read(path, class_column="kind")
    assert (manifest.classes, manifest.class_column, manifest.labels) == (("ant", "cat"), "kind", ())
    assert manifest.frame["kind"].tolist() == [1, -1, 0]
    assert manifest.frame["kind"].dtype == np.int64
    assert Manifest.read(path, class_column="grade").classes == ("-3", "9", "10")
    with pytest.raises(InputError, match="`column one`: expected at least two classes, but got 1"):
        Manifest.read(path, class_column="one")
    for uncertain in (None, "zero", "one"):
        with pytest.raises(InputError, match=r"`column bad`: .* but got '-1' in row 1.*--uncertain ignore"):
            Manifest.read(path, class_column="bad", uncertain=uncertain)
    ignored = Manifest.read(path, class_column="bad", uncertain="ignore")
    assert (ignored.classes, ignored.frame["bad"].tolist()) == (("0", "1"), [-1, 0, 1])


def test_columns_that_only_look_like_labels(tmp_path):
    manifest = Manifest.read(table(tmp_path, ",text,row,answer,mass\n0,a,1,1,1\n1,b,0,0,0\n"))
    assert manifest.labels == ("mass",)
    assert manifest.left_out == {
        "(column 1)": "it has no name",
        "row": "the name is used for row ids; rename the column to use it",
    }
    assert manifest.frame["answer"].tolist() == ["1", "0"]


def test_row_ids(tmp_path):
    assert Manifest.read(table(tmp_path, "id,text\nu,a\nv,b\n")).frame["row"].tolist() == ["u", "v"]
    repeated = Manifest.read(table(tmp_path, "id,text\nu,a\nv,b\nv,c\n"))
    assert repeated.frame["row"].tolist() == ["1", "2", "3"]
    assert repeated.left_out["id"] == "2 rows share ids, row 2 first; row numbers are used instead"
    assert "blank in row 2" in Manifest.read(table(tmp_path, "id,text\nu,a\n,b\n")).left_out["id"]


def test_splits_as_given(tmp_path):
    path = table(tmp_path, "text,patient,split\na,p,train\nb,p,VAL\nc,q,dev\nd,r,test\n")
    manifest = Manifest.read(path)
    assert manifest.frame["split"].tolist() == ["train", "validate", "validate", "test"]
    assert manifest.taken["split"] == "split (VAL read as validate, dev read as validate)"
    assert manifest.overlap() == {"p": ("train", "validate")}
    with pytest.raises(
        InputError, match="`column split`: expected train, validate or test, but got 'holdout' in row 2"
    ):
        Manifest.read(table(tmp_path, "text,split\na,train\nb,holdout\n"))


def test_splits_are_assigned_by_patient_and_in_any_row_order(tmp_path):
    rows = [f"{k}.png,p{k // 3},{k % 2}" for k in range(120)]
    manifest = Manifest.read(table(tmp_path, "\n".join(["image,patient,mass", *rows])))
    moved = Manifest.read(table(tmp_path, "\n".join(["image,patient,mass", *rows[::-1]])))
    split = dict(zip(manifest.frame["image"], manifest.frame["split"], strict=True))
    assert split == dict(zip(moved.frame["image"], moved.frame["split"], strict=True))
    assert manifest.overlap() == {}
    assert manifest.frame.groupby("split")["patient"].nunique().to_dict() == {"train": 28, "validate": 4, "test": 8}
    assert any("No column `split`" in note for note in manifest.notes)


def test_without_patients_every_row_is_its_own_in_any_row_order(tmp_path):
    rows = ["a.png,x", "a.png,x", "a.png,y", "b.png,x"]
    manifest = Manifest.read(table(tmp_path, "\n".join(["image,text", *rows])))
    moved = Manifest.read(table(tmp_path, "\n".join(["image,text", *rows[::-1]])))
    assert not manifest.has_patients
    assert manifest.frame["patient"].nunique() == 4
    assert set(manifest.frame["patient"]) == set(moved.frame["patient"])
    assert manifest.notes[:2] == (
        "No column `patient`: every row is its own patient.",
        "2 rows repeat an image and may stand on another side of the split than it.",
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", "", "expected at least one row, but got none"),
        ("m.csv", "image,text\n", "expected at least one row, but got none"),
        (
            "m.csv",
            "picture;report\na;b\n",
            r"expected a column `image`, `text` or `question`, but got columns \['picture;report'\]",
        ),
        ("m.csv", "image,text\n,\n", "expected at least one usable row, but got 1 that cannot be used; row 1"),
        ("m.csv", 'image,text\na,"open\nb,c\n', "expected cells with balanced quotes, but got unexpected end of data"),
        ("m.csv", "image,text, text\na,b,c\n", "expected column names that differ"),
        ("m.csv", b"image,text\na,\xe4\n", "expected UTF-8 text, but got byte 0xe4 at position 13"),
        ("m.csv", b"\xff\xfei\x00m\x00", "expected UTF-8 text, but got byte 0xff at position 0"),
        ("m.csv", 'image,text\na,"' + "x" * 200_000, "cells with balanced quotes, but got unexpected end of data"),
        ("m.csv", "text,split\na,\nb,\n", "one usable row, but got 2 .* row 1: expected train, validate or test"),
        ("m.xlsx", "PK", r"expected a .csv, .tsv, .jsonl or .parquet file, but got suffix '.xlsx'"),
        ("m.parquet", "PAR1 no", "expected a parquet file, but got ArrowInvalid"),
        ("m.jsonl", "[1]\n", "expected a column `image`, `text` or `question`"),
    ],
)
def test_bad_tables_are_told_in_words(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        Manifest.read(table(tmp_path, content, name))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="expected a table file, but got a folder"):
        Manifest.read(tmp_path)
    with pytest.raises(InputError, match="expected a table file, but got No such file"):
        Manifest.read(tmp_path / "none.csv")
