"""The page that shows pictures with the labels that were understood, and the survey before any is read."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import toys
from tests.roundtrip.runner import map_here
from tlray.cli import main
from tlray.ingestion import ingest, preview


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "_map", map_here)


def classes(folder: Path, number: int = 40) -> str:
    for n in range(number):
        place = folder / ("<b>blobs" if n % 2 else "stripes") / f"{n}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(toys.picture(n % 2, n, (200, 150)))
    return str(folder)


def scenes(folder: Path, number: int = 8) -> str:
    """Pictures of one object each, with YOLO's boxes."""
    for n in range(number):
        data, (x, y, w, h), _ = toys.scene(n % 3, n)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{n}.jpg").write_bytes(data)
        line = f"{n % 3} {(x + w / 2) / 96} {(y + h / 2) / 80} {w / 96} {h / 80}\n"
        (folder / "images" / f"{n}.txt").write_text(line)
    (folder / "classes.txt").write_text("\n".join(toys.LABELS) + "\n")
    return str(folder)


def pictures(page: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    ]


def test_two_dozen_pictures_of_each_split_with_counts_and_findings(tmp_path: Path) -> None:
    source = classes(tmp_path / "in")
    (tmp_path / "in" / "stripes" / "broken.jpg").write_bytes(b"no picture")
    result = ingest.ingest(source, str(tmp_path / "out"), max_bad_share=0.5)
    page = Path(result.preview).read_text(encoding="utf-8")
    shown = [min(preview.NUM_PICTURES, number) for number in result.splits.values()]
    assert len(pictures(page)) == sum(shown) and max(shown) == 24
    assert "&lt;b&gt;blobs" in page and "<b>blobs" not in page
    assert "stripes/broken.jpg" in page and "Layout: folder" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing is fetched from elsewhere


def test_boxes_are_drawn_where_they_were_read(tmp_path: Path) -> None:
    result = ingest.ingest(scenes(tmp_path / "in"), str(tmp_path / "out"), validation=0, test=0)
    page = Path(result.preview).read_text(encoding="utf-8")
    plain = {
        n: np.asarray(Image.open(tmp_path / "in" / "images" / f"{n}.jpg").convert("RGB")) for n in range(8)
    }
    order = [int(n) for n in re.findall(r"<small>images/(\d+)\.jpg", page)]
    for n, drawn in zip(order, pictures(page), strict=True):
        changed = np.abs(np.asarray(drawn.convert("RGB")).astype(int) - plain[n]).max(2) > 60
        x, y, w, h = (int(v) for v in toys.scene(n % 3, n)[1])
        edge = (
            changed[y + h // 2, max(0, x - 2) : x + 3].any()
            and changed[y + h - 3 : y + h + 3, x + w // 2].any()
        )
        assert edge, f"{n}: no box around {x}, {y}, {w} x {h}"


def test_a_page_of_large_pictures_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "MOST_BYTES", 200_000)
    rng = np.random.default_rng(0)
    for n in range(60):
        place = tmp_path / "in" / str(n % 2) / f"{n}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), np.uint8)).save(place, quality=95)
    result = ingest.ingest(str(tmp_path / "in"), str(tmp_path / "out"))
    assert Path(result.preview).stat().st_size <= 200_000


def test_a_dry_run_reads_no_picture(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scenes(tmp_path / "in")
    for file in Path(source).glob("images/*.jpg"):
        file.write_bytes(b"")  # whoever looks into it is lost
    main(["ingest", source, "--dry-run"])
    out = capsys.readouterr().out
    assert "Layout: yolo (8 .txt of YOLO for 8 pictures); task: detection" in out
    assert re.search(r"blob +3\b", out) and re.search(r"all +8\b", out)
    main(["ingest", source, "--dry-run", "--json"])
    assert '"task": "detection"' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_without_a_target_there_is_the_dry_run_only(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ingest", scenes(tmp_path / "in")])
    assert ended.value.code == 2
    assert "DST is missing; accepted: tlray ingest SRC DST" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--one-class"]])
def test_a_single_class_is_refused_unless_it_is_meant(
    tmp_path: Path, options: list[str], capsys: Any
) -> None:
    source = classes(tmp_path / "in", 2)
    (tmp_path / "in" / "stripes" / "0.jpg").unlink()
    (tmp_path / "in" / "stripes").rmdir()
    command = ["ingest", source, "--dry-run", *options]
    if options:
        main(command)
        assert "task: classification" in capsys.readouterr().out
        return
    with pytest.raises(SystemExit):
        main(command)
    assert "a single class '<b>blobs'" in capsys.readouterr().err
