"""Plots: the numbers that they show, and SVG that is small, well formed, safe and reproducible."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlray.figures import charts
from tlray.figures.charts import Line, Point

EVIL = '</text><script>alert(1)</script> <!-- $\\frac$ & "q" #1c2127 d="1.23456"'


def texts(svg: bytes) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_confusion_matrix_prints_every_count_that_is_not_zero() -> None:
    svg = charts.confusion_matrix([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 0], ["a", "b", "c"])
    shown = texts(svg)
    assert sorted(t for t in shown if t.isdigit()) == ["1", "1", "2", "2"]
    assert {"a", "b", "c", "true", "predicted"} <= set(shown)
    assert len(svg) < 8_000


def test_many_classes_give_the_most_confused_pairs() -> None:
    labels = [f"class {i}" for i in range(100)]
    truth = list(range(100)) + [3] * 7
    svg = charts.confusion_matrix(truth, list(range(100)) + [90] * 7, labels)
    assert "class 3 → class 90" in texts(svg)
    assert any(t.startswith("7") and "88%" in t for t in texts(svg))
    assert len(svg) < 4_000
    assert "no mistakes" in texts(charts.confusion_matrix(truth, truth, labels))


def test_thirty_full_classes_stay_small() -> None:
    pairs = [(i, j) for i in range(30) for j in range(30)]
    svg = charts.confusion_matrix(
        [i for i, _ in pairs], [j for _, j in pairs], [f"label {i}" for i in range(30)]
    )
    assert texts(svg).count("1") == 900
    assert len(svg) < 300_000


def test_per_class_agrees_with_counting_by_hand() -> None:
    a, b, c = charts.per_class([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], ["a", "b", "never"])
    assert a == {"label": "a", "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3}
    assert b == {"label": "b", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert c == {"label": "never", "precision": None, "recall": None, "f1": None, "support": 0}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_per_class_is_that_of_scikit_learn_for_any_classes_that_occur(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    truth, predicted = map(list, zip(*pairs, strict=True))
    ours = charts.per_class(truth, predicted, ["a", "b", "c", "d"])
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=range(4), zero_division=np.nan
    )
    for i, row in enumerate(ours):
        assert row["support"] == support[i]
        for name, theirs in (("precision", precision), ("recall", recall), ("f1", f1)):
            value = math.nan if row[name] is None else row[name]
            assert value == pytest.approx(theirs[i], nan_ok=True), name


def test_calibration_error_is_the_weighted_gap() -> None:
    # Two bins: 3 rows at 0.95, two right: gap 0.95 - 2/3; 1 row at 0.55, right: gap 0.45.
    _, ece = charts.reliability([0.95, 0.95, 0.95, 0.55], [True, True, False, True])
    assert ece == pytest.approx(0.75 * (0.95 - 2 / 3) + 0.25 * 0.45)
    _, none = charts.reliability([1.0, 1.0], [True, True])
    assert none == 0.0
    assert math.isnan(charts.reliability([], [])[1])


def test_calibration_error_of_a_calibrated_model_is_small() -> None:
    rng = np.random.default_rng(0)
    p_N = rng.uniform(0.1, 1, 20_000)
    assert charts.reliability(p_N.tolist(), (rng.random(20_000) < p_N).tolist())[1] < 0.015
    assert charts.reliability((p_N**0.25).tolist(), (rng.random(20_000) < p_N).tolist())[1] > 0.15


def test_curves_name_each_kind_once_and_survive_gaps() -> None:
    lines = [
        Line("winner", [0.1, None, 0.7, math.nan, 0.8]),
        Line("finished", [0.1, 0.5], kind="other"),
        Line("stopped", [0.1], kind="faded"),
        Line("stopped", [0.2], kind="faded"),
        Line("empty", [None, math.inf]),
    ]
    shown = texts(charts.curves(lines, "accuracy"))
    assert [shown.count(name) for name in ("winner", "finished", "stopped", "empty")] == [1, 1, 1, 0]
    assert texts(charts.curves([], "nothing"))


def test_a_diverged_trial_does_not_flatten_the_others() -> None:
    calm = Line("winner", [2.0, 1.0, 0.5])
    shown = texts(charts.curves([calm, Line("stopped", [2.0, 1e6], kind="faded")], "loss"))
    ticks = [float(t) for t in shown if t.replace(".", "").isdigit()]
    assert max(ticks) < 10


def test_heatmap_prints_the_best_of_each_cell() -> None:
    points = [
        Point(1e-3, 0, 0.7), Point(1e-3, 0, 0.75), Point(3e-3, 0, 0.6, stopped=True), Point(1e-3, "all", 0.5),
        Point(3e-3, "all", math.nan),
    ]  # fmt: skip
    shown = texts(charts.heatmap(points, "learning rate", "frozen", "accuracy"))
    assert {"0.750 ×2", "(0.600)", "0.500", "0.001", "0.003", "all", "0"} <= set(shown)  # noqa: RUF001
    assert "0.500" in texts(charts.heatmap(points, "learning rate", "frozen", "loss", maximise=False))


def test_many_learning_rates_become_dots_on_a_logarithmic_axis() -> None:
    points = [Point(10 ** (-4 + k / 10), "all" if k % 2 else 0, 0.5 + k / 100) for k in range(20)]
    shown = texts(charts.heatmap(points, "learning rate", "frozen", "accuracy"))
    assert [f"{p.value:.3f}" in shown for p in points] == [True] * 20
    assert "0.0001" not in shown


def test_empty_results_still_draw() -> None:
    assert texts(charts.heatmap([], "x", "y", "v"))
    assert charts.stage_bar([]).startswith(b"<svg")
    assert charts.classification([], [], [], ["a"]) == []


def test_stage_bar_says_time_and_share() -> None:
    shown = texts(charts.stage_bar([("read", 30.0), ("train", 90.0)]))
    assert "read" in shown and any("1.5 min" in t and "75%" in t for t in shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (42, "42 s"), (59.7, "1.0 min"),
     (738, "12.3 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"),
     (math.nan, "?")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert charts.duration(seconds) == text


def test_svg_is_safe_stable_and_takes_the_page_s_colours() -> None:
    labels = [EVIL, "衬衫 рубашка", "$a$"]
    first = charts.confusion_matrix([0, 1, 2, 2], [0, 1, 1, 2], labels)
    assert first == charts.confusion_matrix([0, 1, 2, 2], [0, 1, 1, 2], labels)
    assert b"<script" not in first and b"<metadata" not in first and b"<style" not in first
    assert b"var(--blue,#0072b2)" in first
    assert any(t.startswith("</text><script>alert(1)") for t in texts(first))
    assert {"衬衫 рубашка", "$a$"} <= set(texts(first))
    long = [f'#1c2127 d="1.2345{i}' for i in range(2)]
    assert set(long) <= set(texts(charts.confusion_matrix([0, 1], [1, 0], long)))


def test_ids_of_two_plots_never_meet() -> None:
    def ids(svg: bytes) -> set[str]:
        return {node.attrib["id"] for node in ET.fromstring(svg).iter() if "id" in node.attrib}

    one, two = charts.stage_bar([("a", 1.0)]), charts.curves([Line("a", [1, 2]), Line("b", [2, 1])], "y")
    assert ids(two) and not ids(one) & ids(two)


def test_drawing_leaves_no_global_state(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import matplotlib

    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # other libraries load it
    before = dict(matplotlib.rcParams)
    charts.stage_bar([("a", 1.0)])
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules


def test_classification_sections_say_what_went_wrong() -> None:
    truth, predicted = [1, 1, 0, 0, 0, 0], [1, 0, 0, 1, 1, 0]
    sections = charts.classification(truth, predicted, [0.9, 0.6, 0.8, 0.7, 0.99, 0.5], ["dog", "cat"])
    assert [s.title for s in sections] == ["Confusion", "Classes", "Calibration", "Worst mistakes"]
    confusion, classes, _, worst = sections
    assert confusion.tables[0].rows[0] == ["dog", "cat", 2, 0.5]
    weakest_first = [(row[0], row[3], row[4]) for row in classes.tables[0].rows]
    assert weakest_first == [("cat", 0.4, 2), ("dog", 4 / 7, 4)]
    assert [shot.row for shot in worst.shots] == [4, 3, 1]
    assert worst.shots[0].lines == [("truth", "dog"), ("predicted", "cat"), ("probability", "0.990")]
