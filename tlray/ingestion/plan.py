"""What an ingest decides, from small rows alone: what is left out, the splits, the order, the shards.

Pure functions of the rows and the seed; no picture is read here.
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


def part(source: str, seen: pa.Table, max_bad_share: float) -> tuple[pa.Table, pa.Table]:
    """(usable, unusable) rows."""
    fine = np.array([kind is None for kind in seen["kind"].to_pylist()])
    good, bad = seen.filter(pa.array(fine)), seen.filter(pa.array(~fine))
    share = bad.num_rows / seen.num_rows
    if share > max_bad_share or good.num_rows == 0:
        first = bad.slice(0, 1).to_pylist()[0]
        raise DataError(
            f"{source}: {bad.num_rows} of {seen.num_rows} pictures are unusable ({share:.1%}), first: "
            f"{first['path']}: {first['reason']}; accepted: at most {max_bad_share:.1%} (max_bad_share)"
        )
    return good, bad


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
    source: str, rows: pa.Table, kinds: Mapping[str, schema.Kind], seen: str, one_class: bool
) -> None:
    """Raise DataError where labels name no class, or a single one and that was not asked for.

    Of boxes one class is usual. Masks are checked where their values are decided.
    """
    names = classes(rows, kinds)
    if names is None:
        return
    different = {name for row in names for name in row}
    if not different:
        raise DataError(f"{source}: no label in {seen}; accepted: pictures at least one of which has a label")
    if len(different) == 1 and not one_class and "objects" not in kinds.values():
        raise DataError(
            f"{source}: a single class {next(iter(different))!r} in {seen}: nothing can be told apart; "
            "accepted: two classes or more, or --one-class where that is meant"
        )


def pixel_classes(rows: pa.Table, names: Sequence[str]) -> Classes:
    """Names of the classes that each row's mask shows."""
    return [[names[v] for v in values if v < len(names)] for values in rows["mask_values"].to_pylist()]


def shares(given: Collection[str], validation: float, test: float) -> dict[str, float]:
    """Splits to cut off from train, and their shares of it.

    A split that is given is never replaced: where any is ``given`` no test is made, and validation only
    where it is not among them.
    """
    wanted = {"test": 0.0 if given else test, "validation": 0.0 if "validation" in given else validation}
    # Validation last: where there are too few people for both it is the one that stays.
    return {split: share for split, share in wanted.items() if share > 0}


def assign(
    source: str,
    rows: pa.Table,
    kinds: Mapping[str, schema.Kind],
    groups: Groups,
    cut: Mapping[str, float],
    seed: int,
) -> tuple[pa.Table, list[Finding]]:
    """Fill the split column: from the layout, otherwise by seed; classes keep their shares, and pictures
    of one group, or of one person, stay together. ``cut``: see `shares`. Findings say what was too few.
    """
    split_N = np.array([split or "" for split in rows["split"].to_pylist()], dtype=object)
    given = set(split_N.tolist()) - {""}
    split_N[split_N == ""] = "train"  # of a table that gives some rows a split and others none, too
    if "train" not in split_N:
        raise DataError(
            f"{source}: no train split among {', '.join(sorted(given))}; accepted: train and others"
        )
    if not cut:
        return _with_splits(rows, split_N), []
    free = np.flatnonzero(split_N == "train")
    loose = rows.take(pa.array(free))
    people = [column for column, kind in kinds.items() if kind == "identity"]
    for column in people:
        groups = merged(groups, exact_groups(rows[column].to_pylist()))
    # The order is by hash of content and seed, not by position: a new picture moves few others.
    hashes = [hashlib.sha256(f"{seed}/{value}".encode()).digest() for value in loose["sha256"].to_pylist()]
    keys = np.frombuffer(b"".join(value[:8] for value in hashes), ">u8").astype(np.uint64)
    if people:
        split_N[free] = splits.by_person(groups[free], keys, cut)
        lacking = _lacking(split_N, free, cut, "people with two pictures or more")
        return _with_splits(rows, split_N), lacking
    shown = _shown(loose, kinds)
    split_N[free] = splits.stratified(shown, groups[free], keys, cut)
    lacking = _lacking(split_N, free, cut, "pictures of a class")
    return _with_splits(rows, split_N), [*lacking, *_thin(split_N[free].tolist(), shown, cut)]


def _with_splits(rows: pa.Table, split_N: npt.NDArray[np.object_]) -> pa.Table:
    at = rows.column_names.index("split")
    return rows.set_column(at, "split", pa.array(split_N.tolist(), pa.string()))


def _shown(rows: pa.Table, kinds: Mapping[str, schema.Kind]) -> list[list[str]]:
    """The classes in each row, to share them out by; of a mask the ids in it."""
    if "mask" in kinds.values():
        return [[str(number) for number in values or ()] for values in rows["mask_values"].to_pylist()]
    return [list(names) for names in classes(rows, kinds) or [()] * rows.num_rows]


def _lacking(
    split_N: npt.NDArray[np.object_], free: npt.NDArray[np.int64], cut: Mapping[str, float], of: str
) -> list[Finding]:
    """Splits that were wanted and got no picture."""
    text = f"among {len(free)} pictures are too few {of}"
    lacking = [split for split in cut if split not in split_N]
    return [Finding("warning", f"no_{split}", 1, f"no {split} split: {text}") for split in lacking]


def _thin(split_of: Sequence[str], shown: Sequence[Sequence[str]], cut: Mapping[str, float]) -> list[Finding]:
    """Classes that are too small for a split that was cut off."""
    there = Counter(
        (split, name) for split, names in zip(split_of, shown, strict=True) for name in set(names)
    )
    train = sorted(name for split, name in there if split == "train")
    findings = []
    for split in cut:
        missing = [name for name in train if (split, name) not in there] if split in split_of else []
        few = [f"{name}: {there['train', name]} in train" for name in missing]
        text = f"{{n}} classes of train are not in {split}: too few different pictures to share out"
        findings += finding("warning", "class_missing", few, text)
    return findings


def known_classes(
    good: pa.Table, bad: pa.Table, kinds: Mapping[str, schema.Kind]
) -> tuple[pa.Table, pa.Table, npt.NDArray[np.int64]]:
    """Rows whose class is in train, the others added to ``bad``, and which rows were kept.

    Only a split that is given can have a class that train has not. A picture of one such class is left
    out: whatever is predicted is wrong. Where a picture may have several classes it stays, with all of
    them: the others count, and the unknown one counts as never predicted, which the report says.
    """
    everything = np.arange(good.num_rows)
    names = classes(good, kinds)
    if names is None or "class" not in kinds.values():
        return good, bad, everything
    train = {
        name
        for there, split in zip(names, good["split"].to_pylist(), strict=True)
        if split == "train"
        for name in there
    }
    unknown = [sorted(set(there) - train) for there in names]
    known = np.array([not there for there in unknown])
    if known.all():
        return good, bad, everything
    lost = good.filter(pa.array(~known))
    reasons = [f"class {there[0]!r} is not in train" for there in unknown if there]
    for column, values in (("kind", [UNKNOWN_CLASS] * len(reasons)), ("reason", reasons)):
        lost = lost.set_column(lost.column_names.index(column), column, pa.array(values, pa.string()))
    return good.filter(pa.array(known)), pa.concat_tables([bad, lost]), np.flatnonzero(known)


def label_names(
    good: pa.Table, kinds: Mapping[str, schema.Kind], given: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Class names of each label column, in label order: sorted, or as the layout says.

    One class a picture: those of train. Several: all, see `known_classes`. Of identities those of train,
    then the others, so that those to train on are the first numbers.
    """
    names: dict[str, list[str]] = {}
    splits = good["split"].to_pylist()
    for column, kind in kinds.items():
        if column in given:
            names[column] = list(given[column])
            continue
        there = classes(good, {column: kind}) or []
        train = {name for row, split in zip(there, splits, strict=True) if split == "train" for name in row}
        rest = {name for row in there for name in row} - train
        names[column] = [*sorted(train), *sorted(rest)] if kind == "identity" else sorted(train | rest)
    return names


def encoded(good: pa.Table, kinds: Mapping[str, schema.Kind], names: Mapping[str, list[str]]) -> pa.Table:
    """Class names -> positions in the list of labels. A mask's pixels are that already."""
    for column, kind in kinds.items():
        number = {name: i for i, name in enumerate(names[column])}
        values = good[column].to_pylist()
        if kind == "mask":
            continue
        if kind == "objects":
            values = [{**row, "category": [number[name] for name in row["category"]]} for row in values]
        elif kind == "classes":
            values = [sorted(number[name] for name in set(row)) for row in values]
        else:
            values = [number[name] for name in values]
        codes = pa.array(values, stored(kind, good.schema.field(column).type))
        good = good.set_column(good.column_names.index(column), column, codes)
    return good


def stored(kind: schema.Kind, seen: pa.DataType) -> pa.DataType:
    """The type of a label column in a data set; objects keep the flags that they were seen with."""
    plain = schema.TYPES[kind]
    return schema.with_flags(plain, schema.flags_of(seen)) if kind == "objects" else plain


def shards(good: pa.Table, seed: int) -> list[dict[str, Any]]:
    """What each shard holds, in order: a permutation of each split, cut by rows and bytes."""
    used = {"num_bytes", "sha256", "width", "height"}
    seen = {*preflight.INSPECTED.names, *preflight.INSPECTED_MASK.names} - used
    wanted = [name for name in good.column_names if name not in seen]
    splits = np.array(good["split"].to_pylist(), dtype=object)
    sizes = good["num_bytes"].to_numpy()
    found = []
    for number, split in enumerate(("train", "validation", "test")):
        rows = np.flatnonzero(splits == split)
        if len(rows) == 0:
            continue
        rows = np.random.default_rng([seed, number]).permutation(rows)
        cuts, held = [0], 0
        for at in range(0, len(rows), GROUP_ROWS):
            size = int(sizes[rows[at : at + GROUP_ROWS]].sum())
            if at > cuts[-1] and (at - cuts[-1] >= SHARD_ROWS or held + size > SHARD_BYTES):
                cuts.append(at)
                held = 0
            held += size
        cuts.append(len(rows))
        for n, (start, stop) in enumerate(itertools.pairwise(cuts)):
            name = f"data/{split}-{n:05d}-of-{len(cuts) - 1:05d}.parquet"
            table = good.select(wanted).take(pa.array(rows[start:stop]))
            found.append({"name": name, "split": split, "num_rows": stop - start, "rows": table})
    return found
