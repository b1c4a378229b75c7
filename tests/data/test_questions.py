"""Tables of questions: what a text encoder reads, and what stays beside it."""

import pytest
import torch

from adaptmed.bank import Bank
from adaptmed.cli import main
from adaptmed.data.manifest import Manifest
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import embed
from adaptmed.errors import BankError, InputError
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder, make_table

QUESTIONS = "image,question,answer,answer_type\na.png,is it large?,yes,CLOSED\nb.png,where?,,OPEN\n,what is this?,x,\n"
BOTH = "image,text,question,answer\na.png,a large mass,is it large?,yes\nb.png,,where?,left\n,no mass,,\n"


def table(tmp_path, text, name="m.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_without_text_the_question_is_read(tmp_path):
    manifest = Manifest.read(table(tmp_path, QUESTIONS))
    assert manifest.frame["text"].tolist() == ["is it large?", "where?", "what is this?"]
    assert manifest.frame["question"].tolist() == manifest.frame["text"].tolist()
    assert manifest.frame["answer"].tolist() == ["yes", "", "x"], "rows without answer serve calibration"
    assert manifest.frame["answer_type"].tolist() == ["CLOSED", "OPEN", ""]
    assert manifest.taken["question"] == "question, read as text"
    assert (manifest.taken["answer"], manifest.taken["answer_type"]) == ("answer", "answer_type")
    assert manifest.text_column == "question"
    assert "text" not in manifest.taken
    assert manifest.left_out == {}


def test_rows_with_neither_image_nor_question_are_rejected(tmp_path):
    manifest = Manifest.read(table(tmp_path, "image,question,answer\na.png,,yes\n,,no\n,why?,\n"))
    assert manifest.frame["row"].tolist() == ["1", "3"]
    assert manifest.rejects == [{"row": "2", "reason": "expected image or question, but got blank"}]


def test_of_both_the_text_is_read_unless_the_question_is_asked_for(tmp_path):
    path = table(tmp_path, BOTH)
    plain, texts, questions = (Manifest.read(path, text_column=column) for column in (None, "text", "question"))
    assert plain.frame.equals(texts.frame)
    assert plain.frame["text"].tolist() == ["a large mass", "", "no mass"]
    assert plain.taken["question"] == "question"
    assert questions.frame["text"].tolist() == ["is it large?", "where?"]
    assert questions.frame["question"].tolist() == ["is it large?", "where?"]
    assert questions.left_out == {"text": "the question is read as text"}
    assert questions.rejects == [{"row": "3", "reason": "expected image or question, but got blank"}]


def test_questions_alone_are_enough(tmp_path):
    manifest = Manifest.read(table(tmp_path, "question,answer\nwhy?,so\n"))
    assert manifest.frame[["image", "text"]].to_numpy().tolist() == [["", "why?"]]


@pytest.mark.parametrize(
    ("content", "asked", "message"),
    [
        ("image,text\na.png,x\n", "question", r"`text_column`: expected text, a text column of .*, but got 'question'"),
        (BOTH, "answer", r"`text_column`: expected text or question, a text column of .*, but got 'answer'"),
        ("image\na.png\n", "text", r"`text_column`: expected a table with one, not .*, but got 'text'"),
    ],
)
def test_a_column_that_is_not_there(tmp_path, content, asked, message):
    with pytest.raises(InputError, match=message):
        Manifest.read(table(tmp_path, content), text_column=asked)


def test_a_table_without_answer_types_has_no_such_column(tmp_path):
    columns = list(Manifest.read(table(tmp_path, BOTH)).frame)
    assert columns == ["row", "image", "text", "patient", "split", "mask", "question", "answer"]


def questions(tmp_path):
    frame = make_table(tmp_path / "data")
    frame["question"] = ["is it large"] * 6 + ["where is it"] * 6
    frame["answer"] = ["yes", ""] * 6
    frame.to_csv(tmp_path / "data/m.csv", index=False)
    return tmp_path / "data/m.csv"


def test_the_two_choices_are_two_banks(tmp_path):
    path, out = questions(tmp_path), tmp_path / "bank"
    bank = embed(Manifest.read(path, text_column="question"), PatchEncoder(), WordEncoder(), out, options=EXACT)
    assert bank.info.texts.count == 2
    assert bank.rows["answer"].tolist() == ["yes", ""] * 6
    ids, valid = bank.input_ids(bank.subset(None)[:1])
    assert torch.equal(ids[valid], WordEncoder().tokenize(["is it large"]).input_ids[0])
    with pytest.raises(BankError, match="rows_sha256"):
        embed(Manifest.read(path), PatchEncoder(), WordEncoder(), out, options=EXACT)


def test_embed_says_what_it_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("adaptmed.encoders.load_text_encoder", lambda _name: WordEncoder())
    words = ["embed", str(questions(tmp_path)), "--text-encoder", "words", "--out", str(tmp_path / "bank")]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--text-column", "question"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Columns taken: image, split, question (read as text), answer, effusion; left out: text." in said
    assert Bank.open(tmp_path / "bank").info.texts.count == 2


def test_check_reads_the_questions_of_the_phantom(tmp_path, capsys):
    write_phantom(tmp_path / "phantom", splits={"train": 5}, seed=1)
    with pytest.raises(SystemExit) as stop:
        main(["check", str(tmp_path / "phantom" / "questions.csv"), "--strict"])
    assert stop.value.code == 0
    assert "read as text" in capsys.readouterr().out
    manifest = Manifest.read(tmp_path / "phantom" / "questions.csv")
    assert (manifest.frame["text"] != "").all()
    assert (manifest.frame["text"] == manifest.frame["question"]).all()
