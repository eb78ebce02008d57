"""What a job goes through: splits of a data set, or pictures as they lie, cut into parts.

The cut depends on the data and on the size of a part alone, so that the same job has the same parts again.
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
    """Pictures to work on: splits of a data set, or files; ``columns`` of a row go along."""

    uri: str  # the data set's, or what the paths of the files are relative to ("": they are URIs)
    fingerprint: str
    columns: pa.Schema
    labels: dict[str, list[str]] = field(default_factory=dict)  # class names by column
    groups: dict[str, list[int]] = field(default_factory=dict)  # of a data set: split -> rows by row group
    paths: Sequence[str] = ()

    @classmethod
    def dataset(cls, uri: str, splits: Sequence[str] = ()) -> Inputs:
        """Splits (none named: all) of a data set. Raises DataError."""
        data = Dataset.open(uri)
        groups = {split: data.group_rows(split) for split in splits or data.splits}
        common = [pa.field(name, pa.string()) for name in (schema.ID, schema.SPLIT, "path")]
        left_out = {schema.IMAGE, schema.WIDTH, schema.HEIGHT, *(f.name for f in common)}
        others = [f for f in data.schema if f.name not in left_out and f.type != schema.IMAGE_TYPE]
        labels = {}
        for one in others:
            names = schema.class_names(data.schema, one.name)
            if names:
                labels[one.name] = names
        return cls(data.uri, data.fingerprint, pa.schema([*common, *others]), labels, groups)

    @classmethod
    def files(cls, uri: str, paths: Sequence[str]) -> Inputs:
        """Pictures that lie somewhere, as they are; a row's id is its path."""
        listed = sorted(paths)
        digest = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        columns = pa.schema([(name, pa.string()) for name in (schema.ID, schema.SPLIT, "path")])
        return cls(storage.absolute(uri) if uri else "", digest, columns, paths=listed)

    @property
    def num_rows(self) -> int:
        return len(self.paths) + sum(map(sum, self.groups.values()))

    def plan(self, most: int) -> list[dict[str, Any]]:
        """Parts of at most so many rows: name, split, start, stop, and the paths of files."""
        ranges = [("pictures", cuts([len(self.paths)], most))] if self.paths else []
        ranges += [(split, cuts(groups, most)) for split, groups in self.groups.items()]
        return [
            {
                "name": f"data/{split}-{n:05d}-of-{len(there):05d}.parquet",
                "split": split if self.groups else None,
                "start": start,
                "stop": stop,
                "paths": list(self.paths[start:stop]) if self.paths else None,
            }
            for split, there in ranges
            for n, (start, stop) in enumerate(there)
        ]


def cuts(groups: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Ranges of at most ``most`` rows that end where row groups end, as far as those are not larger."""
    ranges: list[tuple[int, int]] = []
    start = at = 0
    for rows in groups:
        if at > start and at + rows - start > most:
            ranges.append((start, at))
            start = at
        at += rows
        while at - start > most:
            ranges.append((start, start + most))
            start += most
    return [*ranges, (start, at)] if at > start else ranges


def find(places: Sequence[str], splits: Sequence[str]) -> Inputs:
    """The data set at the one place, else the pictures at all of them.

    Raises DataError for what is not there.
    """
    paths, folders = [], False
    for place in places:
        if not storage.exists(place):
            raise DataError(
                f"{place}: not found; accepted: a data set, pictures, or folders of them"
                f"{spelling_hint(place)}"
            )
        inside = [f.path for f in storage.walk(place)]
        if any(path.endswith((".parquet", ".arrow")) or path == MANIFEST for path in inside) or (
            inside == [""] and place.endswith((".parquet", ".arrow"))
        ):
            if len(places) > 1:
                raise DataError(f"{place}: is a data set beside other places; accepted: one data set alone")
            return Inputs.dataset(place, splits)
        if splits:
            raise DataError(f"{place}: has no splits, it is no data set; accepted: the same without --split")
        if inside == [""]:
            paths.append(storage.absolute(place))
            continue
        folders = True
        found = [path for path in inside if path.lower().endswith(EXTENSIONS)]
        if not found:
            raise DataError(f"{place}: holds no picture; accepted: files ending in {', '.join(EXTENSIONS)}")
        alone = len(places) == 1
        paths += found if alone else [storage.join(storage.absolute(place), path) for path in found]
    return Inputs.files(places[0] if folders and len(places) == 1 else "", paths)
