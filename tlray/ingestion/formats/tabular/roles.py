"""Which column of a table is the picture's path, its split and its labels: by what the cells hold, and by
the names that people give to columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tlray.data.schema import SPLITS
from tlray.ingestion.formats.tabular import cells

Columns = Mapping[str, Sequence[Any]]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# fmt: off
PATH_NAMES = _words(
    "path file_name filename file image_path img_path file_path filepath image img image_name img_name "
    "image_file img_file imagename fname paths files filenames filepaths images picture photo pic "
    "relative_path rel_path full_path image_id img_id imageid id_code image_index picture_id photo_id "
    "image_url url uri key uuid id name index"
)
SPLIT_NAMES = (
    "split", "splits", "data_split", "split_name", "set", "subset", "partition", "phase", "usage", "mode",
    "data_set", "dataset", "fold",
)
FLAG_NAMES = {
    "is_valid": "validation", "is_val": "validation", "is_validation": "validation", "is_test": "test",
    "is_train": "train", "is_training": "train",
}
OTHER_SPLITS = {"publictest": "validation", "privatetest": "test", "public_test": "validation",
                "private_test": "test"}
UNNAMED = re.compile(r"column \d+")  # how `records` calls columns without a header
_PARTITIONS = {"0": "train", "1": "validation", "2": "test"}
LABEL_NAMES = _words(  # the plainest first
    "label class category target y breed species variety cultivar disease diagnosis dx emotion expression "
    "identity person celebrity subject brand sign style quality level grade severity stage type tag kind "
    "cls gt ground_truth annotation class_label label_text"
)
ID_NAMES = _words(
    "label_id class_id category_id target_id class_index class_idx label_index label_idx class_num "
    "label_num classid labelid class_number person_id identity_id species_id breed_id"
)
TEXT_NAMES = _words(
    "label_name class_name category_name label_names classname labelname target_name breed_name "
    "species_name person_name disease_name sign_name identity_name"
)
SEVERAL_NAMES = _words(
    "labels tags classes categories targets attributes class_names finding_labels findings genres "
    "attribute_ids label_list diseases species_list keywords"
)
# Columns that say something of the picture which is hardly ever what is to be learnt.
_ASIDE = frozenset(_words(
    "sex gender view source url notes note comment comments author license date time timestamp camera "
    "caption text description age score width height size bytes num_bytes md5 sha256 hash year month day "
    "hour latitude longitude lat lon lng count rating confidence prob probability weight index rank price "
    "patient_id patient user user_id fold seed order row number no channels depth mode checked verified "
    "latin_name scientific_name"
))
# fmt: on
_SURE = ("label", "class", "category", "target")
MANY = 0.8  # different values per picture above which they are rather texts or ids than classes
FEW = 12  # rows below which that means nothing

LABELS_ACCEPTED = (
    "a column label (class, category, ...), labels (tags) for several, or two or more columns of 0 and 1"
)


def key(name: str) -> str:
    """A column's name in the form of the lists above: ``ImageId``, ``image id`` -> image_id."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def sample(values: Sequence[Any], number: int = 200) -> Sequence[Any]:
    """Some of the values, from the whole length."""
    return values[:: max(1, len(values) // number)][:number]


class Unclear(Exception):
    """No column has the role that is needed, or two may have it; the text completes "..., but"."""


# ---- paths


def path_column(columns: Columns, names: Callable[[str], bool]) -> str | None:
    """The column whose cells name pictures that are there; None where there is none. Raises Unclear."""
    ranked: list[tuple[bool, bool, float, int, str]] = []
    for name, values in columns.items():
        some = [text for text in map(cells.text, sample(values)) if text]
        if not some or any(isinstance(value, list | dict) for value in sample(values, 20)):
            continue
        share = sum(map(names, some)) / len(some)
        named = key(name) in PATH_NAMES
        # 1, 2, 3 may be the picture 1.jpg, or an age.
        told = sum("." in text or "/" in text or not text.isdigit() for text in some) / len(some)
        if share < (0.5 if named else 0.9) or (not named and told < 0.5 and not name.startswith("column ")):
            continue
        if not named and len(set(some)) < min(len(some), 3):  # a class may be called as one picture is
            continue
        ending = sum("." in text for text in some) > len(some) / 2
        order = PATH_NAMES.index(key(name)) if named else len(PATH_NAMES)
        ranked.append((ending, named, round(share, 1), -order, name))
    ranked.sort(reverse=True)
    if len(ranked) > 1 and not ranked[0][1] and ranked[0][:3] == ranked[1][:3]:
        raise Unclear(
            f"columns {ranked[0][-1]} and {ranked[1][-1]} both hold names of pictures; accepted: the right "
            "one called path, or the other taken away"
        )
    return ranked[0][-1] if ranked else None


def named_path_column(columns: Columns, is_picture: Callable[[str], bool]) -> str | None:
    """The column that seems to be that of paths though its pictures are not there: by the ending of its
    cells, else by its name."""
    for name, values in columns.items():
        some = [cells.text(value) for value in sample(values, 50)]
        if some and sum(map(is_picture, some)) > len(some) / 2:
            return name
    by_key = {key(name): name for name in columns}
    sure = PATH_NAMES[: PATH_NAMES.index("image_index")]
    return next((by_key[name] for name in sure if name in by_key), None)


# ---- splits


@dataclass(frozen=True)
class SplitColumns:
    """The column that names the split, or those that say yes and no to one."""

    named: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)  # column -> split

    @property
    def columns(self) -> set[str]:
        return {*self.flags, *([self.named] if self.named else [])}


def split_name(cell: str, column: str = "") -> str | None:
    """The split that a cell names; None for any other text. In CelebA's column partition numbers do."""
    low = cell.strip().lower()
    if key(column) == "partition" and low in _PARTITIONS:
        return _PARTITIONS[low]
    return SPLITS.get(low) or OTHER_SPLITS.get(low)


def split_columns(columns: Columns) -> SplitColumns:
    """The columns that give the split of each row."""
    by_key = {key(name): name for name in columns}
    for name in SPLIT_NAMES:
        if name in by_key:
            known = {cells.text(value) for value in columns[by_key[name]]} - cells.MISSING
            said = {split_name(cell, name) for cell in known}
            # A column called split is one; "set" or "fold" is where its cells say so, be it with a mistake.
            if known and (name.startswith("split") or "train" in said or None not in said):
                return SplitColumns(by_key[name])
    for name in columns:
        said = {split_name(cells.text(value)) for value in columns[name]}
        if UNNAMED.fullmatch(name) and "train" in said and len(said) > 1 and None not in said:
            return SplitColumns(name)
    flags = {by_key[name]: split for name, split in FLAG_NAMES.items() if name in by_key}
    flags = {
        name: split
        for name, split in flags.items()
        if any(cells.yes_or_no(cells.text(value)) is not None for value in columns[name])
    }
    return SplitColumns(None, flags)


# ---- labels


@dataclass(frozen=True)
class Labels:
    """Where the labels are: one class a row in ``column``, several in it, or yes and no in ``one_hot``."""

    kind: Literal["one", "several", "one_hot", "objects"]
    column: str = ""
    names: str | None = None  # the column of the names of the numbers in ``column``
    one_hot: Sequence[str] = ()
    also: Labels | None = None  # a column of several classes beside that of one
    guessed: str = ""  # why this column, where its name does not say it

    @property
    def columns(self) -> set[str]:
        own = {self.column, self.names or "", *self.one_hot} - {""}
        return own | (self.also.columns if self.also else set())


def labels(columns: Columns) -> Labels:
    """The label columns among these (path and split taken away). Raises Unclear."""
    for name, values in columns.items():
        if any(isinstance(value, dict) and "bbox" in value for value in sample(values)):
            return Labels("objects", name)
    texts = {name: [cells.text(value) for value in values] for name, values in columns.items()}
    full = {name: values for name, values in texts.items() if set(values) - cells.MISSING}
    by_key = {key(name): name for name in columns if not name.startswith("column ")}
    several = next((by_key[name] for name in SEVERAL_NAMES if name in by_key), None)
    one = _one(full, texts, by_key)
    one_hot = [name for name, values in full.items() if _is_yes_no(name, values)]
    # Among columns of 0 and 1 the one called y, or healthy, is a class as the others are.
    if one is not None and not (len(one_hot) > 1 and one.column in one_hot and key(one.column) not in _SURE):
        also = Labels("several", several) if several else None
        return Labels("one", one.column, one.names, also=also, guessed=one.guessed)
    if several is not None:
        ids = next((by_key[name] for name in ID_NAMES if name in by_key), None)
        if ids in full and several in full and one_to_one(full[ids], full[several]):
            return Labels("one", ids, several)
        return Labels("several", several)
    words = [name for name, values in full.items() if name not in one_hot and _may_be_classes(name, values)]
    texts_of_words = [
        name for name in words if not all(map(cells.is_number, set(full[name]) - cells.MISSING))
    ]
    if len(one_hot) > 1:
        if len(texts_of_words) == 1 and len(one_hot) == 2:
            raise Unclear(
                f"{', '.join(one_hot)} hold 0 and 1, and {texts_of_words[0]} holds words: which is the "
                "label is not clear; accepted: the column of labels called label, or the others taken away"
            )
        return Labels("one_hot", one_hot=one_hot)
    if len(texts_of_words) == 1:
        return Labels("one", texts_of_words[0], guessed="the only column of words that come back")
    alone = [name for name in full if not name.startswith("column ") or len(full) == 1]
    if not texts_of_words and len(alone) == 1 and _may_be_classes(alone[0], full[alone[0]]):
        return Labels("one", alone[0], guessed="the only column beside the paths")
    which = (
        f"{', '.join(texts_of_words)} may each be the column of labels"
        if texts_of_words
        else f"none of the columns {_listed(columns)} is known as one of labels"
        if columns
        else "there is no column of labels"
    )
    raise Unclear(f"{which}; accepted: {LABELS_ACCEPTED}; call the right one label")


def one_to_one(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether each value of one stands beside one value of the other, always."""
    pairs = set(zip(a, b, strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _one(full: Columns, texts: Columns, by_key: Mapping[str, str]) -> Labels | None:
    """The column of one class a row that its name shows; and that of the names of its numbers."""
    named = [by_key[name] for name in (*LABEL_NAMES, *TEXT_NAMES, *ID_NAMES) if name in by_key]
    there = [name for name in named if name in full] or named[:1]
    if not there:
        return None
    main = there[0]
    if main not in full:
        return Labels("one", main)  # all empty: said by whoever reads the rows
    others = [name for name in there[1:] if one_to_one(full[main], full[name])]
    rest = [name for name in there[1:] if name not in others]
    if key(main) != "label":
        same_rank = [name for name in rest if key(name) in LABEL_NAMES[:12]]
        if same_rank and key(main) in LABEL_NAMES[:12]:
            raise Unclear(
                f"columns {main} and {', '.join(same_rank)} may each be the labels; "
                "accepted: one of them called label"
            )
    numbers = [name for name in (main, *others) if _are_integers(full[name])]
    words = [name for name in (main, *others) if not _are_integers(full[name])]
    if numbers and not words:  # a number may be named in a column that is called otherwise
        words = [
            by_key[name] for name in ("name", "labels", "sign_name") if name in by_key
            and by_key[name] in full and one_to_one(full[numbers[0]], full[by_key[name]])
            and not _are_integers(full[by_key[name]])
        ]  # fmt: skip
    if numbers and words:
        return Labels("one", numbers[0], words[0])
    return Labels("one", main)


def _are_integers(values: Sequence[str]) -> bool:
    there = set(values) - cells.MISSING
    return bool(there) and all(map(cells.is_integer, there))


def is_rather_yes_no(values: Sequence[Any]) -> bool:
    """Whether most cells of a column are 0 and 1, or yes and no."""
    texts = [text for text in map(cells.text, values) if text not in cells.MISSING]
    return sum(cells.yes_or_no(text) is not None for text in texts) > len(texts) / 2


def _is_yes_no(name: str, values: Sequence[str]) -> bool:
    """Whether a column is one of 0 and 1, a few other values being mistakes or words for "unknown"."""
    there = set(values) - cells.MISSING
    if key(name) in _ASIDE or name.startswith("column "):
        return False
    if there and there <= {"1", "-1", "1.0", "-1.0"}:
        return True
    say = [cells.yes_or_no(value) for value in values if value not in (*cells.MISSING, "-1", "-1.0")]
    good = sum(value is not None for value in say)
    # Words among 0 and 1 are mistakes sooner than other numbers are, which may be counts.
    numbers = all(cells.is_number(value) or cells.yes_or_no(value) is not None for value in there)
    whole = good == len(say) or {True, False} <= set(say)  # x and y are no "unknown" and yes
    return good > 0 and len(there) <= 5 and whole and good >= (0.8 if numbers else 0.5) * len(say)


def _may_be_classes(name: str, values: Sequence[str]) -> bool:
    """Whether the values of a column that is called nothing in particular come back as classes do."""
    if key(name) in _ASIDE or (key(name) in PATH_NAMES and key(name) != "name"):
        return False
    there = [value for value in values if value not in cells.MISSING]
    distinct = len(set(there))
    if not there or distinct < 2:
        return False
    if any(map(cells.is_number, there)):
        return all(map(cells.is_integer, there)) and distinct <= len(there) / 2
    return distinct < MANY * len(there) or (len(there) < FEW and distinct < len(there))


def _listed(columns: Columns) -> str:
    names = list(columns)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
