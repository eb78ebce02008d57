"""What an ingest decides: which pictures are left out, the splits, the order, and the shards.

Pure functions of the table of inspected pictures and the seed; no picture is read here.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.data import schema
from tlray.errors import DataError
from tlray.ingestion import preflight, splits
from tlray.ingestion.duplicates import Groups, exact_groups, merged
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.report import UNKNOWN_CLASS, Classes

GROUP_ROWS = 128  # rows of a Parquet row group
SHARD_ROWS = 8 * GROUP_ROWS
SHARD_BYTES = 512 * 2**20  # of encoded pictures, before any shrinking


def part(source: str, inspected: pa.Table, max_bad_share: float) -> tuple[pa.Table, pa.Table]:
    """(usable, unusable) rows. Raises DataError where more than ``max_bad_share`` are unusable."""
    is_usable = np.array([kind is None for kind in inspected["kind"].to_pylist()])
    usable, unusable = inspected.filter(pa.array(is_usable)), inspected.filter(pa.array(~is_usable))
    share = unusable.num_rows / inspected.num_rows
    if share > max_bad_share or usable.num_rows == 0:
        example = unusable.slice(0, 1).to_pylist()[0]
        raise DataError(
            f"{source}: {unusable.num_rows} of {inspected.num_rows} pictures are unusable ({share:.1%}), "
            f"first: {example['path']}: {example['reason']}; accepted: at most {max_bad_share:.1%} "
            "(max_bad_share)"
        )
    return usable, unusable


def classes(rows: pa.Table, kinds: Mapping[str, schema.Kind]) -> Classes | None:
    """Names of the classes in each row; None where the labels are pixels."""
    for column, kind in kinds.items():
        if kind in ("class", "identity"):
            return [[name] for name in rows[column].to_pylist()]
        if kind == "classes":
            return list(rows[column].to_pylist())
        if kind == "objects":
            return [objects["category"] for objects in rows[column].to_pylist()]
    return None


def check_classes(
    source: str, rows: pa.Table, kinds: Mapping[str, schema.Kind], where: str, one_class: bool
) -> None:
    """Raises DataError where the labels name no class, or a single one without ``one_class``.

    Boxes of a single class are usual. Masks are checked by `mask_codes.decide`. ``where`` is for the message.
    """
    names = classes(rows, kinds)
    if names is None:
        return
    different = {name for row in names for name in row}
    if not different:
        raise DataError(
            f"{source}: no label in {where}; accepted: pictures at least one of which has a label"
        )
    if len(different) == 1 and not one_class and "objects" not in kinds.values():
        raise DataError(
            f"{source}: a single class {next(iter(different))!r} in {where}: nothing can be told apart; "
            "accepted: two classes or more, or --one-class where that is meant"
        )


def pixel_classes(rows: pa.Table, names: Sequence[str]) -> Classes:
    """Names of the classes that each row's mask shows."""
    return [[names[v] for v in values if v < len(names)] for values in rows["mask_values"].to_pylist()]


def shares(stated: Collection[str], validation: float, test: float) -> dict[str, float]:
    """Splits to cut from train, and their shares of it.

    A stated split is never replaced. Where the source states splits, no test split is cut, and validation
    only if it is not among them.
    """
    cut = {"test": 0.0 if stated else test, "validation": 0.0 if "validation" in stated else validation}
    # Validation last: where there are too few people for both splits, the last one is made.
    return {split: share for split, share in cut.items() if share > 0}


def assign(
    source: str,
    rows: pa.Table,
    kinds: Mapping[str, schema.Kind],
    groups: Groups,
    cut: Mapping[str, float],
    seed: int,
) -> tuple[pa.Table, list[Finding]]:
    """(rows with a split each, findings about splits with too few pictures).

    A row keeps the split that the source states. From the others, and from train, the splits of ``cut`` (see
    `shares`) are drawn by seed, each with its share of every class; pictures of one group, or of one person,
    stay together.
    """
    split_N = np.array([split or "" for split in rows["split"].to_pylist()], dtype=object)
    stated = set(split_N.tolist()) - {""}
    split_N[split_N == ""] = "train"  # also where a table states the splits of some rows only
    if "train" not in split_N:
        raise DataError(
            f"{source}: no train split among {', '.join(sorted(stated))}; accepted: train and others"
        )
    if not cut:
        return _with_splits(rows, split_N), []
    train_rows = np.flatnonzero(split_N == "train")
    train = rows.take(pa.array(train_rows))
    people = [column for column, kind in kinds.items() if kind == "identity"]
    for column in people:
        groups = merged(groups, exact_groups(rows[column].to_pylist()))
    # Ordered by a hash of content and seed, not by position, so that a new picture moves few others.
    hashes = [hashlib.sha256(f"{seed}/{value}".encode()).digest() for value in train["sha256"].to_pylist()]
    keys = np.frombuffer(b"".join(value[:8] for value in hashes), ">u8").astype(np.uint64)
    if people:
        split_N[train_rows] = splits.by_person(groups[train_rows], keys, cut)
        lacking = _lacking(split_N, train_rows, cut, "people with two pictures or more")
        return _with_splits(rows, split_N), lacking
    class_names = _shown(train, kinds)
    split_N[train_rows] = splits.stratified(class_names, groups[train_rows], keys, cut)
    lacking = _lacking(split_N, train_rows, cut, "pictures of a class")
    return _with_splits(rows, split_N), [*lacking, *_thin(split_N[train_rows].tolist(), class_names, cut)]


def _with_splits(rows: pa.Table, split_N: npt.NDArray[np.object_]) -> pa.Table:
    position = rows.column_names.index("split")
    return rows.set_column(position, "split", pa.array(split_N.tolist(), pa.string()))


def _shown(rows: pa.Table, kinds: Mapping[str, schema.Kind]) -> list[list[str]]:
    """The classes of each row by which splits are stratified; of masks the ids."""
    if "mask" in kinds.values():
        return [[str(number) for number in values or ()] for values in rows["mask_values"].to_pylist()]
    return [list(class_names) for class_names in classes(rows, kinds) or [()] * rows.num_rows]


def _lacking(
    split_N: npt.NDArray[np.object_], train_rows: npt.NDArray[np.int64], cut: Mapping[str, float], what: str
) -> list[Finding]:
    """Findings of splits that should have been cut and got no picture."""
    text = f"among {len(train_rows)} pictures are too few {what}"
    missing = [split for split in cut if split not in split_N]
    return [Finding("warning", f"no_{split}", 1, f"no {split} split: {text}") for split in missing]


def _thin(
    split_of: Sequence[str], class_names: Sequence[Sequence[str]], cut: Mapping[str, float]
) -> list[Finding]:
    """Findings of classes with too few pictures to be in every split that was cut."""
    pairs = Counter(
        (split, name) for split, names in zip(split_of, class_names, strict=True) for name in set(names)
    )
    train_classes = sorted(name for split, name in pairs if split == "train")
    findings = []
    for split in cut:
        missing = [name for name in train_classes if (split, name) not in pairs] if split in split_of else []
        examples = [f"{name}: {pairs['train', name]} in train" for name in missing]
        text = f"{{n}} classes of train are not in {split}: too few different pictures to share out"
        findings += finding("warning", "class_missing", examples, text)
    return findings


def known_classes(
    usable: pa.Table, unusable: pa.Table, kinds: Mapping[str, schema.Kind]
) -> tuple[pa.Table, pa.Table, npt.NDArray[np.int64]]:
    """(rows whose class is in train, ``unusable`` with the others added, numbers of the rows that stay).

    Only a split that the source states can have a class that train has not. A picture of such a class is left
    out, as every prediction for it would be wrong. A picture that may have several classes stays with all of
    them: the known ones count, and the report says that the unknown one is never predicted.
    """
    all_rows = np.arange(usable.num_rows)
    names = classes(usable, kinds)
    if names is None or "class" not in kinds.values():
        return usable, unusable, all_rows
    train = {
        name
        for row_classes, split in zip(names, usable["split"].to_pylist(), strict=True)
        if split == "train"
        for name in row_classes
    }
    unknown = [sorted(set(row_classes) - train) for row_classes in names]
    known = np.array([not row_classes for row_classes in unknown])
    if known.all():
        return usable, unusable, all_rows
    left_out = usable.filter(pa.array(~known))
    reasons = [f"class {row_classes[0]!r} is not in train" for row_classes in unknown if row_classes]
    for column, values in (("kind", [UNKNOWN_CLASS] * len(reasons)), ("reason", reasons)):
        left_out = left_out.set_column(
            left_out.column_names.index(column), column, pa.array(values, pa.string())
        )
    return usable.filter(pa.array(known)), pa.concat_tables([unusable, left_out]), np.flatnonzero(known)


def label_names(
    usable: pa.Table, kinds: Mapping[str, schema.Kind], stated: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Class names of each label column in the order of their numbers: that of the source, or sorted.

    Identities of train come before the others, so that those to be learnt have the first numbers.
    """
    names: dict[str, list[str]] = {}
    splits = usable["split"].to_pylist()
    for column, kind in kinds.items():
        if column in stated:
            names[column] = list(stated[column])
            continue
        class_names = classes(usable, {column: kind}) or []
        train = {
            name for row, split in zip(class_names, splits, strict=True) if split == "train" for name in row
        }
        others = {name for row in class_names for name in row} - train
        names[column] = [*sorted(train), *sorted(others)] if kind == "identity" else sorted(train | others)
    return names


def encoded(usable: pa.Table, kinds: Mapping[str, schema.Kind], names: Mapping[str, list[str]]) -> pa.Table:
    """The rows with class numbers for class names. The pixels of masks are numbers already."""
    for column, kind in kinds.items():
        code_of = {name: i for i, name in enumerate(names[column])}
        values = usable[column].to_pylist()
        if kind == "mask":
            continue
        if kind == "objects":
            values = [{**row, "category": [code_of[name] for name in row["category"]]} for row in values]
        elif kind == "classes":
            values = [sorted(code_of[name] for name in set(row)) for row in values]
        else:
            values = [code_of[name] for name in values]
        codes = pa.array(values, stored(kind, usable.schema.field(column).type))
        usable = usable.set_column(usable.column_names.index(column), column, codes)
    return usable


def stored(kind: schema.Kind, index_type: pa.DataType) -> pa.DataType:
    """The type of a label column in a data set; objects keep the flags that their index has."""
    plain = schema.TYPES[kind]
    return schema.with_flags(plain, schema.flags_of(index_type)) if kind == "objects" else plain


def shards(usable: pa.Table, seed: int) -> list[dict[str, Any]]:
    """The rows of each shard: every split in a random order, cut by number of rows and of bytes."""
    kept_columns = {"num_bytes", "sha256", "width", "height"}
    dropped_columns = {*preflight.INSPECTED.names, *preflight.INSPECTED_MASK.names} - kept_columns
    columns = [name for name in usable.column_names if name not in dropped_columns]
    splits = np.array(usable["split"].to_pylist(), dtype=object)
    sizes = usable["num_bytes"].to_numpy()
    planned = []
    for number, split in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(splits == split)
        if len(rows) == 0:
            continue
        rows = np.random.default_rng([seed, number]).permutation(rows)
        cuts, num_bytes = [0], 0
        for row in range(0, len(rows), GROUP_ROWS):
            size = int(sizes[rows[row : row + GROUP_ROWS]].sum())
            if row > cuts[-1] and (row - cuts[-1] >= SHARD_ROWS or num_bytes + size > SHARD_BYTES):
                cuts.append(row)
                num_bytes = 0
            num_bytes += size
        cuts.append(len(rows))
        for n, (start, stop) in enumerate(itertools.pairwise(cuts)):
            name = f"data/{split}-{n:05d}-of-{len(cuts) - 1:05d}.parquet"
            table = usable.select(columns).take(pa.array(rows[start:stop]))
            planned.append({"name": name, "split": split, "num_rows": stop - start, "rows": table})
    return planned
