"""Which files below a folder are pictures."""

from __future__ import annotations

from pathlib import Path

from tlray.cli import models
from tlray.data.image import EXTENSIONS
from tlray.inference import inputs
from tlray.ingestion.formats.listing import OTHER_PICTURES, Listing


def test_predict_takes_the_pictures_that_ingest_takes(tmp_path: Path) -> None:
    assert ".ppm" in EXTENSIONS
    for ending in EXTENSIONS:
        for name in (f"small{ending}", f"sub/LARGE{ending.upper()}"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
    (tmp_path / "notes.txt").touch()
    ingested = Listing.open(str(tmp_path)).pictures
    assert len(ingested) == 2 * len(EXTENSIONS)
    assert inputs.find([str(tmp_path)], ()).paths == ingested
    shown = [Path(path).relative_to(tmp_path).as_posix() for path in models._pictures([str(tmp_path)])]
    assert sorted(shown) == ingested


def test_pictures_that_nobody_can_open_are_only_reported_by_ingest(tmp_path: Path) -> None:
    assert not set(EXTENSIONS) & set(OTHER_PICTURES)
    for name in ("a.jpg", "b.heic"):
        (tmp_path / name).touch()
    assert inputs.find([str(tmp_path)], ()).paths == ["a.jpg"]
    assert Listing.open(str(tmp_path)).pictures == ["a.jpg", "b.heic"]
