"""What an ingest decides, from small rows alone: what is left out, the splits, the order, the shards.

Pure functions of the rows and the seed; no picture is read here.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


def assign(
    source: str, rows: pa.Table, groups: preflight.Groups, validation: float, test: float, seed: int
) -> pa.Table:
    """Fill the split column: from the layout, otherwise by seed."""
    splits = np.array([split or "" for split in rows["split"].to_pylist()], dtype=object)
    given = set(splits.tolist()) - {""}
    splits[splits == ""] = "train"  # of a table that gives some rows a split and others none, too
    if "train" not in splits:
        raise DataError(
            f"{source}: no train split among {', '.join(sorted(given))}; accepted: train and others"
        )
    shares = {"test": 0.0 if given else test, "validation": 0.0 if "validation" in given else validation}
    free = np.flatnonzero(splits == "train")
    names = rows["label"].to_pylist() if "label" in rows.column_names else [""] * rows.num_rows
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


def known_classes(good: pa.Table, bad: pa.Table) -> tuple[pa.Table, pa.Table, npt.NDArray[np.int64]]:
    """Rows whose class is in train, the others added to ``bad``, and which rows were kept."""
    everything = np.arange(good.num_rows)
    if "label" not in good.column_names:
        return good, bad, everything
    names, splits = good["label"].to_pylist(), good["split"].to_pylist()
    train = {name for name, split in zip(names, splits, strict=True) if split == "train"}
    known = np.array([name in train for name in names])
    if known.all():
        return good, bad, everything
    lost = good.filter(pa.array(~known))
    reasons = [f"class {name!r} is not in train" for name in lost["label"].to_pylist()]
    for column, values in (("kind", [preflight.UNKNOWN_CLASS] * len(reasons)), ("reason", reasons)):
        lost = lost.set_column(lost.column_names.index(column), column, pa.array(values, pa.string()))
    return good.filter(pa.array(known)), pa.concat_tables([bad, lost]), np.flatnonzero(known)


def label_columns(
    good: pa.Table, index: pa.Table
) -> tuple[dict[str, tuple[pa.DataType, Any]], dict[str, list[str]]]:
    """Label columns for `schema.dataset_schema`, and the class names of each class column."""
    columns: dict[str, tuple[pa.DataType, Any]] = {}
    names: dict[str, list[str]] = {}
    train = good.filter(pc.equal(good["split"], "train"))
    for name in index.column_names:
        if name in ("path", "split"):
            continue
        kind = index.schema.field(name).type
        if pa.types.is_string(kind):
            names[name] = sorted(set(train[name].to_pylist()))
            columns[name] = (pa.int64(), schema.class_label(names[name]))
        else:
            columns[name] = (kind, {"dtype": str(kind), "_type": "Value"})
    return columns, names


def encoded(good: pa.Table, names: dict[str, list[str]]) -> pa.Table:
    """Class names -> positions in the list of labels."""
    for column, known in names.items():
        codes = pc.index_in(good[column], pa.array(known, pa.string())).cast(pa.int64())
        good = good.set_column(good.column_names.index(column), column, codes)
    return good


def shards(good: pa.Table, seed: int) -> list[dict[str, Any]]:
    """What each shard holds, in order: a permutation of each split, cut by rows and bytes."""
    used = {"num_bytes", "sha256", "width", "height"}
    wanted = [name for name in good.column_names if name not in preflight.SEEN.names or name in used]
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
