"""Writers of layouts that give each picture one class, several, or a person."""

from __future__ import annotations

import io
import json
import posixpath
import tarfile
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.roundtrip.habits import COMMON, TEXT, Out
from tests.roundtrip.layout import Layout
from tests.roundtrip.truth import Picture, Truth

JSON = COMMON | {"bom", "crlf"}
TABLE = COMMON | TEXT | {"utf16", "quotes", "shuffled", "paths"}


def _by_split(out: Out) -> dict[str, list[Picture]]:
    """Pictures by split, "" where there is none."""
    groups: dict[str, list[Picture]] = {}
    for picture in out.truth.pictures:
        groups.setdefault(picture.split or "", []).append(picture)
    return groups


def class_folders(out: Out) -> None:
    """<class>/x.jpg or <split>/<class>/x.jpg."""
    for picture in out.truth.pictures:
        label = out.spelt(picture.label, picture.split)
        out.picture(posixpath.join(out.split(picture), label), picture)
    first = out.truth.pictures[0]
    out.stray(out.split(first))


def _rows(out: Out, folder: str, value: str) -> list[list[Any]]:
    """Path, label and, where there are splits, split of each picture; writes these into ``folder``."""
    rows = []
    for picture in out.truth.pictures:
        path = out.written_path(out.picture(folder, picture))
        row = [path, out.spelt(getattr(picture, value), picture.split)]
        rows.append(row + ([out.words[picture.split]] if picture.split else []))
    out.stray(folder)
    return rows


def _double(out: Out, rows: list[list[Any]]) -> None:
    """By habit, the first row stands twice, with another class."""
    if out.habits.fault == "double_row":
        other = next(name for name in out.truth.classes if name != rows[0][1])
        rows.append([rows[0][0], other, *rows[0][2:]])
        out.refuse = "two rows of one picture"


def csv(out: Out) -> None:
    """labels.csv: path,label[,split]; any of the usual headers and separators."""
    rows = _rows(out, out.folder("photos"), "label")
    _double(out, rows)
    style = out.truth.pictures[0].number
    path = ["path", "file", "image", "filename", "file_name"][style % 5]
    label = ["label", "class", "label"][style % 3]
    header = [path, label, *(["split"] if out.truth.splits else [])]
    if style % 2 and out.habits.upper_folders:
        header = [name.capitalize() for name in header]
    name = out.csv("labels" + out.ending(".csv"), [header, *rows], ",;"[style // 5 % 2])
    out.source = name if style % 4 == 0 else ""


def tsv(out: Out) -> None:
    """data.tsv: path, label, split with tabs between."""
    rows = _rows(out, "", "label")
    _double(out, rows)
    header = ["path", "label", *(["split"] if out.truth.splits else [])]
    out.csv("data.tsv", [header, *rows], "\t")


def jsonl(out: Out) -> None:
    """labels.jsonl: one object a line."""
    keys = ["path", "label", "split"]
    rows = _rows(out, out.folder("images"), "label")
    lines = [json.dumps(dict(zip(keys, row, strict=False)), ensure_ascii=out.habits.shuffled) for row in rows]
    out.text("labels.jsonl", lines)


def parquet(out: Out) -> None:
    """labels.parquet: columns of paths and classes."""
    rows = _rows(out, out.folder("images"), "label")
    keys = ["path", "label", "split"][: len(rows[0])]
    table = pa.Table.from_pylist([dict(zip(keys, row, strict=True)) for row in rows])
    pq.write_table(table, out.root / "labels.parquet")


def _metadata(out: Out, as_json: bool) -> None:
    """Hugging Face ImageFolder: metadata beside the pictures, one a split."""
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        rows = []
        for picture in pictures:
            name = out.picture(folder, picture).removeprefix(folder).lstrip("/")
            rows.append([out.written_path(name), out.spelt(picture.label, picture.split)])
        if as_json:
            keys = ["file_name", "label"]
            lines = [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) for row in rows]
            out.text(posixpath.join(folder, "metadata.jsonl"), lines)
        else:
            out.csv(posixpath.join(folder, "metadata.csv"), [["file_name", "label"], *rows])
    out.stray(out.split(out.truth.pictures[0]))


def hf_csv(out: Out) -> None:
    """metadata.csv with file_name."""
    _metadata(out, as_json=False)


def hf_jsonl(out: Out) -> None:
    """metadata.jsonl with file_name."""
    _metadata(out, as_json=True)


def lists(out: Out) -> None:
    """train.txt, val.txt or labels.txt with lines of path and class."""
    for split, pictures in _by_split(out).items():
        lines = []
        for picture in pictures:
            path = out.written_path(out.picture(out.folder("images"), picture))
            lines.append(f"{path} {out.spelt(picture.label, split)}")
        if out.habits.shuffled:
            lines.reverse()
        out.text((out.words[split] if split else "labels") + ".txt", lines, wide=True)
    out.stray(out.folder("images"))


def kaggle(out: Out) -> None:
    """labels.csv of ids without ending, beside train/."""
    header = [["id", "breed"], ["image_id", "label"], ["id", "label"], ["Image", "Id"]]
    rows = [header[out.truth.pictures[0].number % 3]]
    for picture in out.truth.pictures:
        out.picture(out.folder("train"), picture)
        rows.append([out.stem(picture), out.spelt(picture.label)])
    out.csv("labels.csv", rows)
    out.stray(out.folder("train"))


def webdataset(out: Out) -> None:
    """train-000000.tar with x.jpg and x.cls, class numbers as text."""
    for split, pictures in _by_split(out).items():
        for shard, part in enumerate((pictures[::2], pictures[1::2])):
            if not part:
                continue
            sink = io.BytesIO()
            with tarfile.open(fileobj=sink, mode="w") as tar:
                for picture in part:
                    key = f"{picture.number:06d}"
                    files = [
                        (key + picture.ending, picture.encoded()),
                        (f"{key}.cls", picture.label.encode()),
                    ]
                    for name, data in files:
                        info = tarfile.TarInfo(name)
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
            name = f"{out.words[split] if split else 'train'}-{shard:06d}.tar"
            out.write(name, sink.getvalue())


def _table(out: Out, pictures: list[Picture]) -> tuple[dict[str, list[Any]], Any]:
    """Columns and features of `datasets` for these pictures."""
    from datasets import ClassLabel, Features, Image

    names = [out.spelt(name, "train") for name in out.truth.classes]
    columns = {
        "image": [{"bytes": p.encoded(), "path": p.stem + p.ending} for p in pictures],
        "label": [out.truth.classes.index(p.label) for p in pictures],
    }
    return columns, Features({"image": Image(), "label": ClassLabel(names=names)})


def save_to_disk(out: Out) -> None:
    """A Dataset or DatasetDict of `datasets`, saved."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    made = {}
    for split, pictures in _by_split(out).items():
        columns, features = _table(out, pictures)
        made[out.words[split] if split else ""] = Dataset.from_dict(columns, features=features)
    whole = made[""] if "" in made else DatasetDict(made)
    whole.save_to_disk(str(out.root / "saved"))
    out.source = "saved"


def hub_parquet(out: Out) -> None:
    """data/train-00000-of-00001.parquet with embedded pictures, as the hub has it."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    for split, pictures in _by_split(out).items():
        columns, features = _table(out, pictures)
        name = f"{out.words[split] if split else 'train'}-00000-of-00001.parquet"
        (out.root / "data").mkdir(exist_ok=True)
        Dataset.from_dict(columns, features=features).to_parquet(str(out.root / "data" / name))


# ---- several classes


def _one_hot(
    out: Out, path: str, pictures: list[Picture], folder: str, name_of: Any, blank: str = ""
) -> None:
    rows: list[list[Any]] = [["filename", *(blank + out.spelt(name, "train") for name in out.truth.classes)]]
    form = out.truth.pictures[0].number % 4
    yes, no = [("1", "0"), ("1", "0"), ("True", "False"), ("1.0", "0.0")][form if not blank else 0]
    for picture in pictures:
        cells = [blank + (yes if name in picture.labels else no) for name in out.truth.classes]
        rows.append([name_of(out.picture(folder, picture)), *cells])
    if out.habits.fault == "minus_one":
        rows[1][-1] = "-1"
        out.must_report.append("-1")
        out.may_lack.add(pictures[0].sha256)
        out.unlabelled.add(pictures[0].sha256)
    if not blank and out.truth.splits:
        rows[0].append("split")
        for row, picture in zip(rows[1:], pictures, strict=True):
            row.append(out.words[picture.split or ""])
    out.csv(path, rows)


def roboflow_multilabel(out: Out) -> None:
    """train/_classes.csv: filename, then a column of 0 and 1 for each class, blanks after the commas."""
    for pictures in _by_split(out).values():
        folder = out.split(pictures[0])
        name = posixpath.join(folder, "_classes.csv")
        _one_hot(out, name, pictures, folder, lambda path: posixpath.basename(path), blank=" ")


def one_hot(out: Out) -> None:
    """A table of 0 and 1 (or True and False, 1.0 and 0.0) beside the pictures."""
    _one_hot(out, "table.csv", list(out.truth.pictures), out.folder("images"), out.written_path)
    out.stray(out.folder("images"))


def label_lists(out: Out) -> None:
    """A table whose labels are joined by a sign, or are lists as text."""
    rows: list[list[Any]] = [["path", "labels", *(["split"] if out.truth.splits else [])]]
    sign = next(s for s in "|;,\t" if not any(s in name for name in out.truth.classes))
    # Between signs "null" is no value, by convention, and "x;y" is two where no other sign is seen; in quotes
    # both are texts.
    seen = any(len(picture.labels) > 1 for picture in out.truth.pictures)
    unclear = not seen and any(set(name) & set("|;,") for name in out.truth.classes)
    as_list = out.truth.pictures[0].number % 2 or unclear or "null" in out.truth.classes
    for picture in out.truth.pictures:
        path = out.written_path(out.picture("", picture))
        names = [out.spelt(name, picture.split) for name in picture.labels]
        cell = str(names) if as_list else sign.join(names)
        rows.append([path, cell, *([out.words[picture.split]] if picture.split else [])])
    out.csv("table.csv", rows)
    out.stray("")


def label_lists_json(out: Out) -> None:
    """labels.jsonl with a list of labels in each line."""
    lines = []
    for picture in out.truth.pictures:
        row: dict[str, Any] = {"file_name": out.written_path(out.picture("images", picture))}
        row["labels"] = [out.spelt(name, picture.split) for name in picture.labels]
        row |= {"split": out.words[picture.split]} if picture.split else {}
        lines.append(json.dumps(row, ensure_ascii=False))
    out.text("labels.jsonl", lines)
    out.stray("images")


# ---- people


def identity_folders(out: Out) -> None:
    """A folder a person."""
    for picture in out.truth.pictures:
        out.picture(out.spelt(picture.label, "train"), picture)


def lfw(out: Out) -> None:
    """Flat names, as in George_W_Bush_0001.jpg."""
    for picture in out.truth.pictures:
        name = f"{picture.label}_{picture.number:04d}"
        path = out.write(
            posixpath.join(out.folder("faces"), name + out.ending(picture.ending)), picture.encoded()
        )
        out.paths[picture.number] = path


def _two_with_several(truth: Truth) -> bool:
    """Whether two people have several pictures: else such names may be those of a series."""
    count = Counter(picture.label for picture in truth.pictures)
    return sum(n > 1 for n in count.values()) > 1


FACES = ("face_recognition",)
LABEL = ("auto", "auto", "classification")
SEVERAL = ("auto", "auto", "multilabel")
LAYOUTS = [
    Layout("folder", "label", class_folders, names="folder", tasks=LABEL, same_stems=True),
    Layout("csv", "label", csv, TABLE, ("double_row",), tasks=LABEL),
    Layout("tsv", "label", tsv, TABLE, ("double_row",), tasks=LABEL),
    Layout("jsonl", "label", jsonl, JSON | {"empty_lines", "shuffled", "paths"}, tasks=LABEL),
    Layout("parquet", "label", parquet, COMMON | {"paths"}, tasks=LABEL),
    Layout("hf_csv", "label", hf_csv, TABLE - {"utf16"}, tasks=LABEL, same_stems=True),
    Layout("hf_jsonl", "label", hf_jsonl, JSON | {"empty_lines"}, tasks=LABEL, same_stems=True),
    Layout("list", "label", lists, COMMON | TEXT | {"utf16", "shuffled", "paths"}, tasks=LABEL),
    Layout("kaggle", "label", kaggle, TABLE - {"paths"}, tasks=LABEL, splits="none"),
    Layout(
        "webdataset", "label", webdataset, frozenset({"junk"}), names="numbers", words=("val", "validation")
    ),
    Layout("save_to_disk", "label", save_to_disk, frozenset(), words=("validation", "val")),
    Layout("hub_parquet", "label", hub_parquet, frozenset({"junk"}), words=("validation", "val")),
    Layout(
        "roboflow_multilabel", "labels", roboflow_multilabel, COMMON - {"stray", "upper_endings"} | {"crlf"},
        splits="given", tasks=SEVERAL, same_stems=True, words=("valid",),
    ),
    Layout("one_hot", "labels", one_hot, TABLE, ("minus_one",), tasks=SEVERAL),
    Layout("label_lists", "labels", label_lists, TABLE, tasks=SEVERAL),
    Layout("label_lists_json", "labels", label_lists_json, JSON | {"paths"}, tasks=SEVERAL),
    Layout(
        "identity", "identity", identity_folders, frozenset({"upper_endings", "junk"}), names="person",
        splits="none", tasks=FACES,
    ),
    Layout(
        "lfw", "identity", lfw, frozenset({"upper_endings", "upper_folders", "junk"}), names="lfw",
        splits="none", tasks=FACES, is_clear=_two_with_several,
    ),
]  # fmt: skip
