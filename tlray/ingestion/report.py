"""The pre-flight report: what is worth knowing about pictures and labels before a model is trained on them.

`examine` makes it from the table of inspected pictures; it is written beside the data as JSON and as text.
Under ``strict`` its errors and warnings are fatal.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tlray.errors import DataError
from tlray.ingestion.duplicates import Groups
from tlray.ingestion.findings import SHOWN, Finding, Severity

TINY_SIDE = 32  # px
FLAT = 2  # of 255: a picture whose pixels differ by no more than this shows nothing
FEW_ROWS = 10  # training pictures of a class below which nothing can be learned well
IMBALANCE = 10.0  # largest class / smallest class
UNKNOWN_CLASS = "class_not_in_train"
_REASONS = {
    "too_many_pixels": "huge (more than 50 megapixels)",
    "empty": "empty (0 bytes)",
    "not_a_picture": "no picture",
    "truncated": "truncated or damaged",
    UNKNOWN_CLASS: "their class is not in train",
}
Classes = Sequence[Sequence[str]]  # names of the classes in each row


@dataclass(frozen=True)
class Report:
    """The findings about a source, and what was taken from it and what was left out."""

    source: str
    num_files: int
    taken: dict[str, int]  # split -> number of pictures
    counts: dict[str, dict[str, int]]  # split -> class -> number of labels; a picture may have several
    findings: list[Finding]
    quarantined: list[dict[str, str]]  # path, kind and reason of each picture that was left out

    @property
    def fatal(self) -> list[Finding]:
        """The findings that are fatal under ``strict``."""
        return [f for f in self.findings if f.severity != "info"]

    def check(self, strict: bool) -> None:
        """Raises DataError, one line, where findings are fatal."""
        if strict and self.fatal:
            finding = self.fatal[0]
            example = f", as {finding.examples[0]}" if finding.examples else ""
            raise DataError(
                f"{self.source}: {len(self.fatal)} findings are fatal (strict), first: "
                f"{finding.message}{example}"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def to_text(self) -> str:
        """For a terminal: at most 110 columns apart from long paths."""
        num_taken = sum(self.taken.values())
        lines = [f"Pre-flight of {self.source}", f"{self.num_files} pictures listed, {num_taken} taken"]
        if self.counts:
            lines += ["", *count_table(self.counts, self.taken)]
        lines += ["", *finding_lines(self.findings)]
        if self.quarantined:
            lines += ["", f"Left out (the files themselves are untouched): {len(self.quarantined)}"]
            lines += [f"  {q['path']}: {q['reason']}" for q in self.quarantined[:SHOWN]]
            if len(self.quarantined) > SHOWN:
                lines.append(f"  ... {len(self.quarantined) - SHOWN} more in preflight.json")
        return "\n".join(lines) + "\n"


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """Findings for a terminal, with three examples each."""
    order: list[Severity] = ["error", "warning", "info"]
    levels = Counter(f.severity for f in findings)
    counts = ", ".join(f"{levels[s]} {s}" for s in order if levels[s]) or "nothing"
    lines = [f"Findings: {counts}"]
    for finding in findings:
        lines.append(f"  {finding.severity:<8} {finding.message}")
        lines += [f"           - {example}" for example in finding.examples[:3]]
        if len(finding.examples) > 3:
            lines.append("           - ... (more in preflight.json)")
    return lines


def count_table(counts: Mapping[str, Mapping[str, int]], taken: Mapping[str, int]) -> list[str]:
    """The lines of a table: a row for each class, a column for each split; numbers of pictures below, if
    others."""
    splits, classes = list(counts), sorted({name for by_class in counts.values() for name in by_class})
    if not classes:
        return [f"{split}: {number} pictures" for split, number in taken.items()]
    width = max(8, *(min(len(name), 40) for name in classes))
    listed = classes if len(classes) <= 30 else classes[:30]
    lines = [" ".join(["class".ljust(width), *(split.rjust(11) for split in splits)])]
    for name in listed:
        cells = [str(counts[split].get(name, 0)).rjust(11) for split in splits]
        lines.append(" ".join([name[:40].ljust(width), *cells]))
    if len(listed) < len(classes):
        lines.append(f"... {len(classes) - len(listed)} more classes")
    sums = {split: sum(counts[split].values()) for split in splits}
    totals = {"all": sums} | ({"pictures": taken} if sums != taken else {})
    for name, row in totals.items():
        lines.append(" ".join([name.ljust(width), *(str(row[split]).rjust(11) for split in splits)]))
    return lines


def examine(
    source: str,
    rows: pa.Table,
    unusable: pa.Table,
    exact: Groups,
    near: Groups,
    ignored: Mapping[str, int],
    classes: Classes | None,
    earlier: Iterable[Finding] = (),
    open_set: bool = False,
    cut: Collection[str] = (),
    pixels: Classes | None = None,
) -> Report:
    """The report of pictures that are taken, ``rows``, and of those left out, ``unusable``.

    Both tables have `preflight.INSPECTED`, path and split. ``exact`` and ``near`` are the groups of ``rows``,
    ``classes`` the names of the classes of each. ``earlier`` are findings made before. ``open_set``: splits
    must not share a class, as with people. ``cut``: splits that were cut from train, about whose missing
    classes ``earlier`` has a finding. ``pixels``: where labels are pixels, the classes of each row; they are
    only counted.
    """
    findings: list[Finding] = list(earlier)

    def note(
        severity: Severity, kind: str, examples: Iterable[str], message: str, count: int | None = None
    ) -> None:
        listed = list(examples)
        number = len(listed) if count is None else count
        if number:
            findings.append(Finding(severity, kind, number, message.format(n=number), listed[:SHOWN]))

    path, split = rows["path"].to_pylist(), rows["split"].to_pylist()
    quarantined = [
        {"path": b["path"], "kind": b["kind"], "reason": b["reason"]}
        for b in unusable.select(["path", "kind", "reason"]).to_pylist()
    ]

    _duplicates(note, path, split, classes, exact, near)
    counts = _counts(split, classes if classes is not None else pixels)
    for kind, number in sorted(Counter(q["kind"] for q in quarantined).items()):
        files = [f"{q['path']}: {q['reason']}" for q in quarantined if q["kind"] == kind]
        severity: Severity = "error" if kind == UNKNOWN_CLASS else "warning"
        note(severity, kind, files, "{n} left out: " + _REASONS.get(kind, kind.replace("_", " ")), number)
    if classes is not None:
        _classes(note, counts, open_set, cut)
    width, height = rows["width"].to_numpy(), rows["height"].to_numpy()
    tiny = np.flatnonzero(np.minimum(width, height) < TINY_SIDE)
    sized = (f"{path[i]} ({width[i]} x {height[i]})" for i in tiny)
    note("warning", "tiny", sized, f"{{n}} pictures with a side below {TINY_SIDE} px")
    turned = np.flatnonzero(rows["orientation"].to_numpy() > 1)
    note("info", "exif_orientation", (path[i] for i in turned), "{n} pictures turned by EXIF (it is applied)")
    dark, bright = rows["darkest"].to_numpy(), rows["brightest"].to_numpy()
    flat = np.flatnonzero(bright - dark <= FLAT)
    shades = (f"{path[i]} ({_shade(int(dark[i]), int(bright[i]))})" for i in flat)
    note("warning", "constant", shades, "{n} pictures are of a single shade when read")
    depths = Counter(depth for depth in rows["depth"].to_pylist() if depth)
    note(
        "info",
        "depth",
        (f"{depth}: {number}" for depth, number in sorted(depths.items())),
        "{n} pictures with values of more than 8 bits (brought to 8; the brightest pixel tells the range)",
        sum(depths.values()),
    )
    moving = np.flatnonzero(rows["frames"].to_numpy() > 1)
    note("info", "frames", (path[i] for i in moving), "{n} files with several frames (the first is taken)")
    modes = Counter(mode for mode in rows["mode"].to_pylist() if mode != "RGB")
    note(
        "info",
        "mode",
        (f"{m}: {c}" for m, c in sorted(modes.items())),
        "{n} not RGB (converted)",
        sum(modes.values()),
    )
    ignored_files = [f"{ending}: {number}" for ending, number in sorted(ignored.items())]
    note("info", "ignored", ignored_files, "{n} other files passed over", sum(ignored.values()))
    rank = {"error": 0, "warning": 1, "info": 2}
    findings.sort(key=lambda finding: rank[finding.severity])
    taken = {part: split.count(part) for part in counts}
    return Report(source, rows.num_rows + unusable.num_rows, taken, counts, findings, quarantined)


def _shade(darkest: int, brightest: int) -> str:
    return "black" if brightest <= FLAT else "white" if darkest >= 255 - FLAT else "grey or one colour"


def _duplicates(
    note: Any, path: list[str], split: list[str], classes: Classes | None, exact: Groups, near: Groups
) -> None:
    """Findings about pictures that are equal or look alike."""
    for kind, word, groups in (("exact", "same bytes", exact), ("near", "nearly the same", near)):
        across_splits: list[tuple[str, int]] = []
        within_split: list[tuple[str, int]] = []
        conflicts: list[str] = []
        for members in _members(groups):
            if kind == "near" and len({int(exact[i]) for i in members}) == 1:
                continue  # the findings about equal pictures say it already
            text = " = ".join(f"{split[i]}: {path[i]}" for i in members[:4])
            (across_splits if len({split[i] for i in members}) > 1 else within_split).append(
                (text, len(members))
            )
            labels = {"+".join(sorted(set(classes[i]))) for i in members} if classes is not None else set()
            if len(labels) > 1:
                conflicts.append(text + " (" + ", ".join(sorted(labels)) + ")")
        worse: Severity = "error" if kind == "exact" else "warning"
        note(
            worse,
            f"{kind}_across_splits",
            (t for t, _ in across_splits),
            f"pictures with {word} across splits: {{n}} groups",
        )
        note(
            worse,
            f"{kind}_label_conflict",
            conflicts,
            f"pictures with {word} but different labels: {{n}} groups",
        )
        number = sum(size for _, size in within_split)
        note(
            "info",
            f"{kind}_duplicates",
            (t for t, _ in within_split),
            f"pictures with {word} within a split: {{n}}",
            number,
        )


def _members(groups: Groups) -> list[list[int]]:
    """Rows of each group of two or more, in order."""
    members: dict[int, list[int]] = {}
    for row in np.flatnonzero(np.bincount(groups, minlength=len(groups))[groups] > 1).tolist():
        members.setdefault(int(groups[row]), []).append(row)
    return list(members.values())


def _counts(split: list[str], classes: Classes | None) -> dict[str, dict[str, int]]:
    """Split -> class -> number of labels; splits in the order train, validation, test."""
    rank = {"train": 0, "validation": 1, "test": 2}
    names_of_rows = classes if classes is not None else [()] * len(split)
    pairs = Counter((part, name) for part, names in zip(split, names_of_rows, strict=True) for name in names)
    counts: dict[str, dict[str, int]] = {s: {} for s in sorted(set(split), key=lambda s: (rank.get(s, 3), s))}
    for (part, name), number in sorted(pairs.items()):
        counts[part][name] = number
    return counts


def _classes(note: Any, counts: dict[str, dict[str, int]], open_set: bool, cut: Collection[str]) -> None:
    """Findings about how many rows each class has."""
    train = counts.get("train", {})
    if open_set:
        for a, b in itertools.combinations(counts, 2):
            shared = sorted(set(counts[a]) & set(counts[b]))
            note("error", "identity_across_splits", shared, f"{{n}} identities of {a} are in {b}, too")
    for split, by_class in counts.items() if not open_set else ():
        missing = sorted(set(train) - set(by_class)) if split not in cut else []
        note("warning", "class_missing", missing, f"{{n}} classes of train are not in {split}")
        unknown = sorted(set(by_class) - set(train))
        note("error", UNKNOWN_CLASS, unknown, f"{{n}} classes of {split} are not in train: never predicted")
    rare = [f"{name}: {number}" for name, number in train.items() if number < FEW_ROWS]
    note("warning", "few_rows", rare, f"{{n}} classes with fewer than {FEW_ROWS} training pictures")
    if len(train) > 1:
        large, small = max(train, key=lambda c: train[c]), min(train, key=lambda c: train[c])
        ratio = train[large] / train[small]
        sizes = f"({large} {train[large]}, {small} {train[small]})"
        text = f"largest class / smallest class in train: {ratio:.1f} {sizes}"
        note(
            "warning" if ratio > IMBALANCE else "info",
            "imbalance",
            [],
            text.replace("{", "{{").replace("}", "}}"),
            1,
        )
