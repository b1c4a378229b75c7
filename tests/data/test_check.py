import json

import numpy as np
import pytest
import torch
from PIL import Image

from adaptmed.cli.check import check
from adaptmed.data.check import LabelCount, SplitCount, check_manifest
from adaptmed.data.manifest import Manifest
from adaptmed.errors import InputError
from adaptmed.types import TokenIds
from tests.tiny_encoders import WordEncoder

TABLE = """image,text,patient,split,edema,kind,age
a.png,No finding.,secret-1,train,1,x,61
b.png,No finding.,secret-1,test,0,y,50
gone.png,Large effusion on the left side.,secret-2,train,,y,41
broken.png,,secret-3,val,1,,41
broken.png,No finding.,secret-3,val,0,x,41
,,secret-4,train,0,x,3
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "m.csv").write_text(TABLE)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    return tmp_path / "m.csv"


def tokenize(texts):
    words = [text.split() for text in texts]
    ids = torch.zeros(len(texts), 3, dtype=torch.long)
    return TokenIds(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([len(line) > 3 for line in words]))


def test_report(path):
    calls = []
    manifest = Manifest.read(path, labels=("edema",), class_column="kind")
    report = check_manifest(manifest, tokenize=tokenize, progress=lambda *call: calls.append(call))
    assert report.splits == (
        SplitCount("train", 2, 2, 2, 2),
        SplitCount("validate", 2, 1, 2, 1),
        SplitCount("test", 1, 1, 1, 1),
    )
    assert set(report.balance) == {
        LabelCount("edema", "train", 1, 0, 1),
        LabelCount("edema", "validate", 1, 1, 0),
        LabelCount("edema", "test", 0, 1, 0),
        LabelCount("kind = x", "train", 1, 1, 0),
        LabelCount("kind = y", "train", 1, 1, 0),
        LabelCount("kind = x", "validate", 1, 0, 1),
        LabelCount("kind = y", "validate", 0, 1, 1),
        LabelCount("kind = x", "test", 0, 1, 0),
        LabelCount("kind = y", "test", 1, 0, 0),
    }
    assert [reject["row"] for reject in report.rejects] == ["6", "3", "4", "5"]
    assert report.missing == [{"row": "3", "image": "gone.png", "reason": "No such file or directory"}]
    assert {reject["image"] for reject in report.unreadable} == {"broken.png"}
    assert report.unreadable[0]["reason"].startswith("expected an image that can be decoded")
    assert (report.texts, report.distinct_texts) == (4, 2)
    assert (report.most_frequent_text, report.most_frequent_count) == ("No finding.", 3)
    assert report.truncated == 0.25
    assert report.overlapping == {("test", "train"): 1}
    assert report.images_read == 3
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_without_reading_images_only_missing_files_are_found(path):
    report = check_manifest(Manifest.read(path), read_images=False)
    assert [len(report.missing), len(report.unreadable), report.images_read] == [1, 0, 0]
    assert report.truncated is None


def test_odd_file_names_are_missing_files(tmp_path):
    rows = [{"image": "a\0b.png"}, {"image": "x" * 300}, {"image": "../none.png"}, {"image": "/none/at/all.png"}]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert len(check_manifest(Manifest.read(tmp_path / "m.jsonl")).missing) == 4


def test_command_shows_everything_but_patients_and_writes_nothing(path, capsys):
    before = sorted(path.parent.iterdir())
    check(path)
    shown = capsys.readouterr().out
    for word in (
        "edema",
        "age",
        "not only 0, 1 and blank",
        "gone.png",
        "broken.png",
        "3 times: No finding.",
        "validate",
    ):
        assert word in shown
    assert "1 patients stand in test and train" in shown
    assert "left out: 4 (1 unusable, 1 missing, 2 unreadable)" in " ".join(shown.split())
    assert "secret" not in shown
    assert "Large effusion" not in shown
    assert sorted(path.parent.iterdir()) == before


def test_command_writes_rejects_and_is_strict(path, tmp_path):
    rejects = tmp_path / "new" / "rejects.jsonl"
    with pytest.raises(InputError, match="expected no rejects, but got 4"):
        check(path, rejects=rejects, strict=True)
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [line["row"] for line in lines] == ["6", "3", "4", "5"]
    assert all(line["reason"] for line in lines)
    assert [file.name for file in rejects.parent.iterdir()] == ["rejects.jsonl"]
    with pytest.raises(InputError, match=r"m\.csv/r`: expected a file that can be written"):
        check(path, rejects=path / "r")


def test_a_long_text_is_shortened_and_markup_is_shown_as_it_is(tmp_path, capsys):
    text = "[red]" + "long " * 40
    (tmp_path / "m.csv").write_text(f"text,patient\n{text},a\n{text},b\n")
    check(tmp_path / "m.csv", strict=True)
    shown = " ".join(capsys.readouterr().out.split())
    assert "2 times: [red]long long" in shown
    assert "long " * 15 not in shown


def test_texts_are_cut_where_embed_cuts_them(tmp_path, capsys, monkeypatch):
    texts = ["a " * 300, "a " * 300, "a " * 200, "b"]
    (tmp_path / "m.csv").write_text("text\n" + "\n".join(texts) + "\n")
    encoder = WordEncoder()
    monkeypatch.setattr("adaptmed.encoders.load_text_encoder", lambda _name: encoder)
    for limit, words in ((512, "33.3% of the distinct texts lose their end at 256 tokens"), (6, "66.7% of the")):
        monkeypatch.setattr(WordEncoder, "max_tokens", limit)
        check(tmp_path / "m.csv", text_encoder="fake:words")
        assert words in " ".join(capsys.readouterr().out.split())
