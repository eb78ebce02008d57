"""What an ingest decides, from small rows alone: what is left out, the splits, the order, the shards.

Pure functions of the rows and the seed; no picture is read here.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray import preflight, schema
from tlray.errors import DataError

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


def merged(a: preflight.Groups, b: preflight.Groups) -> preflight.Groups:
    """Groups that join what either of two joins; both name a group by its smallest row."""
    out = b.copy()
    for row in np.flatnonzero(a != np.arange(len(a))).tolist():
        x, y = int(out[a[row]]), int(out[row])
        if x != y:
            out[out == max(x, y)] = min(x, y)
    return out


def renumbered(groups: preflight.Groups) -> preflight.Groups:
    """After rows were dropped: groups named by their smallest remaining row again."""
    return preflight.exact_groups(groups.astype(str).tolist())


def classes(rows: pa.Table, kinds: Mapping[str, schema.Kind]) -> preflight.Classes | None:
    """Names of the classes in each row; None where the labels are pixels."""
    for column, kind in kinds.items():
        if kind in ("class", "identity"):
            return [[name] for name in rows[column].to_pylist()]
        if kind == "classes":
            return list(rows[column].to_pylist())
        if kind == "objects":
            return [objects["category"] for objects in rows[column].to_pylist()]
    return None


def assign(
    source: str,
    rows: pa.Table,
    kinds: Mapping[str, schema.Kind],
    groups: preflight.Groups,
    validation: float,
    test: float,
    seed: int,
) -> pa.Table:
    """Fill the split column: from the layout, otherwise by seed; classes keep their shares, and pictures
    of one group, or of one person, stay together."""
    splits = np.array([split or "" for split in rows["split"].to_pylist()], dtype=object)
    given = set(splits.tolist()) - {""}
    splits[splits == ""] = "train"  # of a table that gives some rows a split and others none, too
    if "train" not in splits:
        raise DataError(
            f"{source}: no train split among {', '.join(sorted(given))}; accepted: train and others"
        )
    shares = {"test": 0.0 if given else test, "validation": 0.0 if "validation" in given else validation}
    free = np.flatnonzero(splits == "train")
    names = [""] * rows.num_rows
    for column, kind in kinds.items():
        if kind == "class":
            names = rows[column].to_pylist()
        elif kind == "identity":
            groups = merged(groups, preflight.exact_groups(rows[column].to_pylist()))
    # The order is by hash of content and seed, not by position: a new picture moves few others.
    keys = [hashlib.sha256(f"{seed}/{value}".encode()).digest() for value in rows["sha256"].to_pylist()]
    members: dict[int, list[int]] = {}
    for row in free.tolist():
        members.setdefault(int(groups[row]), []).append(row)
    by_class: dict[str, list[int]] = {}
    for group, inside in members.items():
        by_class.setdefault(names[inside[0]], []).append(group)
    for _, there in sorted(by_class.items()):
        there.sort(key=lambda g: (keys[members[g][0]], members[g][0]))
        left = total = sum(len(members[g]) for g in there)
        for split, share in shares.items():
            # A class of three pictures gets one in each split; train always keeps one.
            room = min(max(math.floor(total * share + 0.5), int(share > 0 and total >= 3)), left - 1)
            for group in list(there):
                size = len(members[group])
                if size <= room:
                    splits[members[group]] = split
                    there.remove(group)
                    room, left = room - size, left - size
                if room <= 0:
                    break
    return rows.set_column(rows.column_names.index("split"), "split", pa.array(splits.tolist(), pa.string()))


def known_classes(
    good: pa.Table, bad: pa.Table, kinds: Mapping[str, schema.Kind]
) -> tuple[pa.Table, pa.Table, npt.NDArray[np.int64]]:
    """Rows whose classes are all in train, the others added to ``bad``, and which rows were kept."""
    everything = np.arange(good.num_rows)
    names = classes(good, kinds)
    if names is None or "identity" in kinds.values():
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
    for column, values in (("kind", [preflight.UNKNOWN_CLASS] * len(reasons)), ("reason", reasons)):
        lost = lost.set_column(lost.column_names.index(column), column, pa.array(values, pa.string()))
    return good.filter(pa.array(known)), pa.concat_tables([bad, lost]), np.flatnonzero(known)


def label_names(
    good: pa.Table, kinds: Mapping[str, schema.Kind], given: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Class names of each label column, in label order: those of train, sorted, or as the layout says.

    Of identities the others follow, so that those to train on are the first numbers.
    """
    names: dict[str, list[str]] = {}
    splits = good["split"].to_pylist()
    for column, kind in kinds.items():
        if column in given:
            names[column] = list(given[column])
            continue
        there = classes(good, {column: kind}) or []
        train = {name for row, split in zip(there, splits, strict=True) if split == "train" for name in row}
        rest = {name for row in there for name in row} - train if kind == "identity" else set()
        names[column] = [*sorted(train), *sorted(rest)]
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
        codes = pa.array(values, schema.TYPES[kind])
        good = good.set_column(good.column_names.index(column), column, codes)
    return good


def shards(good: pa.Table, seed: int) -> list[dict[str, Any]]:
    """What each shard holds, in order: a permutation of each split, cut by rows and bytes."""
    used = {"num_bytes", "sha256", "width", "height", "orientation"}
    seen = {*preflight.SEEN.names, *preflight.MASK_SEEN.names} - used
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
