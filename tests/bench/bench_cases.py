"""Every folder of ../shared/cases through the command line: what was right, refused, or wrong in silence.

    python tests/bench/bench_cases.py [CASES] [--only 25-coco] [--json FILE]

CASES defaults to ../shared/cases; its README says what is right for each case, and here that is code. A case
of a single `tlray ingest` runs in this process, without Ray; those of several commands start their own.
Prints case, outcome and seconds: right; refused, with the line; wrong, with the reason; unexpected, with the
line. Exit code 1 where one is wrong or unexpected.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

import tlray
from tlray import cli, runtime
from tlray.data import image
from tlray.data.dataset import Dataset
from tlray.ingestion import ingest

ROOT = Path(tlray.__file__).resolve().parents[1]  # whichever tlray is imported is the one that is tried
CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
COMMAND_S = 300
PLAIN = image.Preprocess(size=(60, 40), fit="stretch", mean=(0, 0, 0), std=(1, 1, 1))


@dataclass
class Ended:
    """One command: its exit code and the last line that it wrote on stderr."""

    code: int
    line: str
    out: str = ""


@dataclass
class Made:
    """A data set that a case's ingest has made."""

    source: Path
    target: Path

    @cached_property
    def data(self) -> Dataset:
        return Dataset.open(str(self.target))

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """Rows by the path of their pictures; ``where`` is the split."""
        rows = {}
        for split in self.data.splits:
            for row in self.data.rows(split, range(self.data.num_rows(split))).to_pylist():
                rows[row["image"]["path"]] = {**row, "where": split}
        return rows

    @property
    def splits(self) -> dict[str, int]:
        return {split: self.data.num_rows(split) for split in self.data.splits}

    @cached_property
    def report(self) -> dict[str, Any]:
        return json.loads((self.target / "preflight.json").read_text())  # type: ignore[no-any-return]

    def has(self, column: str) -> bool:
        return column in self.data.schema.names

    def reports(
        self, pattern: str, named: str = "", levels: Sequence[str] = ("error", "warning", "info")
    ) -> bool:
        """Whether a finding matches a pattern and, with ``named``, its examples or text that one too."""
        return any(
            f["severity"] in levels
            and re.search(pattern, f"{f['kind']} {f['message']} {f['examples']}", re.IGNORECASE)
            and re.search(named, f"{f['message']} {f['examples']}")
            for f in self.report["findings"]
            if f["kind"] not in ("exif_orientation", "ignored", "mode", "tiny")
        )

    def boxes(self, path: str) -> list[tuple[str, list[float]]]:
        """Boxes of the picture whose path ends so."""
        names = self.data.labels("objects")
        row = next(row for key, row in self.rows.items() if key.endswith(path))["objects"]
        return [(names[n], box) for n, box in zip(row["category"], row["bbox"], strict=True)]

    def masks(self) -> list[Any]:
        return [image.decode_mask(row["mask"]["bytes"]) for row in self.rows.values()]

    def ids(self) -> set[int]:
        return {int(v) for mask in self.masks() for v in np.unique(mask)}

    def label(self, path: str, column: str = "label") -> Any:
        value = self.rows[path][column]
        names = self.data.labels(column)
        return [names[n] for n in value] if isinstance(value, list) else names[value]


Right = Callable[[Made], str]  # "" or what is wrong


@dataclass(frozen=True)
class Case:
    """``right`` judges the data set; ``refusal`` is what a refusal speaks of, None where it is wrong."""

    name: str
    right: Right | None
    refusal: str | None = "."
    source: str = ""  # below the case's folder
    options: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    commands: Callable[[Path], tuple[str, str]] | None = None  # instead of one ingest: (outcome, why)


@dataclass
class Outcome:
    case: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


def _near(box: Sequence[float], right: Sequence[float], px: float = 1.1) -> bool:
    return all(abs(a - b) <= px for a, b in zip(box, right, strict=True))


def _want(sure: bool, why: str) -> str:
    return "" if sure else why


# ---- what is right


def tiff_orientation(made: Made) -> str:
    corners = {(10, 10): (255, 0, 0), (50, 10): (0, 255, 0), (10, 30): (0, 0, 255), (50, 30): (255, 255, 0)}
    for name in ("t3.tif", "t6.tif", "t8.tif", "j3.jpg", "j6.jpg", "j8.jpg"):
        row = made.rows.get(f"a/{name}")
        if row is None:
            return f"{name} is left out"
        if (row["width"], row["height"]) != (60, 40):
            return f"{name} is {row['width']} x {row['height']}"
        seen = image.render(row["image"]["bytes"], PLAIN)[0]
        for (x, y), colour in corners.items():
            if np.abs(seen[:, y, x].astype(int) - colour).max() > 90:
                return f"{name}: {seen[:, y, x].tolist()} at {x}, {y}, not {colour}"
    return ""


def deep_pictures(made: Made) -> str:
    for path in sorted(made.source.rglob("*.*")):
        name = path.name
        if name.startswith("n") or made.reports(".", re.escape(name), ("warning", "error")):
            continue
        with Image.open(path) as opened:
            values = np.asarray(opened).astype(float)
        scale = 255 if name.startswith("float") else 255 / 4095 if name.startswith("twelve") else 1
        row = made.rows.get(path.relative_to(made.source).as_posix())
        if row is None:
            if not any(q["path"].endswith(name) for q in made.report["quarantined"]):
                return f"{name} is gone in silence"
            continue
        seen = image.render(row["image"]["bytes"], PLAIN)[0].mean()
        if abs(seen - values.mean() * scale) > 12:
            return f"{name} has mean {seen:.0f}, not {values.mean() * scale:.0f}, and no finding names it"
    return ""


def mask_0_255(made: Made) -> str:
    if made.reports("255"):
        return ""
    return _want(made.ids() == {0, 1} and len(made.data.labels("mask")) == 2, f"ids {made.ids()}")


def mask_suffix(made: Made) -> str:
    return _want(
        made.has("mask") and len(made.rows) == 12 and made.ids() <= {0, 1}, "not 12 pictures with masks"
    )


def mask_ids(*ids: int) -> Right:
    return lambda made: _want(made.has("mask") and made.ids() == set(ids), f"ids {sorted(made.ids())[:9]}")


def antialiased(made: Made) -> str:
    worried = made.reports(
        "edge|hardly|never|smooth|resiz|rare|few|between|sparse", levels=("warning", "error")
    )
    return _want(worried, f"{len(made.data.labels('mask'))} classes in silence")


def boxes_everywhere(splits: dict[str, int], *boxes: tuple[str, Sequence[float]], px: float = 1.1) -> Right:
    """Every picture has these boxes; ``splits``: pictures of each, {} where none are given."""

    def right(made: Made) -> str:
        if not made.has("objects"):
            return f"no boxes, but classes {made.data.labels()}"
        if splits and made.splits != splits:
            return f"splits {made.splits}"
        for path in made.rows:
            seen = made.boxes(path)
            same = len(seen) == len(boxes) and all(
                a == name and _near(b, box, px) for (a, b), (name, box) in zip(seen, boxes, strict=True)
            )
            if not same:
                return f"{path}: {seen}"
        return ""

    return right


def hf_imagefolder(made: Made) -> str:
    if sorted(made.data.labels()) != ["cat", "dog"]:
        return f"classes {made.data.labels()}"
    for path, row in made.rows.items():
        top = path.split("/")[0]
        if (row["where"] == "test") != (top == "test"):
            return f"{path} is in {row['where']}"
        lines = (made.source / top / "metadata.csv").read_text().splitlines()
        label = dict(line.split(",") for line in lines)[path.split("/")[-1]]
        if made.label(path) != label:
            return f"{path} is {made.label(path)}"
    return _want(len(made.rows) == 12, f"{len(made.rows)} pictures")


def thin(made: Made) -> str:
    gone = {q["path"] for q in made.report["quarantined"]}
    sides = [min(row["width"], row["height"]) for row in made.rows.values()]
    return _want(len(made.rows) + len(gone) == 26 and len(gone) <= 2 and min(sides) >= 1, f"left out: {gone}")


def _coco_right(made: Made) -> str:
    (file,) = made.source.rglob("*.json")
    tree = json.loads(file.read_text())
    names = {c["id"]: c["name"] for c in tree["categories"]}
    for picture in tree["images"]:
        name = picture["file_name"].replace("\\", "/").split("/")[-1]
        if name == "e.jpg":
            continue
        right = [
            (names[a["category_id"]], a["bbox"])
            for a in tree["annotations"]
            if a["image_id"] == picture["id"]
        ]
        seen = made.boxes(name)
        if len(seen) != len(right) or not all(
            a == c and _near(b, d) for (a, b), (c, d) in zip(seen, right, strict=True)
        ):
            return f"{name}: {seen}, not {right}"
    return ""


def coco_exif(made: Made) -> str:
    if why := _coco_right(made):
        return why
    if made.reports(".", r"e\.jpg"):
        return ""
    seen = made.boxes("e.jpg")
    return _want(
        len(seen) == 1 and seen[0][0] == "dog" and _near(seen[0][1], (5, 5, 10, 20)), f"e.jpg: {seen}"
    )


def yolo_upper(made: Made) -> str:
    have = [len(made.boxes(path)) for path in made.rows]
    return _want(have == [1] * 6 or made.reports("3 .*label|label.* 3 "), f"boxes {have}")


def yolo_blank(made: Made) -> str:
    for path in made.rows:
        if [name for name, _ in made.boxes(path)] not in (["cat"], ["dog"], ["cat", "dog"]):
            return f"{path}: {made.boxes(path)}"
    return _want("bird" not in {n for p in made.rows for n, _ in made.boxes(p)}, "2 is bird")


def labels_elsewhere(made: Made) -> str:
    spoken = any(f["count"] == 5 and re.search("label", f["message"]) for f in made.report["findings"])
    return _want(spoken or made.reports(r"\b5 .*label"), "no finding about 5 pictures without label file")


def csv_labels(made: Made) -> str:
    lines = (made.source / "t.csv").read_text().splitlines()[1:]
    for line in lines:
        path, label = line.split(",")
        if made.label(path.split("\\")[-1]) != label:
            return f"{path} is not {label}"
    return _want(len(made.rows) == len(lines), f"{len(made.rows)} pictures")


def multilabel_minus(made: Made) -> str:
    if not made.reports("-1"):
        return "no finding about -1"
    return _want("bird" in made.data.labels("labels"), "the class bird is gone")


def multilabel_list(made: Made) -> str:
    if sorted(made.data.labels("labels")) != ["cat", "dog"]:
        return f"classes {made.data.labels('labels')}"
    seen = {path: sorted(made.label(path, "labels")) for path in made.rows}
    right = {f"p{n}.jpg": ["dog"] if n % 2 == 0 else ["cat", "dog"] for n in range(8)}
    return _want(seen == right, f"{seen}")


def rare_share(made: Made) -> str:
    names = made.data.labels("objects")
    train = {
        names[n] for row in made.rows.values() if row["where"] == "train" for n in row["objects"]["category"]
    }
    all_of_them = {"cat", *(f"rare{n}" for n in range(10))}
    if len(made.rows) != 40:
        return f"{len(made.rows)} pictures of 40"
    return _want(
        {n for n in names if n.startswith("rare")} <= train and len(all_of_them - train) <= 1,
        f"train: {train}",
    )


def breeds(made: Made) -> str:
    right = {f"images/p{n}.jpg": ["pug", "husky"][n % 2] for n in range(8)}
    return _want({path: made.label(path) for path in made.rows} == right, f"classes {made.data.labels()}")


def case_classes(made: Made) -> str:
    names = made.data.labels()
    return _want(
        len(names) == 2 or made.reports("(?i)cat.*cat", levels=("warning", "error")), f"classes {names}"
    )


def nfd(made: Made) -> str:
    same = made.data.labels() == ["caf\u00e9", "th\u00e9"]
    return _want(
        same and made.splits == {"train": 12, "validation": 4}, f"{made.data.labels()}, {made.splits}"
    )


def one_class(made: Made) -> str:
    return _want(made.reports("class", levels=("warning", "error")), "one class in silence")


def exif_byte(made: Made) -> str:
    return _want("a/byte.jpg" in made.rows and len(made.rows) == 21, f"{made.report['quarantined']}")


def in_splits(column: str, **splits: int) -> Right:
    return lambda made: _want(made.has(column) and made.splits == splits, f"splits {made.splits}")


# ---- cases of several commands


def tlray_command(folder: Path, *argv: str) -> Ended:
    """One command as a user types it, Ray and all."""
    done = subprocess.run(
        [sys.executable, "-m", "tlray", *argv], cwd=folder, capture_output=True, text=True, timeout=COMMAND_S,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    lines = [line for line in done.stderr.strip().splitlines() if line.startswith("tlray: ")]
    return Ended(done.returncode, lines[-1] if lines else done.stderr.strip()[-300:], done.stdout)


def minus_one(folder: Path) -> tuple[str, str]:
    trained = tlray_command(folder, "train", "train.yaml")
    if trained.code:
        return ("unexpected" if trained.code != 2 else "wrong"), f"train: {trained.line}"
    ended = tlray_command(folder, "evaluate", "runs/r", "data", "--split", "test")
    if ended.code != 2:
        return ("wrong" if ended.code == 0 else "unexpected"), f"evaluate: {ended.code} {ended.line}"
    named = re.search(r"row|no label", ended.line) and re.search("label", ended.line)
    return ("right", "") if named else ("wrong", f"unclear: {ended.line}")


def face_single(folder: Path) -> tuple[str, str]:
    ended = tlray_command(folder, "ingest", ".", "../faces", "--task", "face_recognition")
    if ended.code == 2:
        return "refused", ended.line
    (folder.parent / "t.yaml").write_text(
        "name: r\nruns: runs\nmodels: models\ntask: {name: face_recognition}\ndata: {uri: faces}\n"
        "input: {size: 32}\ntrain: {epochs: 1, batch_size: 8}\n"
    )
    trained = tlray_command(folder.parent, "train", "t.yaml")
    if trained.code == 2:
        return "refused", trained.line
    said = re.search("verif|pairs", trained.out + trained.line)
    if trained.code:
        return "unexpected", trained.line
    return ("right", "") if said else ("wrong", "the run does not say that nothing can be verified")


def same_name(folder: Path) -> tuple[str, str]:
    for argv in (
        ("ingest", "pictures_one", "data_one"),
        ("ingest", "pictures_two", "data_two"),
        ("train", "train.yaml"),
    ):
        ended = tlray_command(folder, *argv)
        if ended.code:
            return "unexpected", f"{' '.join(argv)}: {ended.line}"
    ended = tlray_command(folder, "train", "train.yaml", "data.uri=data_two", "optim.lr=0.01")
    if ended.code == 2:
        named = re.search("name|fresh", ended.line)
        return ("refused", ended.line) if named else ("wrong", f"unclear: {ended.line}")
    if ended.code:
        return "unexpected", ended.line
    began = "epoch 1" in ended.out.lower() or "1/1" in ended.out
    return ("right", "") if began else ("wrong", "the run went on under other data, exit code 0")


CAR = ("car", (0, 0, 0, 0))
LIST = [
    Case("01-tiff-orientation", tiff_orientation, None),
    Case("02-deep-pictures", deep_pictures, "float|int|twelve"),
    Case("03-mask-0-255", mask_0_255, "255"),
    Case("04-mask-suffix", mask_suffix, "mask"),
    Case(
        "05b-mask-grey-as-rgb", mask_ids(0, 1), r"\.png.*(RGB|channel|colour)",
        options=["--task", "segmentation"],
    ),
    Case("07-mask-antialiased", antialiased, "values|ids|classes"),
    Case(
        "10-roboflow-voc",
        boxes_everywhere({"train": 6, "validation": 2, "test": 2}, ("cat", (5, 5, 15, 15))),
        "xml|VOC",
    ),
    Case("13-hf-imagefolder", hf_imagefolder, "metadata"),
    Case("14-cvat-yolo11", boxes_everywhere({}, ("car", (19.2, 14.4, 9.6, 7.2))), "obj"),
    Case("15-thin-max-side", thin, None, options=["--max-side", "256"]),
    Case("20-coco-double-image-id", None, r"\bid\b.*\b0\b|\b0\b.*\bid\b"),
    Case("22-coco-backslash", _coco_right, r"backslash|\\"),
    Case("25-coco-exif", coco_exif, r"e\.jpg"),
    Case("30-yolo-list-files", in_splits("objects", train=6, validation=4), r"train\.txt"),
    Case("32-yolo-pose2", boxes_everywhere({}, ("cat", (16, 16, 8, 8))), "kpt|keypoint|pose"),
    Case("33b-yolo-upper", yolo_upper, "TXT|txt"),
    Case("36-yolo-classes-blank", yolo_blank, r"classes\.txt.*(empty|blank|line)"),
    Case("38-yolo-labels-elsewhere", labels_elsewhere, "5 .*label"),
    Case("51-csv-windows-paths", csv_labels, r"backslash|drive|Windows", source="t.csv"),
    Case("54d-multilabel-minus", multilabel_minus, "-1", source="t.csv"),
    Case("54e-multilabel-list", multilabel_list, r"\[", source="t.csv"),
    Case("55c-rare-share", rare_share, None, seeds=range(5)),
    Case("57c-kaggle-id-breed", breeds, "breed"),
    Case("63-case-classes", case_classes, "(?i)cat"),
    Case("64-nfd", nfd, None),
    Case("65b-one-class", one_class, "class"),
    Case("75-hf-minus-one", None, commands=minus_one),
    Case("77-face-single", None, commands=face_single),
    Case("84-same-name", None, commands=same_name),
    Case("88-exif-byte", exif_byte, None),
    Case("90-mask-2bit-grey", mask_ids(0, 1, 2, 3), None),
    Case("95-voc-list-blanks", in_splits("objects", train=6, validation=2), None),
    Case("96b-yolo-labels-beside", boxes_everywhere({}, ("cat", (10, 10, 20, 20))), "label"),
    Case(
        "96g-yolo-yaml-given", boxes_everywhere({}, ("cat", (10, 10, 20, 20))), "folder", source="data.yaml"
    ),
    Case(
        "97-coco-createml", boxes_everywhere({"train": 6, "validation": 6}, ("cat", (15, 15, 10, 10))),
        "json|CreateML",
    ),
    Case("97e-coco-relative", boxes_everywhere({}, ("cat", (9.6, 7.2, 24, 18))), "share|relative|px"),
]  # fmt: skip


# ---- running


def map_here(blocks: list[pa.Table], work: Callable[..., pa.Table], **settings: Any) -> Iterator[pa.Table]:
    """Both passes of ingest in this process."""
    yield from [work(block, **settings) for block in blocks]


def here(argv: list[str]) -> Ended:
    """A command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(argv)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("tlray: ")]
    return Ended(code, lines[-1] if lines else err.getvalue().strip()[-300:], out.getvalue())


def run(case: Case, folder: Path) -> tuple[str, str]:
    """(outcome, why) of one case, tried on a copy."""
    with tempfile.TemporaryDirectory(prefix="case-") as work:
        source = Path(work, "in")
        shutil.copytree(folder, source, symlinks=True)
        if case.commands is not None:
            return case.commands(source)
        for seed in case.seeds:
            target = Path(work, f"out{seed}")
            ended = here(
                ["ingest", str(source / case.source), str(target), "--seed", str(seed), *case.options]
            )
            if ended.code == 2:
                line = ended.line.replace(work + "/", "")
                left = {p.name for p in target.iterdir()} if target.exists() else set()
                if left - {"preflight.json", "preflight.txt"}:
                    return "wrong", f"refused, but left {sorted(left)}"
                if case.refusal is None:
                    return "wrong", f"refused without need: {line}"
                if not re.search(case.refusal, line.removeprefix("tlray: ")):
                    return "wrong", f"unclear: {line}"
                return "refused", line
            if ended.code:
                return "unexpected", ended.line
            made = Made(source, target)
            why = case.right(made) if case.right else "read, though it has to be refused"
            if why:
                return "wrong", why[:300]
    return "right", ""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="?", type=Path, default=CASES)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file, too")
    args = parser.parse_args()
    ingest._map = map_here
    runtime.session = lambda *_: contextlib.nullcontext()  # type: ignore[assignment]
    outcomes = []
    for case in LIST:
        if not case.name.startswith(args.only):
            continue
        started = time.monotonic()
        try:
            outcome, why = run(case, args.cases / case.name)
        except Exception as error:  # a judge that cannot read the data set: it is not what it has to be
            outcome, why = "wrong", f"{type(error).__name__}: {str(error)[:200]}"
        outcomes.append(Outcome(case.name, outcome, why, round(time.monotonic() - started, 2)))
        print(f"{case.name:<26} {outcome}{': ' + why if why else ''}  ({outcomes[-1].seconds} s)", flush=True)
    counts = Counter(outcome.outcome for outcome in outcomes)
    print(", ".join(f"{counts[name]} {name}" for name in ("right", "refused", "wrong", "unexpected")))
    if args.json:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    return int(counts["wrong"] + counts["unexpected"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
