"""The report: whole, from parts, hostile texts, and without a single request."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from tlray import report
from tlray.config import Config
from tlray.data.schema import IMAGE_TYPE, class_label, dataset_schema
from tlray.errors import HIDDEN, RunError, redact, redact_tree
from tlray.report import view
from tlray.report.run_files import ReportedGoal, RunFiles

EVIL = '<script>alert("x")</script> & $x$'
LABELS = ["dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", EVIL]
SEED = 7


def drawing(i: int, truth: int) -> bytes:
    """A small JPEG that carries a note in its EXIF."""
    rng = np.random.default_rng(i)
    picture = Image.new("RGB", (96, 72), tuple(rng.integers(60, 200, 3).tolist()))
    box = (10 + 4 * truth, 10, 50 + 4 * truth, 60)
    ImageDraw.Draw(picture).ellipse(box, fill=tuple(rng.integers(0, 255, 3).tolist()))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    out = io.BytesIO()
    picture.save(out, format="JPEG", exif=exif)
    return out.getvalue()


def make_data(folder: Path, picture: Callable[[int, int], bytes], truth: list[int]) -> None:
    rows = range(len(truth))
    images = [{"bytes": picture(i, truth[i]), "path": f"{LABELS[truth[i]][:8]}/{i:04d}.jpg"} for i in rows]
    schema = dataset_schema({"label": (pa.int64(), class_label(LABELS))})
    columns: dict[str, Any] = {
        "image": pa.array(images, IMAGE_TYPE),
        "split": ["validation"] * len(truth),
        # Not the order of the evaluation: the report has to look rows up by their id.
        "id": [f"id{i:05d}" for i in rows],
        "width": pa.array([96] * len(truth), pa.int32()),
        "height": pa.array([72] * len(truth), pa.int32()),
        "label": truth,
    }
    (folder / "data").mkdir(parents=True)
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    pq.write_table(table, folder / "data" / "validation-00000-of-00001.parquet", row_group_size=128)
    counts = {"train": {c: 300 - 25 * k for k, c in enumerate(LABELS)}, "validation": {c: 24 for c in LABELS}}
    findings = [
        {"severity": "error", "kind": "exact_across_splits", "count": 2,
         "examples": ["train: a.jpg = test: b.jpg"],
         "message": "2 groups of pictures with same bytes across splits"},
        {"severity": "warning", "kind": "truncated", "count": 1,
         "message": "1 left out: truncated or damaged",
         "examples": [f"{EVIL}.jpg: truncated"]},
        {"severity": "info", "kind": "exif_orientation", "count": 31, "message": "31 pictures turned by EXIF",
         "examples": []},
    ]  # fmt: skip
    left_out = [{"path": f"{EVIL}.jpg", "kind": "truncated", "reason": "image file is truncated"}]
    write(folder / "preflight.json", {
        "source": "photos", "num_files": 3781, "counts": counts, "findings": findings,
        "quarantined": left_out,
    })  # fmt: skip


def curve(goal: float, epochs: int, rate: float, rng: np.random.Generator) -> list[dict[str, float]]:
    found = []
    for e in range(1, epochs + 1):
        done = 1 - math.exp(-e / 2.5)
        found.append({
            "epoch": e, "step": 40 * e, "lr": rate * 0.5 * (1 + math.cos(math.pi * (e - 1) / 10)),
            "train_loss": 2.3 - 1.75 * done + rng.normal(0, 0.02),
            "val_loss": 2.3 - 1.5 * done + rng.normal(0, 0.03),
            "val_accuracy": 0.1 + (goal - 0.1) * done / (1 - math.exp(-4)) + rng.normal(0, 0.006),
            "val_macro_f1": 0.08 + (goal - 0.13) * done + rng.normal(0, 0.006),
            "seconds": 6.1 + rng.normal(0, 0.3),
        })  # fmt: skip
    return found


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def make_run(root: Path, picture: Callable[[int, int], bytes] = drawing, per_class: int = 6) -> Path:
    """A run folder of a search with everything in it, and its data set."""
    rng = np.random.default_rng(SEED)
    truth = np.repeat(np.arange(len(LABELS)), per_class)
    data, run = root / "clothing", root / "runs" / "clothes"
    make_data(data, picture, truth.tolist())
    config = Config(name="clothes", runs=str(root / "runs")).override(
        {"data.uri": str(data), "train.epochs": 10, "input.size": 96}
    )
    write(run / "config.json", config.model_dump(mode="json"))
    trials = []
    for n, (depth, rate) in enumerate((d, r) for d in ("all", 0.6, 0) for r in (3e-3, 1e-3, 3e-4)):
        goal = 0.62 + {"all": 0.0, 0.6: 0.17, 0: 0.12}[depth] - 0.045 * abs(math.log(rate / 1e-3))
        epochs = 10 if goal > 0.68 else int(rng.integers(2, 6))
        points = curve(goal, epochs, rate, rng)
        trials.append({
            "id": f"t{n:02d}", "params": {"model.freeze": depth, "optim.lr": rate},
            "status": "finished" if epochs == 10 else "stopped", "epochs": epochs, "curve": points,
            "best": max(p["val_accuracy"] for p in points), "bundle": None,
            "seconds": epochs * (6 if depth == 0 else 3 if depth == 0.6 else 1.2),
        })  # fmt: skip
    trials.append({"id": "t09", "params": {"model.freeze": 0, "optim.lr": 0.003}, "status": "failed",
                   "epochs": 0, "best": None, "curve": [], "seconds": 0.4, "bundle": None})  # fmt: skip
    best = max(trials, key=lambda t: t["best"] or 0)
    goal_of = {"name": "accuracy", "direction": "max"}
    depths = [
        {
            "depth": depth, "stage": stage, "trials": 3, "epochs": 8.0, "prefix_s": 0.002, "suffix_s": step,
            "kept_bytes": 0, "decision": "recompute", "naive_s": 100.0, "measured_s": 77.0,
            "measured_pictures": 9000.0,
        }
        for depth, stage, step in ((0, "pixels", 0.008), (5, "layer4", 0.0001))
    ]  # fmt: skip
    plan = {
        "rows": 2400,
        "views": 8,
        "depths": depths,
        "naive_s": 200.0,
        "planned_s": 125.0,
        "ceiling_s": 120.0,
    }
    plans = [{**plan, "gain": 1.6, "took_s": 99.0}]
    told = [(1, "stem", 0.31, None), (3, "layer2", 0.52, 0.61), (5, "pooled", 0.66, 0.72)]
    scores = [
        {"backbone": "resnet10t-nano", "depth": d, "stage": s, "linear": v, "logme": v - 1, "best": b}
        for d, s, v, b in told
    ]
    write(run / "trials.json", {
        "goal": goal_of, "trials": trials, "best": best["id"], "plans": plans,
        "scores": scores, "correlation": {"linear": 0.87, "logme": None},
        "extended": {"optim.lr": [0.01], "optim.momentum": []},
        "averages": [{"id": "average-1", "best": None, "of": [best["id"]], "told": ["soup of a, b: kept"]}],
    })  # fmt: skip
    stages = {"read the data": 3.1, "frozen features": 41.0, "search": 148.2, "evaluate": 9.4, "save": 1.2}
    write(run / "metrics.json", {
        "epochs": best["curve"], "stages": [{"name": k, "seconds": v} for k, v in stages.items()],
    })  # fmt: skip
    logits = rng.normal(0, 1, (len(truth), len(LABELS)))
    logits[np.arange(len(truth)), truth] += 3.2
    odd = rng.random(len(truth)) < 0.25
    logits[np.flatnonzero(odd), (truth[odd] + rng.choice([1, 2, 5], odd.sum())) % len(LABELS)] += 3.2
    p_NC = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    order = rng.permutation(len(truth))
    rows = [{
        "id": f"id{i:05d}", "path": f"photos/{LABELS[truth[i]][:8]}/{i:04d}.jpg", "truth": int(truth[i]),
        "prediction": int(p_NC[i].argmax()), "probability": float(p_NC[i].max()),
        "probabilities": p_NC[i].tolist(),
    } for i in order]  # fmt: skip
    right = float(np.mean([r["truth"] == r["prediction"] for r in rows]))
    metrics = {
        "accuracy": right,
        "balanced_accuracy": right - 0.003,
        "macro_f1": right - 0.011,
        "log_loss": 0.613,
    }
    write(run / "evaluation.json", {
        "split": "validation", "metrics": metrics, "standard_errors": {"accuracy": 0.05, "log_loss": 0.03},
        "labels": LABELS, "rows": rows,
    })  # fmt: skip
    write(run / "best" / "manifest.json", {
        "format": 1, "created": "2026-01-05T10:11:12+00:00", "task": {"name": "classification"},
        "backbone": {"name": "resnet10t-nano", "kwargs": {}}, "freeze_depth": 3, "labels": LABELS,
        "preprocess": {"size": [96, 96], "fit": "crop", "interpolation": "bilinear"}, "metrics": metrics,
        "fingerprint": "9f" * 32, "config": {},
        "versions": {"torch": "2.14.1", "ray": "2.60.0", "timm": "1.0.31"},
    })  # fmt: skip
    return run


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text outside script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in ("meta", "link", "img", "path", "use", "rect", "br", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = make_run(tmp_path_factory.mktemp("report"))
    uri = report.write(str(run))
    assert uri == str(run / "report.html")
    return run, (run / "report.html").read_text(encoding="utf-8")


def test_everything_is_in_it(whole: tuple[Path, str]) -> None:
    run, html = whole
    page = Page(html)
    evaluation = json.loads((run / "evaluation.json").read_text())
    titles = (
        "Curves",
        "Trials",
        "Confusion",
        "Classes",
        "Calibration",
        "Worst mistakes",
        "Data",
        "Time",
        "Configuration",
    )
    for title in (*titles, "Versions"):
        assert title in page.text
    assert page.open == []
    assert f"{evaluation['metrics']['accuracy']:.4f}" in page.text
    for said in ("resnet10t-nano", "trial t04", "3.4 min", "6 finished, 3 stopped, 1 failed",
                 "Expected calibration error",
                 "2 groups of pictures with same bytes across splits", "image file is truncated", "2.14.1",
                 "9f9f9f9f", "frozen features", "Cost by freeze depth",
                 "to its end would take 3.3 min, side by side 2.1 min",
                 "Scores beside results", "(Spearman) over 2 places: linear 0.87. At 1"):  # fmt: skip
        assert said in page.text, said
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = [a["href"] for a in page.all("a")]
    assert anchors and all(a.startswith("#") and a[1:] in ids for a in anchors)


def test_trials_are_all_there_best_first_with_the_winner_marked(whole: tuple[Path, str]) -> None:
    run, html = whole
    trials = json.loads((run / "trials.json").read_text())
    table = html[html.index('class="sortable trials"') :]
    table = table[: table.index("</table>")]
    shown = re.findall(r'<td data-v="(t\d\d)">', table)
    best = sorted(trials["trials"], key=lambda t: -(t["best"] or 0))
    assert shown == [t["id"] for t in best]
    assert shown[-1] == "t09"  # failed: no result
    winner = re.search(r'<tr class="win"><td data-v="(t\d\d)">', table)
    assert winner is not None and winner[1] == trials["best"]


def test_how_sure_the_figures_are_is_told(whole: tuple[Path, str]) -> None:
    run, html = whole
    story = json.loads((run / "trials.json").read_text())
    value, error = json.loads((run / "evaluation.json").read_text())["metrics"]["accuracy"], 0.05
    assert f'{value:.4f}<span class="error"> ± {error:.4f}</span>' in html
    assert re.search(r"<dd>0\.6130 ± 0\.0300</dd>", html)
    top = next(t["best"] for t in story["trials"] if t["id"] == story["best"])
    near = [
        t["id"]
        for t in story["trials"]
        if t["best"] and t["id"] != story["best"] and top - t["best"] <= error
    ]
    assert near and re.findall(r'<td data-v="t\d\d">(t\d\d) ≈</td>', html) != []
    assert sorted(re.findall(r'<td data-v="t\d\d">(t\d\d) ≈</td>', html)) == sorted(near)
    assert f"do not tell them apart ({', '.join(near)})" in html
    assert "the winner had an axis&#39; last value: lr 0.01." in html
    assert "Averages of weights: soup of a, b: kept." in html


def test_pictures_are_those_of_the_surest_mistakes(whole: tuple[Path, str]) -> None:
    run, html = whole
    rows = json.loads((run / "evaluation.json").read_text())["rows"]
    wrong = sorted((r for r in rows if r["truth"] != r["prediction"]), key=lambda r: -r["probability"])
    page = Page(html)
    shots = page.all("img")
    assert len(shots) == min(24, len(wrong)) > 5
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", html)
    assert captions[0].split("/")[-1] == wrong[0]["path"].split("/")[-1]
    for shot, row in zip(shots, wrong, strict=False):
        kind, _, data = shot["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        seen = Image.open(io.BytesIO(base64.b64decode(data)))
        assert not seen.getexif()
        source = Image.open(io.BytesIO(drawing(int(row["id"][2:]), row["truth"]))).convert("RGB")
        difference = np.abs(np.asarray(seen.convert("RGB"), float) - np.asarray(source, float)).mean()
        assert difference < 4, "another row's picture"


def test_the_page_makes_no_request_and_runs_no_foreign_script(whole: tuple[Path, str]) -> None:
    _, html = whole
    page = Page(html)
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
        assert "url(" not in attrs.get("style", "").replace("url(#", "")
    assert len(page.all("script")) == 1
    assert [link["rel"] for link in page.all("link")] == ["icon"]
    assert not re.search(r"https?://|@import|url\((?!#)", html.replace("url(&#39;", ""))
    policy = page.all("meta")[1]["content"]
    assert policy.startswith("default-src 'none'")
    script = html[html.index("<script>") + 8 : html.index("</script>")]
    import hashlib

    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_user_text_is_shown_as_text(whole: tuple[Path, str]) -> None:
    _, html = whole
    assert EVIL in Page(html).text  # in a table
    assert "<script>alert" not in html
    assert "$x$" in html


def test_no_credential_is_shown(tmp_path: Path) -> None:
    run = tmp_path / "r"
    config = Config(name="r").model_dump(mode="json")
    config["data"]["uri"] = "s3://user:hunter2@bucket/data?X-Amz-Signature=abcdef123&part=1"
    config["track"] = {"mlflow": "http://bob:pa55@host/", "tensorboard": True, "api_token": "tok-123"}
    config["task"] = {"name": "classification", "note": "AKIAABCDEFGHIJKLMNOP"}
    write(run / "config.json", config)
    report.write(str(run))
    html = (run / "report.html").read_text()
    for secret in ("hunter2", "abcdef123", "pa55", "tok-123", "AKIAABCDEFGHIJKLMNOP"):
        assert secret not in html
    assert HIDDEN in html


def test_redact_leaves_what_is_harmless() -> None:
    harmless = {
        "uri": "s3://bucket/a?part=1",
        "seed": 3,
        "optim": {"lr": 0.1},
        "list": ["a@b", "key=1"],
        "none": None,
    }
    assert redact_tree(harmless) == harmless
    assert redact("see s3://me:pw@b/x") == f"see s3://{HIDDEN}@b/x"


@pytest.mark.parametrize(
    "part", ["config.json", "metrics.json", "trials.json", "evaluation.json", "best/manifest.json"]
)
def test_every_part_is_optional_and_a_damaged_one_is_named(tmp_path: Path, part: str) -> None:
    run = make_run(tmp_path, per_class=1)
    (run / part).unlink()
    report.write(str(run))
    page = Page((run / "report.html").read_text())
    assert page.open == [] and "Versions" in page.text
    (run / part).write_text('{"cut of')
    report.write(str(run))
    assert part in Page((run / "report.html").read_text()).text.split("Left out of this report")[1]


def test_a_plain_training_has_no_trials(tmp_path: Path) -> None:
    run = make_run(tmp_path, per_class=1)
    (run / "trials.json").unlink()
    report.write(str(run))
    html = (run / "report.html").read_text()
    assert 'id="trials"' not in html and 'id="curves"' in html
    assert "adamw" in Page(html).text


def test_data_that_is_gone_leaves_a_report_without_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path, per_class=2)
    (tmp_path / "clothing").rename(tmp_path / "moved")
    report.write(str(run))
    page = Page((run / "report.html").read_text())
    assert page.all("img") == [] and "no picture" in page.text
    assert "pictures:" in page.text.split("Left out of this report")[1]


def test_no_run_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nowhere: no run lies here; accepted: a run's folder"):
        report.write(str(tmp_path / "nowhere"))


def test_freeze_settings_are_ordered_by_depth() -> None:
    values: list[Any] = ["all", 3, 0.2, "stage2", 0, 0.8]
    assert sorted(values, key=lambda v: view.freeze_order(v, 5)) == [0, 0.2, 3, 0.8, "stage2", "all"]


def test_changed_settings_name_their_default() -> None:
    config = Config().override({"optim.lr": 0.01, "task.label_smoothing": 0.2}).model_dump(mode="json")
    table = view.changed(config)
    assert table is not None
    assert table.rows == [["task.label_smoothing", "0.2", None], ["optim.lr", "0.01", "auto"]]
    assert view.changed(Config().model_dump(mode="json")) is None


def test_curves_of_numbers_and_of_objects_are_both_understood() -> None:
    trials = [
        {"id": 1, "params": {}, "status": "finished", "best": 0.8, "curve": [0.5, 0.8]},
        {
            "id": 2,
            "params": {},
            "status": "stopped",
            "best": 0.4,
            "curve": [{"epoch": 1, "val_accuracy": 0.4}],
        },
    ]
    run = RunFiles("r", trials={"trials": trials, "best": 1}, goal=ReportedGoal("accuracy", "max"))
    sections = view.curves(run)
    assert [s.title for s in sections] == ["Accuracy"]
    assert b">winner<" in sections[0].svgs[0] and b">stopped<" in sections[0].svgs[0]
    assert [row.spark != "" for row in view.trials(run).rows] == [True, False]  # type: ignore[union-attr]


def test_the_data_are_counted_in_pictures_whatever_their_labels() -> None:
    counts = {"train": {"red": 30, "white": 4}, "test": {"red": 9}}
    found = view.data({"num_files": 5, "taken": {"train": 3, "test": 1}, "counts": counts})
    assert found is not None and found.caption == "5 pictures listed, 4 taken: train 3, test 1."
    assert [s.title for s in found.tables] == ["Labels by class"]
    older = view.data({"num_files": 43, "counts": counts})
    assert older is not None and older.caption == "43 pictures listed, 43 taken: train 34, test 9."
