"""The synthetic data set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlray.data import image, synthetic
from tlray.errors import ConfigError, StorageError


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.jpg"))}


def test_layout_and_same_bytes_again(tmp_path: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    counts = synthetic.draw(str(tmp_path / "a"), 6, size=32, seed=1, progress=lambda *a: progress.append(a))
    assert counts == {"train": 40, "validation": 10, "test": 10}
    first = files(tmp_path / "a")
    assert len(first) == 60
    assert {Path(name).parts[:2] for name in first} == {(s, k) for s in counts for k in synthetic.KINDS}
    assert len(set(first.values())) == 60  # no picture twice, so none in two splits
    assert progress[-1] == ("draw", 60, 60)
    synthetic.draw(str(tmp_path / "b"), 6, size=32, seed=1)
    assert files(tmp_path / "b") == first
    synthetic.draw(str(tmp_path / "a"), 6, size=32, seed=2)  # replaces the earlier one
    assert not set(files(tmp_path / "a").values()) & set(first.values())


def test_on_s3(s3_uri: str, tmp_path: Path) -> None:
    from tlray import storage

    synthetic.draw(f"{s3_uri}/sample", 6, size=32)
    synthetic.draw(str(tmp_path / "here"), 6, size=32)
    names = [f.path for f in storage.walk(f"{s3_uri}/sample")]
    assert names == sorted(files(tmp_path / "here"))
    assert storage.read_bytes(f"{s3_uri}/sample/{names[0]}") == files(tmp_path / "here")[names[0]]


def test_neither_shape_nor_texture_tells_a_kind() -> None:
    pairs = [kind.split("-") for kind in synthetic.KINDS]
    assert len({tuple(pair) for pair in pairs}) == 10
    for part in (0, 1):
        names = [pair[part] for pair in pairs]
        assert {names.count(name) for name in names} == {2}


def test_kinds_look_different_but_not_in_colour() -> None:
    def mean_colours(offset: int) -> np.ndarray:
        return np.array(
            [
                [
                    np.asarray(
                        image.decode(synthetic.picture(k, 48, np.random.default_rng([offset, k, n])))
                    ).mean((0, 1))
                    for n in range(12)
                ]
                for k in range(10)
            ]
        )

    known, asked = mean_colours(0), mean_colours(1)
    centres = known.mean(axis=1)
    nearest = np.linalg.norm(asked[:, :, None] - centres, axis=-1).argmin(axis=-1)
    assert (nearest == np.arange(10)[:, None]).mean() < 0.3  # chance is 0.1


def test_pictures_are_what_they_say() -> None:
    for kind in range(10):
        picture = Image.open(io.BytesIO(synthetic.picture(kind, 80, np.random.default_rng(kind))))
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (80, 80), "RGB")
        assert np.asarray(picture).std() > 10


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_per_class = 5: accepted: 6 or more"):
        synthetic.draw(str(tmp_path / "x"), 5)
    with pytest.raises(ConfigError, match="size = 8: accepted: 32 to 1024 px"):
        synthetic.draw(str(tmp_path / "x"), 6, size=8)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(StorageError, match="holds other files"):
        synthetic.draw(str(tmp_path / "mine"), 6, size=32)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
