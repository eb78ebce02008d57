"""Pictures with masks through both passes of ingest, in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.roundtrip.runner import map_here
from tlray.data.dataset import Dataset
from tlray.data.image import decode_mask, encode_mask
from tlray.errors import DataError
from tlray.ingestion import formats
from tlray.ingestion import ingest as module
from tlray.ingestion.formats import masks as layout
from tlray.ingestion.formats.base import Index, table
from tlray.ingestion.ingest import IngestResult, ingest

CASES = Path(__file__).parents[3] / "shared" / "cases"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in this process what Ray's tasks do."""
    monkeypatch.setattr(module, "_map", map_here)
    monkeypatch.setattr(formats, "names", lambda: ["folder", "masks"])


def ids(target: Path) -> dict[str, np.ndarray]:
    """Path -> mask of every row of a data set, all splits."""
    data, found = Dataset.open(str(target)), {}
    for split in data.splits:
        for row in data.rows(split, range(data.num_rows(split))).to_pylist():
            mask = decode_mask(row["mask"]["bytes"])
            assert mask.shape == (row["height"], row["width"])
            found[row["image"]["path"]] = mask
    return found


def kinds(result: IngestResult) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in result.report.findings}


def photo(size: tuple[int, int], seed: int, **settings: Any) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", **settings)
    return out.getvalue()


def lay(root: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


@pytest.mark.parametrize(
    ("case", "names", "seen"),
    [
        ("03-mask-0-255", ["background", "object"], {0, 1}),
        ("04-mask-suffix", ["0", "1"], {0, 1}),
        ("05b-mask-grey-as-rgb", ["0", "1"], {0, 1}),
        ("90-mask-2bit-grey", ["0", "1", "2", "3"], {0, 1, 2, 3}),
    ],
)
@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_cases(tmp_path: Path, case: str, names: list[str], seen: set[int]) -> None:
    result = ingest(str(CASES / case), str(tmp_path / "data"))
    assert result.labels == {"mask": names}
    found = ids(tmp_path / "data")
    assert len(found) == len(list((CASES / case / "images").iterdir()))
    assert {int(v) for mask in found.values() for v in np.unique(mask)} == seen


@pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")
def test_smoothed_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="6 of 6 masks hold grey values along their edges that are no classes"
    ):
        ingest(str(CASES / "07-mask-antialiased"), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_plain_masks_keep_their_bytes(tmp_path: Path) -> None:
    files = {}
    for n in range(4):
        mask = np.zeros((30, 40), np.uint8)
        mask[n : n + 9, 5:20] = 1 + n % 2
        files |= {f"images/{n}.jpg": photo((40, 30), n), f"masks/{n}.png": encode_mask(mask)}
    source = lay(tmp_path / "in", files)
    ingest(source, str(tmp_path / "data"), validation=0, test=0)
    data = Dataset.open(str(tmp_path / "data"))
    for row in data.rows("train", range(4)).to_pylist():
        assert row["mask"]["bytes"] == files[row["mask"]["path"]]
    ingest(source, str(tmp_path / "small"), validation=0, test=0, max_side=20)
    for path, mask in ids(tmp_path / "small").items():
        assert mask.shape == (15, 20) and set(np.unique(mask)) == {0, 1 + int(path[7]) % 2}


def test_colours_sizes_and_turns(tmp_path: Path) -> None:
    """Masks in colours: one as it should be, one drawn before the camera's turn, one of half the size, one of
    another shape; a quarter of the picture, at its top left as stored, is car."""
    exif = Image.Exif()
    exif[0x0112] = 6
    small = np.zeros((30, 40), np.uint8)
    small[:15, :20] = 1
    colours = np.array([(0, 0, 0), (128, 0, 0)], np.uint8)

    def mask(ids_HW: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(colours[ids_HW]).save(out, "PNG")
        return out.getvalue()

    files = {"labelmap.txt": b"background:0,0,0::\ncar:128,0,0::\n"}
    for name, ids_HW, size, settings in (
        ("plain", small, (40, 30), {}),
        ("turned", small, (40, 30), {"exif": exif}),
        ("half", small, (80, 60), {}),
        ("other", small, (40, 40), {}),
        ("square", np.kron(small[:30, :30], np.ones((2, 2), np.uint8)), (60, 60), {"exif": exif}),
    ):
        files |= {f"images/{name}.jpg": photo(size, len(name), **settings), f"masks/{name}.png": mask(ids_HW)}
    result = ingest(
        lay(tmp_path / "in", files), str(tmp_path / "data"), max_bad_share=0.5, validation=0, test=0
    )
    assert result.labels == {"mask": ["background", "car"]}
    found = ids(tmp_path / "data")
    assert found["images/plain.jpg"].tolist() == small.tolist()
    assert found["images/turned.jpg"].tolist() == np.rot90(small, -1).tolist()
    assert found["images/half.jpg"].tolist() == np.kron(small, np.ones((2, 2))).tolist()
    assert [q["kind"] for q in result.report.quarantined] == ["mask_size"]
    assert {k: v for k, v in kinds(result).items() if k.startswith("mask")} == {
        "mask_size": "warning", "mask_turned": "warning", "mask_scaled": "warning",
    }  # fmt: skip
    # Nothing says it of a square, so it follows the other turned picture.
    square = np.kron(small[:30, :30], np.ones((2, 2)))
    assert found["images/square.jpg"].tolist() == np.rot90(square, -1).tolist()


def test_a_mask_s_own_turn_is_applied_once(tmp_path: Path) -> None:
    """Masks that carry the tag of their picture, as PNG and as TIFF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {}
    for n, kind in enumerate(("PNG", "TIFF", "PNG", "TIFF")):
        ids_HW = np.zeros((30, 40), np.uint8)
        ids_HW[: 15 + n, :20] = 1
        out = io.BytesIO()
        Image.fromarray(ids_HW).save(out, kind, exif=exif)
        files[f"images/{n}.jpg"] = photo((40, 30), n, exif=exif)
        files[f"masks/{n}.{kind.lower()}"] = out.getvalue()
    result = ingest(lay(tmp_path / "in", files), str(tmp_path / "data"), validation=0, test=0)
    for path, mask in ids(tmp_path / "data").items():
        truth = np.zeros((30, 40), np.uint8)
        truth[: 15 + int(path[7]), :20] = 1
        assert mask.tolist() == np.rot90(truth, -1).tolist()
    assert not {"mask_turned", "exif_doubtful"} & set(kinds(result))


def test_one_mask_an_object(tmp_path: Path) -> None:
    files = {}
    for n in range(3):
        files[f"id{n}/images/id{n}.png"] = photo((40, 30), n)
        for k in range(2):
            mask = np.zeros((30, 40), np.uint8)
            mask[3 : 9 + n, 20 * k : 20 * k + 9] = 255
            files[f"id{n}/masks/object{k}.png"] = encode_mask(mask)
    result = ingest(lay(tmp_path / "in", files), str(tmp_path / "data"), validation=0, test=0)
    assert result.labels == {"mask": ["background", "object"]} and result.splits == {"train": 3}
    found = ids(tmp_path / "data")
    assert int(found["id1/images/id1.png"].sum()) == 2 * 9 * 7


def test_outlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As formats with outlines hand them over, drawn on pictures of the size that the label file states."""
    source = lay(tmp_path / "in", {f"images/{n}.jpg": photo((40, 30), n) for n in range(3)})
    square = {"id": 1, "polygons": [[10, 10, 20, 10, 20, 20, 10, 20]]}

    def index(listing: Any, column: str) -> Index:
        rows = [
            {"path": f"images/{n}.jpg", "split": None, "stated_width": 80, "stated_height": 60,
             "mask": {"paths": None, "shapes": json.dumps([square])}}
            for n in range(3)
        ]  # fmt: skip
        return Index(table(rows, "mask"), names={"mask": ["nothing", "square"]})

    monkeypatch.setattr(layout, "index", index)
    result = ingest(source, str(tmp_path / "data"), format="masks", validation=0, test=0)
    assert result.labels == {"mask": ["nothing", "square"]} and kinds(result)["mask_scaled"] == "warning"
    (mask, *_) = ids(tmp_path / "data").values()
    expected = np.zeros((30, 40), np.uint8)
    expected[5:10, 5:10] = 1
    assert mask.tolist() == expected.tolist()


def test_what_is_left_over_is_reported(tmp_path: Path) -> None:
    files = {}
    for n in range(6):
        mask = np.zeros((30, 40), np.uint8)
        mask[n : n + 9, 5:20] = 1
        files |= {f"images/{n}.jpg": photo((40, 30), n), f"masks/{n}.png": encode_mask(mask)}
    del files["masks/5.png"]
    files["masks/9.png"] = files["masks/0.png"]
    result = ingest(lay(tmp_path / "in", files), str(tmp_path / "data"))
    assert {"picture_without_mask", "mask_without_picture"} <= set(kinds(result))
    text = (tmp_path / "data" / "preflight.txt").read_text()
    assert "1 pictures without mask (left out)" in text and "images/5.jpg" in text
