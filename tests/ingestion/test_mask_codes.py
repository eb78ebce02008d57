"""What the values of masks mean, decided from all of them."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.data import masks
from tlray.data.image import encode_mask
from tlray.data.masks import AS_STORED, MaskCode
from tlray.errors import DataError
from tlray.ingestion import mask_codes, preflight
from tlray.ingestion.mask_codes import Decision


def drawn(*values: int, kind: type = np.uint8) -> np.ndarray:
    """A square (40 x 40 px) in stripes of these values."""
    return np.repeat(np.array([values] * 40, kind), -(-40 // len(values)), axis=1)[:, :40].copy()


def encoded(ids_HW: np.ndarray, kind: str = "PNG") -> bytes:
    if ids_HW.dtype == np.uint8 and ids_HW.ndim == 2 and kind == "PNG":
        return encode_mask(ids_HW)
    out = io.BytesIO()
    Image.fromarray(ids_HW).save(out, kind)
    return out.getvalue()


def rgb(ids_HW: np.ndarray, colours: list[tuple[int, int, int]]) -> bytes:
    return encoded(np.array(colours, np.uint8)[ids_HW])


def palette(ids_HW: np.ndarray, colours: list[int]) -> bytes:
    picture, out = Image.fromarray(ids_HW, "P"), io.BytesIO()
    picture.putpalette(colours)
    picture.save(out, "PNG")
    return out.getvalue()


def decide(files: list[bytes], names: list[str] | None = None, given: MaskCode | None = None) -> Decision:
    rows = [
        {"path": f"{n}.jpg", "kind": None, "reason": None}
        | preflight.inspect_mask([data], None, given or AS_STORED, (40, 40))
        for n, data in enumerate(files)
    ]
    text = [pa.field(name, pa.string()) for name in ("path", "kind", "reason")]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*text, *preflight.INSPECTED_MASK]))
    return mask_codes.decide("streets", table, names, given)


def kinds(found: Decision) -> dict[str, str]:
    return {finding.kind: finding.severity for finding in found.findings}


def ids(found: Decision) -> list[list[int] | None]:
    values: list[list[int] | None] = found.rows["mask_values"].to_pylist()
    return values


def test_ids_stand_as_they_are() -> None:
    found = decide([encoded(drawn(0, 1, 2)), encoded(drawn(0, 3))])
    assert found.code == AS_STORED and found.names == ["0", "1", "2", "3"] and found.findings == []
    assert ids(found) == [[0, 1, 2], [0, 3]]
    assert sum(found.rows["mask_counts"].to_pylist()[0]) == 1600


def test_black_and_white() -> None:
    found = decide([encoded(drawn(0, 255)), encoded(drawn(0)), encoded(drawn(255))])
    assert found.names == ["background", "object"] and ids(found) == [[0, 1], [0], [1]]
    assert kinds(found) == {"mask_black_and_white": "info"}
    assert "255 as 'object'" in found.findings[0].message
    assert decide([encoded(drawn(0, 255))], ["road"]).names == ["background", "road"]
    assert decide([encoded(drawn(0, 255))], ["ground", "road"]).names == ["ground", "road"]
    sixteen = decide([encoded(drawn(0, 65535, kind=np.uint16))])
    assert sixteen.names == ["background", "object"] and ids(sixteen) == [[0, 1]]


def test_255_beside_ids_is_unknown_and_its_share_is_said() -> None:
    found = decide([encoded(drawn(0, 1, 2, 255))])
    assert found.names == ["0", "1", "2"] and kinds(found) == {"unknown_pixels": "info"}
    assert "25.0% of all mask pixels are unknown" in found.findings[0].message
    assert kinds(decide([encoded(drawn(0, 1, 255, 255, 255))])) == {"unknown_pixels": "warning"}


@pytest.mark.parametrize(("value", "kind", "file"), [(65535, np.uint16, "PNG"), (-1, np.int32, "TIFF")])
def test_other_ways_to_write_unknown(value: int, kind: type, file: str) -> None:
    found = decide([encoded(drawn(0, 1, value, kind=kind), file)])
    assert ids(found) == [[0, 1, 255]] and found.names == ["0", "1"]
    assert kinds(found) == {"mask_sentinel": "info", "unknown_pixels": "info"}


@pytest.mark.parametrize("values", [[255], [0], [7], [1, 255]])
def test_fewer_than_two_classes_are_refused(values: list[int]) -> None:
    with pytest.raises(DataError, match=r"fewer than two classes: .*; accepted: two classes or more"):
        decide([encoded(drawn(*values))] * 3)


def test_0_and_1_in_some_0_and_255_in_others() -> None:
    with pytest.raises(DataError, match=r"1 masks hold 0 and 1 \(that of 0.jpg\), 2 others 0 and 255"):
        decide([encoded(drawn(0, 1)), encoded(drawn(0, 255)), encoded(drawn(0, 255))])


def test_grey_levels() -> None:
    found = decide([encoded(drawn(0, 100, 200)), encoded(drawn(0))])
    assert found.names == ["0", "100", "200"] and ids(found) == [[0, 1, 2], [0]]
    assert kinds(found) == {"mask_levels": "warning"}
    for values in ([0, 128, 255], [0, 85, 170, 255]):
        with pytest.raises(DataError, match=r"grey values 0 \(.*classes.txt \(`value name` a line\)"):
            decide([encoded(drawn(*values))])
    named = decide([encoded(drawn(0, 128, 255))], ["sky", "road", "car"])
    assert named.names == ["sky", "road", "car"] and ids(named) == [[0, 1, 2]]
    assert kinds(named) == {"mask_levels": "warning"}
    table = decide([encoded(drawn(0, 128, 255))], ["sky", "road"], MaskCode(values={0: 0, 128: 1}))
    assert ids(table) == [[0, 1, 255]]


def test_ids_above_the_names_are_left_out_by_name() -> None:
    found = decide([encoded(drawn(0, 1)), encoded(drawn(0, 2))], ["ground", "dog"])
    assert found.rows["kind"].to_pylist() == [None, "mask_values"]
    assert found.rows["reason"][1].as_py() == (
        "id 2 in its mask, of 2 class names; accepted: 0 (ground) to 1 (dog), 255 for unknown"
    )
    found = decide([encoded(drawn(0, 1)), encoded(drawn(0, 300, kind=np.uint16))])
    assert found.rows["reason"][1].as_py() == "value 300 in its mask; accepted: class ids from 0 to 255"


def test_a_name_for_the_object_alone() -> None:
    found = decide([encoded(drawn(0, 1))], ["road"])
    assert found.names == ["background", "road"] and kinds(found) == {"mask_names": "info"}


# ---- smoothed


def smoothed(top: int, kind: str = "PNG", low: int = 0) -> bytes:
    ids_HW = np.full((60, 60), low, np.uint8)
    ids_HW[10:40, 15:50] = top
    soft = Image.fromarray(ids_HW).resize((90, 90), Image.Resampling.BILINEAR)
    return encoded(np.asarray(soft), kind)


def test_smoothed_black_and_white_is_cut_at_half() -> None:
    for kind in ("PNG", "JPEG"):
        found = decide([smoothed(255, kind)] * 3)
        assert found.names == ["background", "object"] and found.code.threshold == 128
        assert ids(found) == [[0, 1]] * 3 and kinds(found) == {"mask_smoothed": "warning"}


@pytest.mark.parametrize("files", [[smoothed(200)], [smoothed(20)], [smoothed(255, low=90)]])
def test_other_smoothed_masks_are_refused_with_counts(files: list[bytes]) -> None:
    with pytest.raises(DataError, match=r"1 of 1 masks hold grey values along their edges .* of them rare"):
        decide(files)


def test_one_smoothed_mask_among_many_is_left_out() -> None:
    found = decide([*[encoded(drawn(0, 1, 2))] * 4, smoothed(200)])
    assert found.rows["kind"].to_pylist() == [None] * 4 + ["mask_smoothed"]
    assert found.names == ["0", "1", "2"]


def test_thin_borders_are_no_smoothing() -> None:
    """A border of one pixel, id 1, between ground and inside: as nuclei are often kept."""
    ids_HW = np.zeros((40, 40), np.uint8)
    ids_HW[10:30, 10:30] = 1
    ids_HW[11:29, 11:29] = 2
    assert decide([encoded(ids_HW)]).names == ["0", "1", "2"]


def test_many_ids_are_no_smoothing() -> None:
    rng = np.random.default_rng(0)
    files = [
        encoded(np.kron(rng.integers(0, 150, (8, 8)), np.ones((5, 5))).astype(np.uint8)) for _ in range(20)
    ]
    assert len(decide(files).names) == 150


def test_jpeg_does_not_keep_ids() -> None:
    found = decide([encoded(drawn(0, 3)), encoded(drawn(0, 1, 2), "JPEG")])
    assert found.rows["kind"].to_pylist() == [None, "mask_jpeg"]
    assert ids(decide([encoded(drawn(0, 255), "JPEG")] * 2)) == [[0, 1]] * 2
    with pytest.raises(DataError, match="1 of 1 masks hold grey values"):
        decide([encoded(drawn(0, 100, 200), "JPEG")])


# ---- colours and palettes

BLACK, RED, GREEN, BORDER = (0, 0, 0), (128, 0, 0), (0, 128, 0), (224, 224, 192)
TABLE = MaskCode(colours={0: 0, 0x800000: 1, 0x008000: 2})
NAMES = ["ground", "car", "tree"]


def test_colours_by_their_table() -> None:
    files = [rgb(drawn(0, 1, 2, 3), [BLACK, RED, GREEN, BORDER]), rgb(drawn(0), [BLACK])]
    found = decide(files, NAMES, TABLE)
    assert found.names == NAMES and ids(found) == [[0, 1, 2, 255], [0]]
    assert kinds(found) == {"unknown_pixels": "info"}
    read = masks.read([files[0]], None, found.code, (40, 40))
    assert read.tolist() == np.where(drawn(0, 1, 2, 3) == 3, 255, drawn(0, 1, 2, 3)).tolist()


def test_a_table_of_colours_beside_masks_of_ids() -> None:
    assert ids(decide([encoded(drawn(0, 1, 2))], NAMES, TABLE)) == [[0, 1, 2]]
    colours = [0, 0, 0, 0, 128, 0, 128, 0, 0]  # green before red, unlike the table
    assert ids(decide([palette(drawn(0, 1), colours)], NAMES, TABLE)) == [[0, 2]]
    binary = MaskCode(colours={0: 0, 0xFFFFFF: 1})
    assert ids(decide([encoded(drawn(0, 255))], ["no", "yes"], binary)) == [[0, 1]]


def test_colours_in_no_table() -> None:
    blue = drawn(*[0] * 19, 3)
    found = decide([rgb(blue, [BLACK, RED, GREEN, (0, 0, 9)]), rgb(drawn(0, 1), [BLACK, RED])], NAMES, TABLE)
    assert kinds(found) == {"mask_colours": "warning", "unknown_pixels": "info"}
    assert found.findings[0].examples == ["(0, 0, 9) 2.5%"]
    with pytest.raises(DataError, match=r"50.0% of the masks' pixels .*: \(0, 0, 9\) 50.0%; accepted"):
        decide([rgb(drawn(0, 1), [BLACK, (0, 0, 9)])], NAMES, TABLE)


def test_colours_without_a_table() -> None:
    with pytest.raises(DataError, match=r"colours \(\(0, 0, 0\) 50.0%, \(128, 0, 0\) 50.0%\).*labelmap.txt"):
        decide([rgb(drawn(0, 1), [BLACK, RED])] * 3)
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    with pytest.raises(DataError, match=r"hold \d+ colours in one, as photographs have"):
        decide([encoded(photo)])
    found = decide([*[encoded(drawn(0, 1))] * 3, encoded(photo)])
    assert found.rows["kind"].to_pylist() == [None] * 3 + ["mask_unreadable"]


def test_palettes() -> None:
    colours = [0, 0, 0, 128, 0, 0, 0, 128, 0]
    assert ids(decide([palette(drawn(0, 1, 2), colours), palette(drawn(0, 2), colours)])) == [
        [0, 1, 2],
        [0, 2],
    ]
    other = [0, 0, 0, 0, 128, 0, 128, 0, 0]
    with pytest.raises(DataError, match=r"palettes differ .*: position 1 is \(128, 0, 0\) in that of 0"):
        decide([palette(drawn(0, 1, 2), colours), palette(drawn(0, 1), other)])


def test_masks_that_cannot_be_read() -> None:
    found = decide([encoded(drawn(0, 1)), b"no picture"])
    assert found.rows["kind"].to_pylist() == [None, "mask_unreadable"]
    assert "its mask: no picture: accepted" in found.rows["reason"][1].as_py()
    assert decide([b"", b""]).rows["kind"].to_pylist() == ["mask_unreadable"] * 2
