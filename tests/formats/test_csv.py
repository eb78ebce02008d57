"""Tables of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs as pafs

from tlray import formats
from tlray.errors import DataError
from tlray.formats import csv

FS = pafs.LocalFileSystem()


def table(tmp_path: Path, text: str, name: str = "labels.csv") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def rows(root: str) -> list[tuple[str, str | None, str]]:
    return [(r["path"], r["split"], r["label"]) for r in csv.index(FS, root).to_pylist()]


def test_path_label_and_split(tmp_path: Path) -> None:
    path = table(tmp_path, "path,label,split,more\nb.jpg,dog,val,1\nsub/a.jpg, cat ,train,2\nc.jpg,dog,,3\n")
    expected = [("b.jpg", "validation", "dog"), ("c.jpg", None, "dog"), ("sub/a.jpg", "train", "cat")]
    assert rows(path) == expected
    assert rows(str(tmp_path)) == expected  # the folder that holds just this table


@pytest.mark.parametrize("column", ["file", "image", "filename", "Path"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_names_of_the_column_and_separators(tmp_path: Path, column: str, sign: str) -> None:
    path = table(tmp_path, f'\ufeff{column}{sign}"label"\n"b, c.jpg"{sign}007\n')
    assert rows(path) == [("b, c.jpg", None, "007")]  # a class is text, whatever it looks like


def test_absolute_paths_below_the_table(tmp_path: Path) -> None:
    path = table(tmp_path, f"path,label\n{tmp_path}/x/a.jpg,dog\nfile://{tmp_path}/b.jpg,dog\n./c.jpg,dog\n")
    assert [r[0] for r in rows(path)] == ["b.jpg", "c.jpg", "x/a.jpg"]


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", "/etc/a.jpg", "s3://bucket/a.jpg"])
def test_paths_outside_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"row 3: path = .*accepted: a path below"):
        csv.index(FS, table(tmp_path, f"path,label\nb.jpg,dog\n{path},dog\n"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("picture,label\na,b\n", r"no column 'path' among picture, label; accepted: path\|file"),
        ("path,klass\na,b\n", "no column 'label' among path, klass"),
        ("path,label\n", "no rows below the header"),
        ("path,label\na.jpg,\n", "row 2: label is empty"),
        ("path,label,split\na.jpg,dog,trian\n", "row 2: split = 'trian'; accepted: train, validation, test"),
        ("path,label\na.jpg,dog\nb.jpg,dog\n./a.jpg,cat\n", "row 4: 'a.jpg' stands in row 2 too"),
        ("path,label\na.jpg,dog\nb.jpg,dog,x\n", "no valid table"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        csv.index(FS, table(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "labels.csv" in str(error.value)


def test_which_table(tmp_path: Path) -> None:
    table(tmp_path, "path,label\na.jpg,dog\n", "a.csv")
    named = table(tmp_path, "path,label\nb.jpg,dog\n", "b.csv")
    with pytest.raises(DataError, match=r"tables found: a\.csv, b\.csv; accepted"):
        csv.index(FS, str(tmp_path))
    assert rows(named) == [("b.jpg", None, "dog")]


def test_surer_than_folders(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    other = table(tmp_path, "name,score\na,1\n", "scores.csv")
    assert formats.find(FS, str(tmp_path)) == "folder"  # that table is about something else
    assert formats.find(FS, other) == "csv"  # but it was named
    Path(other).unlink()
    table(tmp_path, "path,label\nimages/a.jpg,dog\n")
    assert formats.find(FS, str(tmp_path)) == "csv"
