"""Makes a data set of Parquet shards, and its pre-flight report, of labelled pictures on storage.

Two passes over the pictures, both in tasks of Ray Data; pictures never pass through the driver. The first
inspects each picture (decode, hashes, sizes) and returns a small row. From these rows the driver decides what
is left out, the splits and the order. In the second pass each task reads the pictures of one shard again and
writes it. A picture's shard depends on the rows and the seed alone, never on timing, so the same input and
settings give the same bytes.

The second read has a price, one request a picture on object storage, and no cheaper way: a shard is a random
sample of its split, and which pictures it holds is known only after all of them were inspected.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.data import masks, ray_data, schema
from tlray.data.layout import MANIFEST
from tlray.errors import ConfigError, DataError, StorageError, about
from tlray.ingestion import (
    alignment,
    boxes,
    duplicates,
    mask_codes,
    plan,
    preflight,
    preview,
    source_splits,
    writer,
)
from tlray.ingestion.findings import SHOWN, Finding
from tlray.ingestion.formats.base import STATED
from tlray.ingestion.report import Report, examine
from tlray.ingestion.survey import survey
from tlray.observer import Progress
from tlray.storage import targets
from tlray.storage.in_place import publish_in_place

PREVIEW = "preview.html"  # in the data set's folder


@dataclass(frozen=True)
class IngestResult:
    """The data set that was made."""

    uri: str
    splits: dict[str, int]  # split -> number of rows
    labels: dict[str, list[str]]
    fingerprint: str
    report: Report
    seconds: dict[str, float]  # stage -> time that it took

    @property
    def preview(self) -> str:
        """URI of the page that shows pictures with their labels."""
        return storage.join(self.uri, PREVIEW)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without the whole report."""
        num_findings = Counter(f.severity for f in self.report.findings)
        return {
            "uri": self.uri,
            "splits": self.splits,
            "labels": self.labels,
            "fingerprint": self.fingerprint,
            "findings": dict(num_findings),
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
    """Make the data set at ``target``, in place of an older one.

    ``task``: which kind of labels to take; "auto" takes the usual one of the format. ``max_side`` (px)
    shrinks larger pictures with their boxes and masks. Where the source states no splits, shares
    ``validation`` and ``test`` of each class are cut from train by ``seed``, with duplicates in one split;
    where it states train but no validation, only validation is cut. ``merge_classes`` makes one class of
    names that differ only in case, width, separators or the form of a number. ``one_class`` allows a single
    class, which otherwise means that the layout was not understood. Raises DataError for an unusable source,
    for more than ``max_bad_share`` unusable pictures, and under ``strict`` for any error or warning of the
    report. ``progress`` is told of the stages "list", "inspect" and "write".
    """
    report_progress = progress or (lambda stage, done, total: None)
    _check(source, target, max_side, validation, test, seed, max_bad_share)
    started, seconds = time.monotonic(), {}

    def lap(stage: str) -> None:
        nonlocal started
        seconds[stage] = round(time.monotonic() - started, 2)
        started = time.monotonic()

    surveyed = survey(source, format, task, merge_classes, one_class)
    index, root, kinds, stated_names = surveyed.table, surveyed.root, surveyed.kinds, surveyed.names
    report_progress("list", index.num_rows, index.num_rows)
    lap("list")
    inspected = _inspect(root, index, surveyed.index.mask_code, report_progress)
    findings, code = list(surveyed.findings), masks.AS_STORED
    if schema.MASK in kinds:
        decision = mask_codes.decide(
            source, inspected, stated_names.get(schema.MASK), surveyed.index.mask_code
        )
        inspected, code, stated_names[schema.MASK] = decision.rows, decision.code, decision.names
        findings += decision.findings
    inspected, of_boxes = boxes.compare(source, inspected, surveyed.index.relative)
    findings += of_boxes
    inspected, of_masks = alignment.align_masks(inspected)
    findings += of_masks
    inspected, of_task = surveyed.task.preflight(inspected, stated_names)
    findings += [Finding(r.severity, r.kind, len(r.examples), r.message, r.examples[:SHOWN]) for r in of_task]
    lap("inspect")
    usable, unusable = plan.part(source, inspected, max_bad_share)
    plan.check_classes(source, usable, kinds, "those of its pictures that can be used", one_class)
    exact = duplicates.exact_groups(usable["sha256"].to_pylist())
    near = duplicates.near_groups(usable["phash"].to_numpy(), usable["thumb"].to_pylist())
    cut = plan.shares(surveyed.splits, validation, test)
    usable, of_splits = plan.assign(source, usable, kinds, duplicates.merged(exact, near), cut, seed)
    usable, unusable, rows_in_train = plan.known_classes(usable, unusable, kinds)
    findings += source_splits.check_usable(source, surveyed.splits, usable, unusable)
    exact, near = duplicates.renumbered(exact[rows_in_train]), duplicates.renumbered(near[rows_in_train])
    report = examine(
        source, usable, unusable, exact, near, surveyed.index.ignored, plan.classes(usable, kinds),
        [*findings, *of_splits],
        open_set="identity" in kinds.values(), cut=cut,
        pixels=plan.pixel_classes(usable, stated_names[schema.MASK]) if schema.MASK in kinds else None,
    )  # fmt: skip
    _check_report(report, strict, target)
    names = plan.label_names(usable, kinds, stated_names)
    columns = {}
    for name, kind in kinds.items():
        label_type = plan.stored(kind, usable.schema.field(name).type)
        flags = schema.flags_of(label_type) if kind == "objects" else []
        columns[name] = (label_type, schema.feature(kind, names[name], flags))
    lap("check")

    planned = plan.shards(plan.encoded(usable, kinds, names), seed)
    if storage.exists(target) and not storage.exists(storage.join(target, MANIFEST)):
        storage.delete(target)  # `_check` has seen that it holds a report at most, or an unfinished data set
    with publish_in_place(target, MANIFEST) as stage:
        files = _write(root, stage, planned, columns, max_side, code, report_progress)
        written = {
            split: sum(s["num_rows"] for s in planned if s["split"] == split) for split in report.counts
        }
        fingerprint = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        storage.write_json(storage.join(stage, "preflight.json"), report.to_dict())
        storage.write_bytes(storage.join(stage, "preflight.txt"), report.to_text().encode())
        first_shards = {shard["split"]: storage.join(stage, shard["name"]) for shard in reversed(planned)}
        preview_page = preview.render(
            {split: first_shards[split] for split in report.taken if split in first_shards},
            surveyed.task, kinds, names, report, surveyed.about,
        )  # fmt: skip
        storage.write_bytes(storage.join(stage, PREVIEW), preview_page)
        manifest = {
            "format": 1,
            "task": surveyed.task.name,
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
    """Checks settings, source and target before any work starts. Raises ConfigError, DataError,
    StorageError."""
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
    source_path, target_path = (storage.open_fs(uri)[1].rstrip("/") for uri in (source, target))
    if storage.is_local(source) == storage.is_local(target) and f"{target_path}/".startswith(
        f"{source_path}/"
    ):
        raise DataError(f"{target}: lies in the source {source}; accepted: a place outside it")
    if storage.is_local(source) == storage.is_local(target) and f"{source_path}/".startswith(
        f"{target_path}/"
    ):
        raise DataError(
            f"{target}: holds the source {source}, and would be replaced; accepted: a place outside it"
        )
    if (
        storage.exists(target)
        and not storage.exists(storage.join(target, MANIFEST))
        and not storage.unfinished(target)
    ):
        names = set(storage.listdir(target)) if storage.is_dir(target) else {""}
        if names - {"preflight.json", "preflight.txt", PREVIEW}:
            raise DataError(
                f"{target}: is there and no data set; accepted: a new place, or a data set to replace"
            )
    targets.check_folder(target, beside=True)


def _inspect(root: str, index: pa.Table, code: masks.MaskCode | None, report_progress: Progress) -> pa.Table:
    """First pass: the index with `preflight.INSPECTED` for each picture, in the order of the index."""
    total = index.num_rows
    columns = [name for name in ("path", "source", schema.MASK, *dict(STATED)) if name in index.column_names]
    numbered = index.select(columns).append_column("row", pa.array(np.arange(total)))
    size = min(256, max(16, total // 64))
    blocks = [numbered.slice(n, size).combine_chunks() for n in range(0, total, size)]
    blocks_done, done = [], 0
    report_progress("inspect", 0, total)
    for part in _map(blocks, _inspect_block, root=root, code=code or masks.AS_STORED):
        blocks_done.append(part)
        done += part.num_rows
        report_progress("inspect", done, total)
    inspected = pa.concat_tables(blocks_done).sort_by("row").drop_columns(["row"]).combine_chunks()
    for name in index.column_names:
        inspected = inspected.append_column(name, index[name])
    return inspected


def _map(blocks: list[pa.Table], work: Callable[..., pa.Table], **settings: Any) -> Iterator[pa.Table]:
    """Results of ``work`` on each block, by Ray Data, in whatever order they come."""
    with ray_data.quiet():
        import ray.data  # not before: quiet() keeps the level of its logger

        data = ray.data.from_arrow(blocks).map_batches(
            work, batch_size=None, batch_format="pyarrow", fn_kwargs=settings
        )
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _inspect_block(block: pa.Table, root: str, code: masks.MaskCode) -> pa.Table:
    """`preflight.INSPECTED`, for masks `INSPECTED_MASK` too, and the column ``row`` for each picture of a
    block."""
    rows = []
    sources = block["source"].to_pylist() if "source" in block.column_names else None
    for picture in writer.read(root, block["path"].to_pylist(), sources):
        if isinstance(picture, StorageError):
            rows.append(preflight.unusable("unreadable", str(picture)))
        else:
            rows.append(preflight.inspect(picture))
    kinds = preflight.INSPECTED
    if schema.MASK in block.column_names:
        kinds = pa.schema([*kinds, *preflight.INSPECTED_MASK])
        sizes = writer.canvases(block, [(row["width"], row["height"]) for row in rows])
        values = block[schema.MASK].to_pylist()
        all_files = writer.mask_files(root, values)
        paths = block["path"].to_pylist()
        for path, row, value, size, files in zip(paths, rows, values, sizes, all_files, strict=True):
            if isinstance(files, StorageError):
                row |= {**dict.fromkeys(preflight.INSPECTED_MASK.names), "mask_reason": str(files)}
            elif row["kind"] is None:
                with about(f"the mask of {storage.join(root, path)}"):
                    row |= preflight.inspect_mask(files, value["shapes"], code, size)
    return pa.Table.from_pylist(rows, schema=kinds).append_column("row", block["row"])


def _check_report(report: Report, strict: bool, target: str) -> None:
    """Raises DataError where findings are fatal, and leaves the report at the target for the user to read."""
    try:
        report.check(strict)
    except DataError as error:
        if storage.exists(storage.join(target, MANIFEST)):
            raise  # an older data set with its own report is there
        storage.write_json(storage.join(target, "preflight.json"), report.to_dict())
        storage.write_bytes(storage.join(target, "preflight.txt"), report.to_text().encode())
        raise DataError(f"{error}; all of them: {storage.join(target, 'preflight.txt')}") from None


def _write(
    root: str,
    stage: str,
    planned: Sequence[dict[str, Any]],
    columns: dict[str, tuple[pa.DataType, Any]],
    max_side: int | None,
    code: masks.MaskCode,
    report_progress: Progress,
) -> dict[str, str]:
    """Second pass: write all shards; returns the SHA-256 of each file."""
    file_schema = schema.dataset_schema(columns)
    total = sum(shard["num_rows"] for shard in planned)
    # One row for each shard, with all its pictures as a list, since Ray Data may cut blocks but no rows.
    blocks = []
    for shard in planned:
        rows = pa.concat_arrays(shard["rows"].combine_chunks().to_struct_array().chunks)
        as_list = pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), rows)
        blocks.append(pa.table({"name": [shard["name"]], "rows": as_list}))
    files: dict[str, str] = {}
    done = 0
    report_progress("write", 0, total)
    settings = {"root": root, "stage": stage, "kinds": file_schema, "max_side": max_side, "code": code}
    for result in _map(blocks, writer.write_block, **settings):
        for row in result.to_pylist():
            if row["error"] is not None:
                raise StorageError(row["error"])
            files[row["name"]] = row["sha256"]
            done += row["num_rows"]
            report_progress("write", done, total)
    return dict(sorted(files.items()))
