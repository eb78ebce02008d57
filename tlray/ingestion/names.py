"""Class names: one spelling of each, and a warning about names that look like two spellings of one class.

Pure functions of the index; no picture is read here. Names are always composed (Unicode NFC: macOS writes
decomposed folder names) and trimmed, so that names that look the same are the same. Names that differ in more
than that are merged only where the user asks for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from tlray.data import schema
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding

# Invisible characters: zero-width spaces and joiners, marks of direction, soft hyphen, byte order
# mark. Not the whole Unicode category Cf: the flags of England and Scotland differ in nothing else.
_INVISIBLE = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
_EDGES = re.compile(rf"^[\s\x00-\x1f\x7f-\x9f{_INVISIBLE}]+|[\s\x00-\x1f\x7f-\x9f{_INVISIBLE}]+$")
_WITHIN = re.compile(rf"[{_INVISIBLE}]+")
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_NUMBER = re.compile(r"([+-]?)0*([0-9]+)(?:\.([0-9]*?)0*)?")


def unify(
    rows: pa.Table, kinds: Mapping[str, schema.Kind], stated: Mapping[str, list[str]], merge: bool
) -> tuple[pa.Table, dict[str, list[str]], list[Finding]]:
    """(rows, names by column, findings) with one spelling of each class.

    ``rows`` have path and the label columns with class names; ``stated``: class names by column where the
    source numbers its classes. Names that differ only in case, width, the separator of words or the form of a
    number give a warning. With ``merge`` they become one class, spelled as it is most often, or as it is
    first. The names of masks are never merged, since their pixels keep their ids. Raises DataError for a
    class without a name, and where two ids of a mask have one name.
    """
    names: dict[str, list[str]] = {}
    findings: list[Finding] = []
    for column, kind in kinds.items():
        listed = [clean(name) for name in stated.get(column, [])]
        if kind == "mask":
            _check_ids(column, listed)
            findings += _similar(_alike(listed), None, "the ids of masks are not merged")
        else:
            spelled = _counts(rows[column], kind)
            cleaned = {name: clean(name) for name in spelled}
            if "" in cleaned.values():
                raise DataError(_nameless(rows, column, kind))
            counts: Counter[str] = Counter()
            for name, number in spelled.items():
                counts[cleaned[name]] += number
            findings += _respelled(spelled, cleaned)
            order = list(dict.fromkeys([*filter(None, listed), *sorted(counts)]))
            alike = _alike(order)
            if merge:
                best = {name: max(group, key=lambda n: counts[n]) for group in alike for name in group}
                cleaned = {name: best.get(to, to) for name, to in cleaned.items()}
                listed = [best.get(name, name) for name in listed]
                findings += _merged(alike, counts, best)
            else:
                findings += _similar(alike, counts, "--merge-classes makes one of each")
            listed = list(dict.fromkeys(filter(None, listed)))
            if any(name != to for name, to in cleaned.items()):
                position = rows.column_names.index(column)
                rows = rows.set_column(position, column, _renamed(rows[column], kind, cleaned))
        if column in stated:
            names[column] = listed
    return rows, names, findings


def clean(name: str) -> str:
    """A class name composed (NFC), without white space and invisible characters at both ends."""
    return _EDGES.sub("", unicodedata.normalize("NFC", name))


def likeness(name: str) -> str:
    """A plain form of a class name, equal for names that look like two spellings of one class.

    Without differences in case, width (full-width letters, superscripts), invisible characters, the separator
    of words (blanks, underscores, hyphens) and the form of a number (01, 1, 1.0).
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    plain = _BETWEEN_WORDS.sub(" ", _WITHIN.sub("", folded))
    number = _NUMBER.fullmatch(plain)
    if number is None:
        return plain
    sign, digits, fraction = number.groups()
    return f"{'-' if sign == '-' else ''}{digits}{f'.{fraction}' if fraction else ''}"


def _texts(values: pa.ChunkedArray, kind: schema.Kind) -> Iterable[Sequence[str]]:
    """The class names of each row, repeated as often as the row has the class."""
    for value in values.to_pylist():
        if value is None:
            yield []
        elif kind == "classes":
            yield value
        elif kind == "objects":
            yield value["category"]
        else:
            yield [value]


def _counts(values: pa.ChunkedArray, kind: schema.Kind) -> Counter[str]:
    """How often each name occurs."""
    return Counter(name for row in _texts(values, kind) for name in row)


def _renamed(values: pa.ChunkedArray, kind: schema.Kind, to: Mapping[str, str]) -> pa.Array:
    """A label column with other class names; of several classes of a picture each once."""
    out: list[object] = []
    for value in values.to_pylist():
        if value is None:
            out.append(None)
        elif kind == "classes":
            out.append(list(dict.fromkeys(to[name] for name in value)))
        elif kind == "objects":
            out.append({**value, "category": [to[name] for name in value["category"]]})
        else:
            out.append(to[value])
    return pa.array(out, values.type)


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Groups of two or more names that look like one class, in order."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(filter(None, names)):
        groups.setdefault(likeness(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _check_ids(column: str, names: Sequence[str]) -> None:
    """Raises DataError where two ids have one name. An empty name means that the id has none."""
    id_of: dict[str, int] = {}
    for number, name in enumerate(names):
        if name and id_of.setdefault(name, number) != number:
            raise DataError(
                f"{column}: the ids {id_of[name]} and {number} are both named {name!r}; accepted: a name "
                "of its own for each id"
            )


def _nameless(rows: pa.Table, column: str, kind: schema.Kind) -> str:
    """The message about the first class whose name is empty."""
    for path, names in zip(rows["path"].to_pylist(), _texts(rows[column], kind), strict=True):
        for name in names:
            if not clean(name):
                return f"{path}: {column} {name!r}: a class without a name; accepted: some text"
    raise AssertionError("no name is empty")


def _respelled(spelled: Mapping[str, int], to: Mapping[str, str]) -> list[Finding]:
    """The finding of names that composing and trimming changed."""
    changed = [name for name in sorted(spelled) if to[name] != name]
    examples = [f"{name!a} -> {to[name]!r}: {spelled[name]} labels" for name in changed]
    return finding("info", "names_cleaned", examples, "{n} class names composed (NFC) or trimmed")


def _similar(alike: Sequence[Sequence[str]], counts: Mapping[str, int] | None, way_out: str) -> list[Finding]:
    """The warning about names that look like spellings of one class."""
    text = "{n} groups of class names differ only in case, width, separators or the form of a number"
    examples = [_told(group, counts) for group in alike]
    return finding("warning", "similar_names", examples, f"{text} ({way_out})")


def _merged(
    alike: Sequence[Sequence[str]], counts: Mapping[str, int], best: Mapping[str, str]
) -> list[Finding]:
    """The finding of names that ``merge`` made one class."""
    examples = [f"{_told(group, counts)} -> {best[group[0]]!r}" for group in alike]
    return finding("info", "names_merged", examples, "{n} groups of class names merged (--merge-classes)")


def _told(group: Sequence[str], counts: Mapping[str, int] | None) -> str:
    return " = ".join(repr(n) if counts is None else f"{n!r} ({counts.get(n, 0)} labels)" for n in group)
