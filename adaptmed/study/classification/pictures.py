"""What a report shows of single test items: the map of embeddings before and after, and retrieval examples."""

import numpy as np

from adaptmed.adaptor.features import embed_images, embed_rows, frozen_variants
from adaptmed.bank.source_files import root_of
from adaptmed.study.classification.subject import Subject
from adaptmed.study.classification.zero_shot import paired_rows
from adaptmed.study.report.plots import Maps, project_2d, sample_rows
from adaptmed.study.report.report import RetrievalExample
from adaptmed.study.report.thumbnails import thumbnail


def maps_of(subject: Subject, *, limit: int = 800) -> Maps | None:
    """The paper's picture: test images by t-SNE, on the frozen encoder's mean token and on the adaptor's embedding."""
    if subject.adaptor is None:
        return None
    rows = subject.rows
    chosen = sample_rows(len(rows.test), limit=limit)
    before = frozen_variants(subject.bank, rows.test[chosen])["CLS + mean"]
    after = embed_images(subject.adaptor.fusion, subject.bank, rows.test[chosen])
    return Maps(project_2d(before), project_2d(after), rows.truth.labels[chosen], rows.truth.names)


def retrieval_examples(subject: Subject, *, count: int = 4, shown: int = 3) -> list[RetrievalExample]:
    """For a few test images, spread evenly, the reports nearest to them; images that cannot be read are left out."""
    bank, paired = subject.bank, paired_rows(subject.bank, subject.rows)
    fusion = None if subject.adaptor is None else subject.adaptor.fusion
    if (
        fusion is None
        or not fusion.reads_texts
        or not len(paired)
        or "image" not in bank.rows
        or "text" not in bank.rows
    ):
        return []
    group = bank.rows["text_index"].to_numpy()[paired]
    first = np.unique(group, return_index=True)[1]
    texts = embed_rows(fusion, bank, paired[first], modality="text").numpy()
    asked = paired[np.linspace(0, len(paired) - 1, min(count, len(paired))).astype(int)]
    nearest = np.argsort(-(embed_images(fusion, bank, asked) @ texts.T), axis=1)[:, :shown]
    found = []
    for row, places in zip(asked, nearest, strict=True):
        picture = thumbnail(root_of(bank) / str(bank.rows["image"].iloc[row]))
        if picture is not None:
            hits = paired[first[places]]
            own = bank.rows["text_index"].iloc[row]
            right = tuple(bool(bank.rows["text_index"].iloc[hit] == own) for hit in hits)
            said = tuple(str(bank.rows["text"].iloc[hit]) for hit in hits)
            found.append(RetrievalExample(picture, str(bank.rows["text"].iloc[row]), said, right))
    return found
