"""The truth: labelled pictures independent of any layout, as hypothesis draws them.

Boxes are (x, y, width, height) in px of the upright picture. Pictures are blocks of random colours, so
no two look alike. Half of the JPEGs may be stored turned, with the EXIF tag that turns them back.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from PIL import Image

Box = tuple[int, int, int, int]
Point = tuple[float, float]

PLAIN_NAMES = ["cat", "dog", "T-shirt", "bus_stop", "3", "Zebra"]
ODD_NAMES = [
    "black cat", "café", "naïve thé", "猫", "Ärger", "100%", "R&D <x>", "it's", "rock'n'roll", "v1.5",
    "(none)", "a,b", "x;y", 'say "hi"', "007", "c++", "#5", "null", "train", "emoji 🐈",
]  # fmt: skip
ODD_FOLDERS = [name for name in ODD_NAMES if not set(name) & set('<>"')]
ODD_PERSONS = ["Ann Lee", "José Núñez", "李雷", "O'Neil", "de la Cruz", "p 7"]
PERSONS = ["Ann_Lee", "Bo_Ek", "Cy_Po_Xu", "Di_Wu"]
STEMS = [
    "p{}", "IMG_{:04d}", "{:06d}", "my pic {}", "a.b.{}", "été {}", "été_{}", "DSC({})", "x#{}", "50%25_{}",
    "UPPER{}", "p{}_jpg.rf.a1b2", "猫{}", "frame-{}", "it's {}", "a+b&{}",
]  # fmt: skip
_SPLITS = [("train", "validation"), ("train", "validation", "test"), ("train", "test")]
_STORED = {
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # EXIF orientation -> how the upright picture is stored in the file


@dataclass(frozen=True)
class Thing:
    """One object: its class, its box, and whether its outline is the box or the diamond in it."""

    name: str
    box: Box
    diamond: bool = False

    @property
    def outline(self) -> list[Point]:
        """Corners, px."""
        x, y, w, h = self.box
        if self.diamond:
            return [(x + w / 2, y), (x + w, y + h / 2), (x + w / 2, y + h), (x, y + h / 2)]
        return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


@dataclass(frozen=True)
class Picture:
    """One picture with its labels, of the kind that its truth has."""

    number: int
    stem: str
    ending: str  # .jpg or .png
    width: int  # px, upright
    height: int
    turn: int  # EXIF orientation
    split: str | None
    label: str = ""
    labels: tuple[str, ...] = ()
    things: tuple[Thing, ...] = ()

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) in the file, before EXIF."""
        return (self.height, self.width) if self.turn >= 5 else (self.width, self.height)

    def stored_point(self, point: Point) -> Point:
        """A point of the upright picture as a point of the stored one."""
        x, y = point
        w, h = self.width, self.height
        return {3: (w - x, h - y), 5: (y, x), 6: (y, w - x), 7: (h - y, w - x), 8: (h - y, x)}.get(
            self.turn, point
        )

    def encoded(self) -> bytes:
        """The file's bytes."""
        return _encoded(self.number, self.ending, self.width, self.height, self.turn)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()

    def mask_HW(self, classes: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Class ids; the first class is the background."""
        mask = np.zeros((self.height, self.width), np.uint8)
        for thing in self.things:
            x, y, w, h = thing.box
            mask[y : y + h, x : x + w] = classes.index(thing.name)
        return mask


@functools.lru_cache(maxsize=4096)
def _encoded(number: int, ending: str, width: int, height: int, turn: int) -> bytes:
    blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    upright = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    stored = upright.transpose(_STORED[turn]) if turn in _STORED else upright
    sink = io.BytesIO()
    if ending == ".png":
        stored.save(sink, "PNG")
    else:
        exif = Image.Exif()
        if turn > 1:
            exif[0x0112] = turn
        stored.save(sink, "JPEG", quality=92, exif=exif)
    return sink.getvalue()


@dataclass(frozen=True)
class Truth:
    """A set of pictures. ``kind``: label, labels, objects, mask or identity."""

    kind: str
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that the set states, if any."""
        order = ("train", "validation", "test")
        return tuple(s for s in order if s in {picture.split for picture in self.pictures})


def class_names(names: str, kind: str) -> st.SearchStrategy[tuple[str, ...]]:
    """2 to 4 names (one is enough for boxes); ``names``: any, plain, folder, person, numbers."""
    fewest = 1 if kind == "objects" else 2
    if names in ("numbers", "free"):
        most = 2 if names == "free" else 4
        return st.integers(fewest, most).map(lambda n: tuple(str(i) for i in range(n)))
    pool = {
        "plain": PLAIN_NAMES,
        "folder": [*PLAIN_NAMES, *ODD_FOLDERS],
        "any": [*PLAIN_NAMES, *ODD_NAMES],
        "person": [*PERSONS, *ODD_PERSONS],
        "lfw": PERSONS,
    }[names]
    return st.lists(st.sampled_from(pool), min_size=fewest, max_size=4, unique=True).map(tuple)


def _thing(draw: st.DrawFn, name: str, width: int, height: int, diamonds: bool) -> Thing:
    w, h = draw(st.integers(5, width // 2)), draw(st.integers(5, height // 2))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return Thing(name, (x, y, w, h), diamonds and draw(st.booleans()))


@st.composite
def truths(
    draw: st.DrawFn,
    kind: str,
    names: str = "any",
    splits: str = "both",
    turns: bool = True,
    diamonds: bool = False,
    stems: Sequence[str] = STEMS,
) -> Truth:
    """A truth: every class is in train. ``splits``: both (with or without), given or none."""
    classes = draw(class_names(names, kind))
    count = draw(st.integers(max(4, len(classes) + 1), 14))
    given: tuple[str, ...] | None = None
    if splits == "given" or (splits == "both" and draw(st.booleans())):
        given = draw(st.sampled_from(_SPLITS))
    stem = draw(st.sampled_from(stems))
    first = draw(st.integers(0, 2000))
    pictures = []
    for n in range(count):
        ending = draw(st.sampled_from([".jpg", ".jpg", ".png"]))
        turn = draw(st.sampled_from([1, 1, 1, 3, 5, 6, 7, 8])) if turns and ending == ".jpg" else 1
        width, height = draw(st.integers(33, 72)), draw(st.integers(33, 72))
        split = None
        if given:
            # The first pictures are train's, one for each class; the next are one for each other split.
            at = n - len(classes)
            split = (
                "train" if at < 0 else given[at + 1] if at < len(given) - 1 else draw(st.sampled_from(given))
            )
        sure = classes[n % len(classes)] if n < len(classes) else None
        picture = Picture(first + n, stem.format(n + 1), ending, width, height, turn, split)
        if kind in ("label", "identity"):
            label = sure or draw(st.sampled_from(classes))
            picture = _with(picture, label=label)
        elif kind == "labels":
            several = draw(st.lists(st.sampled_from(classes), max_size=3, unique=True))
            picture = _with(picture, labels=tuple(sorted({*several, *([sure] if sure else [])})))
        else:
            shown = list(classes[1:] if kind == "mask" else classes)
            several = draw(st.lists(st.sampled_from(shown), max_size=3))
            several += [sure] if sure in shown else []
            drawn = [_thing(draw, name, width, height, diamonds) for name in several]
            # A box that stands twice is read once, and said.
            things = {(thing.name, thing.box): thing for thing in drawn}
            picture = _with(picture, things=tuple(things.values()))
        pictures.append(picture)
    return Truth(kind, classes, tuple(pictures))


def _with(picture: Picture, **changes: object) -> Picture:
    return Picture(**{**picture.__dict__, **changes})  # type: ignore[arg-type]
