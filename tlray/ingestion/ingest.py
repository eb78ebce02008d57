"""Labelled pictures on storage -> a data set of Parquet shards, and the pre-flight report beside it.

Two passes over the pictures, both in Ray Data tasks wherever the cluster has room; bytes never travel
through the driver. The first looks at each picture (decode, hashes, sizes) and returns a small row. From
those rows alone the driver decides what is left out, the splits and the order. In the second each task
reads the pictures of one shard and writes it. What lands in which shard is decided from the rows and the
seed, never from timing, so the same input and settings give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.data import masks, ray_data, schema
from tlray.data.dataset import MANIFEST
from tlray.errors import ConfigError, DataError, StorageError, about
from tlray.ingestion import boxes, given, mask_codes, plan, preflight, preview, views, writer
from tlray.ingestion.findings import SHOWN, Finding
from tlray.ingestion.formats.base import STATED
from tlray.ingestion.survey import survey
from tlray.storage import targets

PREVIEW = "preview.html"  # in the data set's folder

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages "list", "inspect", "write"."""


@dataclass(frozen=True)
class IngestResult:
    """What was made: ``splits`` is split -> rows, ``seconds`` stage -> time."""

    uri: str
    splits: dict[str, int]
    labels: dict[str, list[str]]
    fingerprint: str
    report: preflight.Report
    seconds: dict[str, float]

    @property
    def preview(self) -> str:
        """URI of the page that shows pictures with their labels."""
        return storage.join(self.uri, PREVIEW)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the whole report."""
        found = Counter(f.severity for f in self.report.findings)
        return {
            "uri": self.uri,
            "splits": self.splits,
            "labels": self.labels,
            "fingerprint": self.fingerprint,
            "findings": dict(found),
            "left_out": len(self.report.quarantined),
            "preview": self.preview,
            "seconds": self.seconds,
        }


def ingest(
    source: str,
    target: str,
    *,
    format: str = "auto",
    task: str = "auto",
    max_side: int | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    strict: bool = False,
    max_bad_share: float = 0.05,
    merge_classes: bool = False,
    one_class: bool = False,
    progress: Progress | None = None,
) -> IngestResult:
    """Make the data set at ``target``; one that stands there already is replaced.

    ``task``: which kind of labels to take, "auto" for the plainest that the source has. ``max_side`` (px)
    shrinks larger pictures, boxes and masks too. Without splits in the source, shares ``validation`` and
    ``test`` of each class are cut off by ``seed``, duplicates on one side; where the source has train but
    no validation, validation is cut from train. ``merge_classes`` makes one class of names that differ in
    case, width, separators or the form of a number alone. ``one_class``: a single class is meant, which
    otherwise is taken for a layout that was not understood. Raises DataError for an unusable source, more
    than ``max_bad_share`` unusable pictures, or (``strict``) any error or warning of the report.
    """
    tell = progress or (lambda stage, done, total: None)
    _check(source, target, max_side, validation, test, seed, max_bad_share)
    started, seconds = time.monotonic(), {}

    def lap(stage: str) -> None:
        nonlocal started
        seconds[stage] = round(time.monotonic() - started, 2)
        started = time.monotonic()

    found = survey(source, format, task, merge_classes, one_class)
    index, root, kinds, given_names = found.table, found.root, found.kinds, found.names
    tell("list", index.num_rows, index.num_rows)
    lap("list")
    seen = _inspect(root, index, found.index.mask_code, tell)
    remarks, code = list(found.findings), masks.AS_STORED
    if schema.MASK in kinds:
        decided = mask_codes.decide(source, seen, given_names.get(schema.MASK), found.index.mask_code)
        seen, code, given_names[schema.MASK] = decided.rows, decided.code, decided.names
        remarks += decided.findings
    seen, compared = boxes.compare(source, seen, found.index.relative)
    remarks += compared
    seen, placed = views.place_masks(seen)
    remarks += placed
    seen, of_task = found.task.preflight(seen, given_names)
    remarks += [Finding(r.severity, r.kind, len(r.examples), r.message, r.examples[:SHOWN]) for r in of_task]
    lap("inspect")
    good, bad = plan.part(source, seen, max_bad_share)
    plan.check_classes(source, good, kinds, "those of its pictures that can be used", one_class)
    exact = preflight.exact_groups(good["sha256"].to_pylist())
    near = preflight.near_groups(good["phash"].to_numpy(), good["thumb"].to_pylist())
    cut = plan.shares(found.splits, validation, test)
    good, thin = plan.assign(source, good, kinds, plan.merged(exact, near), cut, seed)
    good, bad, kept = plan.known_classes(good, bad, kinds)
    remarks += given.check(source, found.splits, good, bad)
    exact, near = plan.renumbered(exact[kept]), plan.renumbered(near[kept])
    report = preflight.examine(
        source, good, bad, exact, near, found.index.ignored, plan.classes(good, kinds), [*remarks, *thin],
        open_set="identity" in kinds.values(), made=cut,
        pixels=plan.pixel_classes(good, given_names[schema.MASK]) if schema.MASK in kinds else None,
    )  # fmt: skip
    _fatal(report, strict, target)
    names = plan.label_names(good, kinds, given_names)
    columns = {}
    for name, kind in kinds.items():
        stored = plan.stored(kind, good.schema.field(name).type)
        flags = schema.flags_of(stored) if kind == "objects" else []
        columns[name] = (stored, schema.feature(kind, names[name], flags))
    lap("check")

    planned = plan.shards(plan.encoded(good, kinds, names), seed)
    with _staged(target) as stage:
        files = _write(root, stage, planned, columns, max_side, code, tell)
        written = {
            split: sum(s["num_rows"] for s in planned if s["split"] == split) for split in report.counts
        }
        fingerprint = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        storage.write_json(storage.join(stage, "preflight.json"), report.to_dict())
        storage.write_bytes(storage.join(stage, "preflight.txt"), report.to_text().encode())
        first = {shard["split"]: storage.join(stage, shard["name"]) for shard in reversed(planned)}
        page = preview.render(
            {split: first[split] for split in report.taken if split in first},
            found.task, kinds, names, report, found.about,
        )  # fmt: skip
        storage.write_bytes(storage.join(stage, PREVIEW), page)
        manifest = {
            "format": 1,
            "task": found.task.name,
            "splits": written,
            "labels": names,
            "fingerprint": fingerprint,
            "files": files,
            "settings": {
                "max_side": max_side, "validation": validation, "test": test, "seed": seed,
                "merge_classes": merge_classes,
            },
        }  # fmt: skip
        storage.write_json(storage.join(stage, MANIFEST), manifest)
    lap("write")
    return IngestResult(target, written, names, fingerprint, report, seconds)


def _check(
    source: str,
    target: str,
    max_side: int | None,
    validation: float,
    test: float,
    seed: int,
    max_bad_share: float,
) -> None:
    """Settings and places, before anything starts."""
    if max_side is not None and max_side < 16:
        raise ConfigError(f"max_side = {max_side}: accepted: 16 px or more")
    if seed < 0:
        raise ConfigError(f"seed = {seed}: accepted: 0 or more")
    for name, value in (("validation", validation), ("test", test), ("max_bad_share", max_bad_share)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} = {value}: accepted: a share from 0 to 1")
    if validation + test >= 1:
        raise ConfigError(
            f"validation + test = {validation + test:g}: accepted: less than 1, the rest is train"
        )
    here, there = (storage.open_fs(uri)[1].rstrip("/") for uri in (source, target))
    if storage.is_local(source) == storage.is_local(target) and f"{there}/".startswith(f"{here}/"):
        raise DataError(f"{target}: lies in the source {source}; accepted: a place outside it")
    if storage.is_local(source) == storage.is_local(target) and f"{here}/".startswith(f"{there}/"):
        raise DataError(
            f"{target}: holds the source {source}, and would be replaced; accepted: a place outside it"
        )
    if (
        storage.exists(target)
        and not storage.exists(storage.join(target, MANIFEST))
        and not storage.unfinished(target)
    ):
        others = set(storage.listdir(target)) if storage.is_dir(target) else {""}
        if others - {"preflight.json", "preflight.txt", PREVIEW}:
            raise DataError(
                f"{target}: is there and no data set; accepted: a new place, or a data set to replace"
            )
    targets.check_folder(target, beside=True)


def _inspect(root: str, index: pa.Table, code: masks.MaskCode | None, tell: Progress) -> pa.Table:
    """First pass: index + `preflight.SEEN`, in the index's order."""
    total = index.num_rows
    read = [name for name in ("path", "source", schema.MASK, *dict(STATED)) if name in index.column_names]
    numbered = index.select(read).append_column("row", pa.array(np.arange(total)))
    size = min(256, max(16, total // 64))
    blocks = [numbered.slice(n, size).combine_chunks() for n in range(0, total, size)]
    parts, done = [], 0
    tell("inspect", 0, total)
    for part in _map(blocks, _inspect_block, root=root, code=code or masks.AS_STORED):
        parts.append(part)
        done += part.num_rows
        tell("inspect", done, total)
    seen = pa.concat_tables(parts).sort_by("row").drop_columns(["row"]).combine_chunks()
    for name in index.column_names:
        seen = seen.append_column(name, index[name])
    return seen


def _map(blocks: list[pa.Table], work: Callable[..., pa.Table], **settings: Any) -> Iterator[pa.Table]:
    """Results of ``work`` on each block, by Ray Data, in whatever order they come."""
    with ray_data.quiet():
        import ray.data  # not before: quiet() keeps the level of its logger

        data = ray.data.from_arrow(blocks).map_batches(
            work, batch_size=None, batch_format="pyarrow", fn_kwargs=settings
        )
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _inspect_block(block: pa.Table, root: str, code: masks.MaskCode) -> pa.Table:
    """Rows of (path, row; source, mask) -> rows of `preflight.SEEN`, perhaps `MASK_SEEN`, + row."""
    rows = []
    sources = block["source"].to_pylist() if "source" in block.column_names else None
    for data in writer.read(root, block["path"].to_pylist(), sources):
        if isinstance(data, StorageError):
            rows.append(preflight.unusable("unreadable", str(data)))
        else:
            rows.append(preflight.inspect(data))
    kinds = preflight.SEEN
    if schema.MASK in block.column_names:
        kinds = pa.schema([*kinds, *preflight.MASK_SEEN])
        sizes = writer.canvases(block, [(row["width"], row["height"]) for row in rows])
        values = block[schema.MASK].to_pylist()
        all_files = writer.mask_files(root, values)
        paths = block["path"].to_pylist()
        for path, row, value, size, files in zip(paths, rows, values, sizes, all_files, strict=True):
            if isinstance(files, StorageError):
                row |= {**dict.fromkeys(preflight.MASK_SEEN.names), "mask_reason": str(files)}
            elif row["kind"] is None:
                with about(f"the mask of {storage.join(root, path)}"):
                    row |= preflight.inspect_mask(files, value["shapes"], code, size)
    return pa.Table.from_pylist(rows, schema=kinds).append_column("row", block["row"])


def _fatal(report: preflight.Report, strict: bool, target: str) -> None:
    """Raise where findings are fatal; the whole report is left where the data set would have been."""
    try:
        report.check(strict)
    except DataError as error:
        if storage.exists(storage.join(target, MANIFEST)):
            raise  # an older data set stands there, with its own report
        storage.write_json(storage.join(target, "preflight.json"), report.to_dict())
        storage.write_bytes(storage.join(target, "preflight.txt"), report.to_text().encode())
        raise DataError(f"{error}; all of them: {storage.join(target, 'preflight.txt')}") from None


@contextmanager
def _staged(target: str) -> Iterator[str]:
    """URI to write to. Local: a staged sibling that is renamed at the end.

    Object storage cannot rename, and many gigabytes must not pass through the driver: workers write in
    place, the marker goes last, and an older data set is taken away first. On an exception nothing of
    the new one is left.
    """
    if storage.is_local(target):
        if storage.exists(target) and not storage.exists(storage.join(target, MANIFEST)):
            storage.delete(target)  # `_check` has seen that it holds a report at most
        with storage.publish(target, MANIFEST) as folder:
            yield str(folder)
        return
    unfinished = storage.join(target, storage.UNFINISHED)  # readers refuse what has it
    storage.delete(storage.join(target, MANIFEST))
    storage.write_bytes(unfinished, b"")
    try:
        for file in storage.walk(target):
            storage.delete(storage.join(target, file.path))
        yield target
        storage.delete(unfinished)
    except BaseException:
        storage.delete(target)
        raise


def _write(
    root: str,
    stage: str,
    planned: Sequence[dict[str, Any]],
    columns: dict[str, tuple[pa.DataType, Any]],
    max_side: int | None,
    code: masks.MaskCode,
    tell: Progress,
) -> dict[str, str]:
    """Second pass: write all shards; returns sha256 by file, below the data set."""
    kinds = schema.dataset_schema(columns)
    total = sum(shard["num_rows"] for shard in planned)
    # One block a shard, its rows as one list: Ray Data may bundle blocks, and cannot tear a row apart.
    blocks = []
    for shard in planned:
        rows = pa.concat_arrays(shard["rows"].combine_chunks().to_struct_array().chunks)
        whole = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
        blocks.append(pa.table({"name": [shard["name"]], "rows": whole}))
    files: dict[str, str] = {}
    done = 0
    tell("write", 0, total)
    settings = {"root": root, "stage": stage, "kinds": kinds, "max_side": max_side, "code": code}
    for part in _map(blocks, writer.write_block, **settings):
        for row in part.to_pylist():
            if row["error"] is not None:
                raise StorageError(row["error"])
            files[row["name"]] = row["sha256"]
            done += row["num_rows"]
            tell("write", done, total)
    return dict(sorted(files.items()))
