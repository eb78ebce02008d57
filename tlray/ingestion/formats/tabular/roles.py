"""Which columns of a table are the paths of pictures, the splits and the labels: by what the cells hold, and
by their names."""

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
# Columns about the picture that are hardly ever its label.
_ASIDE = frozenset(_words(
    "sex gender view source url notes note comment comments author license date time timestamp camera "
    "caption text description age score width height size bytes num_bytes md5 sha256 hash year month day "
    "hour latitude longitude lat lon lng count rating confidence prob probability weight index rank price "
    "patient_id patient user user_id fold seed order row number no channels depth mode checked verified "
    "latin_name scientific_name"
))
# fmt: on
_SURE = ("label", "class", "category", "target")
MANY = 0.8  # a column with more different values per picture holds texts or ids rather than classes
FEW = 12  # with fewer rows than this that proves nothing

LABELS_ACCEPTED = (
    "a column label (class, category, ...), labels (tags) for several, or two or more columns of 0 and 1"
)


def key(name: str) -> str:
    """The name of a column in the spelling of the lists above: ``ImageId``, ``image id`` -> image_id."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def sample(values: Sequence[Any], number: int = 200) -> Sequence[Any]:
    """Some of the values, evenly spaced."""
    return values[:: max(1, len(values) // number)][:number]


class UnclearColumns(Exception):
    """No column has a role that is needed, or two may have it. The text completes "..., but"."""


# ---- paths


def path_column(columns: Columns, names: Callable[[str], bool]) -> str | None:
    """The column whose cells name pictures that exist; None where there is none. Raises UnclearColumns."""
    ranked: list[tuple[bool, bool, float, int, str]] = []
    for name, values in columns.items():
        texts = [text for text in map(cells.text, sample(values)) if text]
        if not texts or any(isinstance(value, list | dict) for value in sample(values, 20)):
            continue
        share = sum(map(names, texts)) / len(texts)
        is_path_name = key(name) in PATH_NAMES
        # 1, 2, 3 may be the picture 1.jpg, or an age.
        num_names = sum("." in text or "/" in text or not text.isdigit() for text in texts)
        if share < (0.5 if is_path_name else 0.9) or (
            not is_path_name and num_names < len(texts) / 2 and not name.startswith("column ")
        ):
            continue
        # A class may have the name of a picture.
        if not is_path_name and len(set(texts)) < min(len(texts), 3):
            continue
        have_endings = sum("." in text for text in texts) > len(texts) / 2
        name_rank = PATH_NAMES.index(key(name)) if is_path_name else len(PATH_NAMES)
        ranked.append((have_endings, is_path_name, round(share, 1), -name_rank, name))
    ranked.sort(reverse=True)
    if len(ranked) > 1 and not ranked[0][1] and ranked[0][:3] == ranked[1][:3]:
        raise UnclearColumns(
            f"columns {ranked[0][-1]} and {ranked[1][-1]} both hold names of pictures; accepted: the right "
            "one called path, or the other taken away"
        )
    return ranked[0][-1] if ranked else None


def named_path_column(columns: Columns, is_picture: Callable[[str], bool]) -> str | None:
    """The column that seems to hold paths of missing pictures: by the endings of its cells, else by its
    name."""
    for name, values in columns.items():
        texts = [cells.text(value) for value in sample(values, 50)]
        if texts and sum(map(is_picture, texts)) > len(texts) / 2:
            return name
    by_key = {key(name): name for name in columns}
    sure_names = PATH_NAMES[: PATH_NAMES.index("image_index")]
    return next((by_key[name] for name in sure_names if name in by_key), None)


# ---- splits


@dataclass(frozen=True)
class SplitColumns:
    """The column that names the split, or columns of yes and no for one split each."""

    named: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)  # column -> split

    @property
    def columns(self) -> set[str]:
        return {*self.flags, *([self.named] if self.named else [])}


def split_name(cell: str, column: str = "") -> str | None:
    """The split that a cell names; None for any other text. CelebA's column ``partition`` has numbers."""
    lower = cell.strip().lower()
    if key(column) == "partition" and lower in _PARTITIONS:
        return _PARTITIONS[lower]
    return SPLITS.get(lower) or OTHER_SPLITS.get(lower)


def split_columns(columns: Columns) -> SplitColumns:
    """The columns that give the split of each row."""
    by_key = {key(name): name for name in columns}
    for name in SPLIT_NAMES:
        if name in by_key:
            values = {cells.text(value) for value in columns[by_key[name]]} - cells.MISSING
            splits = {split_name(cell, name) for cell in values}
            # A column called split is one in any case; one called "set" or "fold" only if its cells are
            # splits.
            if values and (name.startswith("split") or "train" in splits or None not in splits):
                return SplitColumns(by_key[name])
    for name in columns:
        splits = {split_name(cells.text(value)) for value in columns[name]}
        if UNNAMED.fullmatch(name) and "train" in splits and len(splits) > 1 and None not in splits:
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
    """Where the labels are: one class in each row of ``column``, several, or columns of yes and no."""

    kind: Literal["one", "several", "one_hot", "objects"]
    column: str = ""
    names: str | None = None  # the column with the class names for the numbers in ``column``
    one_hot: Sequence[str] = ()
    also: Labels | None = None  # a column of several classes beside that of one
    guessed: str = ""  # why this column was chosen, where its name does not say it

    @property
    def columns(self) -> set[str]:
        names = {self.column, self.names or "", *self.one_hot} - {""}
        return names | (self.also.columns if self.also else set())


def labels(columns: Columns) -> Labels:
    """The label columns, among those that are neither path nor split. Raises UnclearColumns."""
    for name, values in columns.items():
        if any(isinstance(value, dict) and "bbox" in value for value in sample(values)):
            return Labels("objects", name)
    texts = {name: [cells.text(value) for value in values] for name, values in columns.items()}
    filled = {name: values for name, values in texts.items() if set(values) - cells.MISSING}
    by_key = {key(name): name for name in columns if not name.startswith("column ")}
    several = next((by_key[name] for name in SEVERAL_NAMES if name in by_key), None)
    single = _one(filled, texts, by_key)
    one_hot = [name for name, values in filled.items() if _is_yes_no(name, values)]
    # Among several columns of 0 and 1, one called y is a class like the others.
    if single is not None and not (
        len(one_hot) > 1 and single.column in one_hot and key(single.column) not in _SURE
    ):
        also = Labels("several", several) if several else None
        return Labels("one", single.column, single.names, also=also, guessed=single.guessed)
    if several is not None:
        ids = next((by_key[name] for name in ID_NAMES if name in by_key), None)
        if ids in filled and several in filled and one_to_one(filled[ids], filled[several]):
            return Labels("one", ids, several)
        return Labels("several", several)
    class_like = [
        name for name, values in filled.items() if name not in one_hot and _may_be_classes(name, values)
    ]
    texts_of_words = [
        name for name in class_like if not all(map(cells.is_number, set(filled[name]) - cells.MISSING))
    ]
    if len(one_hot) > 1:
        if len(texts_of_words) == 1 and len(one_hot) == 2:
            raise UnclearColumns(
                f"{', '.join(one_hot)} hold 0 and 1, and {texts_of_words[0]} holds words: which is the "
                "label is not clear; accepted: the column of labels called label, or the others taken away"
            )
        return Labels("one_hot", one_hot=one_hot)
    if len(texts_of_words) == 1:
        return Labels("one", texts_of_words[0], guessed="the only column of words that come back")
    candidates = [name for name in filled if not name.startswith("column ") or len(filled) == 1]
    if not texts_of_words and len(candidates) == 1 and _may_be_classes(candidates[0], filled[candidates[0]]):
        return Labels("one", candidates[0], guessed="the only column beside the paths")
    problem = (
        f"{', '.join(texts_of_words)} may each be the column of labels"
        if texts_of_words
        else f"none of the columns {_listed(columns)} is known as one of labels"
        if columns
        else "there is no column of labels"
    )
    raise UnclearColumns(f"{problem}; accepted: {LABELS_ACCEPTED}; call the right one label")


def one_to_one(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether each value of one column is always beside the same value of the other."""
    pairs = set(zip(first, second, strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _one(filled: Columns, texts: Columns, by_key: Mapping[str, str]) -> Labels | None:
    """The column of one class a row, known by its name, and that of the class names for its numbers."""
    by_name = [by_key[name] for name in (*LABEL_NAMES, *TEXT_NAMES, *ID_NAMES) if name in by_key]
    candidates = [name for name in by_name if name in filled] or by_name[:1]
    if not candidates:
        return None
    first = candidates[0]
    if first not in filled:
        return Labels("one", first)  # all empty: reading the rows will say so
    matching = [name for name in candidates[1:] if one_to_one(filled[first], filled[name])]
    unrelated = [name for name in candidates[1:] if name not in matching]
    if key(first) != "label":
        same_rank = [name for name in unrelated if key(name) in LABEL_NAMES[:12]]
        if same_rank and key(first) in LABEL_NAMES[:12]:
            raise UnclearColumns(
                f"columns {first} and {', '.join(same_rank)} may each be the labels; "
                "accepted: one of them called label"
            )
    number_columns = [name for name in (first, *matching) if _are_integers(filled[name])]
    word_columns = [name for name in (first, *matching) if not _are_integers(filled[name])]
    if number_columns and not word_columns:  # the class names may be in a column of another name
        word_columns = [
            by_key[name] for name in ("name", "labels", "sign_name") if name in by_key
            and by_key[name] in filled and one_to_one(filled[number_columns[0]], filled[by_key[name]])
            and not _are_integers(filled[by_key[name]])
        ]  # fmt: skip
    if number_columns and word_columns:
        return Labels("one", number_columns[0], word_columns[0])
    return Labels("one", first)


def _are_integers(values: Sequence[str]) -> bool:
    present = set(values) - cells.MISSING
    return bool(present) and all(map(cells.is_integer, present))


def is_rather_yes_no(values: Sequence[Any]) -> bool:
    """Whether most cells of a column are 0 and 1, or yes and no."""
    texts = [text for text in map(cells.text, values) if text not in cells.MISSING]
    return sum(cells.yes_or_no(text) is not None for text in texts) > len(texts) / 2


def _is_yes_no(name: str, values: Sequence[str]) -> bool:
    """Whether a column is one of 0 and 1; a few other values are mistakes or words for "unknown"."""
    present = set(values) - cells.MISSING
    if key(name) in _ASIDE or name.startswith("column "):
        return False
    if present and present <= {"1", "-1", "1.0", "-1.0"}:
        return True
    answers = [cells.yes_or_no(value) for value in values if value not in (*cells.MISSING, "-1", "-1.0")]
    num_yes_no = sum(value is not None for value in answers)
    # Words among 0 and 1 are mistakes. Other numbers may mean that the column holds counts.
    only_numbers = all(cells.is_number(value) or cells.yes_or_no(value) is not None for value in present)
    plausible = num_yes_no == len(answers) or {True, False} <= set(answers)  # not y (yes) beside x alone
    return (
        num_yes_no > 0
        and len(present) <= 5
        and plausible
        and num_yes_no >= (0.8 if only_numbers else 0.5) * len(answers)
    )


def _may_be_classes(name: str, values: Sequence[str]) -> bool:
    """Whether the values of a column with any other name recur as classes do."""
    if key(name) in _ASIDE or (key(name) in PATH_NAMES and key(name) != "name"):
        return False
    present = [value for value in values if value not in cells.MISSING]
    distinct = len(set(present))
    if not present or distinct < 2:
        return False
    if any(map(cells.is_number, present)):
        return all(map(cells.is_integer, present)) and distinct <= len(present) / 2
    return distinct < MANY * len(present) or (len(present) < FEW and distinct < len(present))


def _listed(columns: Columns) -> str:
    names = list(columns)
    and_more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + and_more
