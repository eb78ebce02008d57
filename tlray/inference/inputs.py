"""The input of a batch job: splits of a data set, or picture files, divided into parts.

The division depends only on the data and on the size of a part, so a job started again has the same parts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tlray import storage
from tlray.data import schema
from tlray.data.dataset import Dataset
from tlray.data.image import EXTENSIONS
from tlray.data.layout import MANIFEST
from tlray.errors import DataError, spelling_hint


@dataclass(frozen=True)
class Inputs:
    """The pictures of a job: splits of a data set, or files."""

    uri: str  # of the data set, or of the folder that the paths are relative to ("": the paths are URIs)
    fingerprint: str
    columns: pa.Schema  # of a row, without the picture; the results get them, too
    labels: dict[str, list[str]] = field(default_factory=dict)  # class names by column
    groups: dict[str, list[int]] = field(default_factory=dict)  # split -> number of rows of each row group
    paths: Sequence[str] = ()

    @classmethod
    def dataset(cls, uri: str, splits: Sequence[str] = ()) -> Inputs:
        """Splits of a data set; no names mean all of them. Raises DataError."""
        data = Dataset.open(uri)
        groups = {split: data.group_rows(split) for split in splits or data.splits}
        common = [pa.field(name, pa.string()) for name in (schema.ID, schema.SPLIT, "path")]
        skipped = {schema.IMAGE, schema.WIDTH, schema.HEIGHT, *(f.name for f in common)}
        others = [f for f in data.schema if f.name not in skipped and f.type != schema.IMAGE_TYPE]
        class_names = {f.name: schema.class_names(data.schema, f.name) for f in others}
        labels = {name: names for name, names in class_names.items() if names}
        return cls(data.uri, data.fingerprint, pa.schema([*common, *others]), labels, groups)

    @classmethod
    def files(cls, uri: str, paths: Sequence[str]) -> Inputs:
        """Picture files; the id of a row is its path."""
        in_order = sorted(paths)
        digest = hashlib.sha256(json.dumps(in_order).encode()).hexdigest()
        columns = pa.schema([(name, pa.string()) for name in (schema.ID, schema.SPLIT, "path")])
        return cls(storage.absolute(uri) if uri else "", digest, columns, paths=in_order)

    @property
    def num_rows(self) -> int:
        """Number of pictures."""
        return len(self.paths) + sum(map(sum, self.groups.values()))

    def plan(self, max_rows: int) -> list[dict[str, Any]]:
        """Parts of at most ``max_rows`` rows: name, split, start, stop, and the paths of files."""
        splits = [("pictures", cuts([len(self.paths)], max_rows))] if self.paths else []
        splits += [(split, cuts(groups, max_rows)) for split, groups in self.groups.items()]
        return [
            {
                "name": f"data/{split}-{n:05d}-of-{len(ranges):05d}.parquet",
                "split": split if self.groups else None,
                "start": start,
                "stop": stop,
                "paths": list(self.paths[start:stop]) if self.paths else None,
            }
            for split, ranges in splits
            for n, (start, stop) in enumerate(ranges)
        ]


def cuts(groups: Sequence[int], max_rows: int) -> list[tuple[int, int]]:
    """Ranges of at most ``max_rows`` rows. They end at the end of a row group, unless the group is larger.

    ``groups``: number of rows of each row group.
    """
    ranges: list[tuple[int, int]] = []
    start = stop = 0
    for rows in groups:
        if stop > start and stop + rows - start > max_rows:
            ranges.append((start, stop))
            start = stop
        stop += rows
        while stop - start > max_rows:
            ranges.append((start, start + max_rows))
            start += max_rows
    return [*ranges, (start, stop)] if stop > start else ranges


def find(places: Sequence[str], splits: Sequence[str]) -> Inputs:
    """The splits of the data set at a single place, else the pictures at all places.

    Raises DataError for a place that does not exist or holds neither.
    """
    paths, folders = [], False
    for place in places:
        if not storage.exists(place):
            raise DataError(
                f"{place}: not found; accepted: a data set, pictures, or folders of them"
                f"{spelling_hint(place)}"
            )
        files = [f.path for f in storage.walk(place)]
        is_file = files == [""]
        if any(path.endswith((".parquet", ".arrow")) or path == MANIFEST for path in files) or (
            is_file and place.endswith((".parquet", ".arrow"))
        ):
            if len(places) > 1:
                raise DataError(f"{place}: is a data set beside other places; accepted: one data set alone")
            return Inputs.dataset(place, splits)
        if splits:
            raise DataError(f"{place}: has no splits, it is no data set; accepted: the same without --split")
        if is_file:
            paths.append(storage.absolute(place))
            continue
        folders = True
        pictures = [path for path in files if path.lower().endswith(EXTENSIONS)]
        if not pictures:
            raise DataError(f"{place}: holds no picture; accepted: files ending in {', '.join(EXTENSIONS)}")
        if len(places) > 1:
            pictures = [storage.join(storage.absolute(place), path) for path in pictures]
        paths += pictures
    return Inputs.files(places[0] if folders and len(places) == 1 else "", paths)
