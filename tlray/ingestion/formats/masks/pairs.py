"""Which file is the mask of which picture: by words in folders, by affixes of names, or by their pixels."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tlray.data.schema import SPLITS
from tlray.ingestion.formats import heuristics
from tlray.ingestion.formats.listing import Listing, stem

_MASK_WORDS = frozenset((
    "mask", "masks", "msk", "msks", "label", "labels", "labeled", "labelled", "lbl", "lbls",
    "annotation", "annotations", "annot", "annots", "ann", "anns", "anno", "annos", "gt", "gts",
    "groundtruth", "segmentation", "segmentations", "seg", "segs", "segm", "semantic", "trimap",
    "trimaps", "target", "targets", "matte", "mattes", "labelids", "labeltrainids", "manual", "lab",
    "labs",
))  # fmt: skip
_IMAGE_WORDS = frozenset((
    "image", "images", "img", "imgs", "pic", "pics", "picture", "pictures", "photo", "photos", "input",
    "inputs", "original", "originals", "org", "orig", "frame", "frames", "rgb", "raw", "jpegimages",
))  # fmt: skip
# Words that do not tell which pictures a folder contains.
_FILLERS = frozenset((
    "png", "jpg", "jpeg", "tif", "tiff", "bmp", "class", "raw", "aug", "binary", "bin", "fine",
    "coarse", "files", "all", "ground", "truth", "left", "bit", "full", "stills", "approved", "my",
    "project", "name", "fold", "data", "dataset", "output", "outputs", "out",
))  # fmt: skip
_OBJECTS = frozenset(("segmentationobject", "instances", "instance_masks", "panoptic"))  # not a class a pixel
_AFFIX = (
    "masks?|msk|gt|lab|ground_?truth|label(?:train)?ids|labels?|lbl|segmentations?|segm?|annotations?|annot|trimap|"
    "matte|manual"
)
_SUFFIX = re.compile(
    rf"(?:[_\-. ]+(?:gtfine|gtcoarse|bin|binary))?[_\-. ]+(?:{_AFFIX}|l)(?P<number>[_\-. ]*\d{{0,3}})$"
)
_PREFIX = re.compile(rf"^(?:{_AFFIX})(?:[_\-. ]+|(?=\d))")
_PICTURE_SUFFIX = re.compile(r"[_\-. ]+(?:image|img|im|rgb|sat|orig|original|raw|leftimg8bit|0000)$")
_PICTURE_PREFIX = re.compile(r"^(?:images?|img|im|pic|picture|photo|frame)(?:[_\-. ]+|(?=\d))")
_OTHER_VIEWS = re.compile(r"(?:colou?rs?|instanceids?|instances?|overlay|vis|viz|polygons?)$")
_TRAIN_IDS = re.compile(r"labeltrainids$")
_MOST_FOLDERS = 20  # with more folders, pairs of them are not compared by the headers of their pictures

Key = tuple[str, tuple[str, ...], str]  # split ("" = none), other words of the folders, stem


@dataclass
class _File:
    """A picture file, and what its folders and its name say."""

    path: str
    role: str  # mask, picture, other (an image of masks that is not read); "" = its folder does not say it
    split: str
    rest: tuple[str, ...]  # folders without words for masks, pictures and splits
    name: str  # stem in lower case

    @property
    def key(self) -> Key:
        return self.split, self.rest, self.name


@dataclass
class Pairs:
    """Pictures with their masks, and the files that are in no pair."""

    masks_of: dict[str, list[str]] = field(default_factory=dict)  # picture -> its masks
    split_of: dict[str, str] = field(default_factory=dict)
    pictures_alone: list[str] = field(default_factory=list)
    masks_alone: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # images of masks that are not read
    objects: bool = False  # whether a mask is that of one object
    by_words: bool = False  # whether the name of a folder is a word for masks
    doubts: list[str] = field(default_factory=list)  # messages about files of which either may be meant


@functools.lru_cache(maxsize=2)
def find(listing: Listing) -> Pairs:
    """Pictures and their masks: by names, else by folders whose pictures look like masks of another
    folder."""
    pairs = _matched(_placed(listing, frozenset(), frozenset()))
    if pairs.masks_of:
        return pairs
    beside = _same_stem(listing)
    if beside.masks_of:
        return beside
    if len({path.rpartition("/")[0] for path in listing.pictures}) <= _MOST_FOLDERS:
        folders = heuristics.parallel_folders(listing)
        if folders is not None:
            differ = [
                (a, b) for a, b in zip(*(f.lower().split("/") for f in folders), strict=False) if a != b
            ]
            words = [frozenset(side) for side in zip(*differ, strict=True)] if differ else []
            if words:
                return _matched(_placed(listing, words[0], words[1]))
    return pairs


def _same_stem(listing: Listing) -> Pairs:
    """a.jpg and its mask a.png in one folder."""
    pairs = Pairs()
    for paths in listing.by_stem.values():
        photos = [path for path in paths if path.lower().endswith((".jpg", ".jpeg"))]
        flat = [path for path in paths if path.lower().endswith(".png")]
        if len(paths) == 2 and len(photos) == len(flat) == 1:
            pairs.masks_of[photos[0]] = flat
            pairs.split_of[photos[0]] = SPLITS.get(next(iter(_split_words(photos[0])), ""), "")
    if len(pairs.masks_of) < 0.9 * len(listing.by_stem):
        return Pairs()
    return pairs


def _split_words(path: str) -> list[str]:
    return [part.lower() for part in path.split("/")[:-1] if part.lower() in SPLITS]


def _placed(listing: Listing, image_words: frozenset[str], mask_words: frozenset[str]) -> list[_File]:
    folder_names = frozenset(part.lower() for folder in listing.folders for part in folder.split("/"))
    folder = functools.cache(lambda path: _folders(path, folder_names, image_words, mask_words))
    files = []
    for path in listing.pictures:
        above, _, name = path.rpartition("/")
        role, split, other_folders = folder(above)
        files.append(_File(path, role, split, other_folders, stem(name).lower()))
    return files


def _folders(
    path: str, folder_names: frozenset[str], image_words: frozenset[str], mask_words: frozenset[str]
) -> tuple[str, str, tuple[str, ...]]:
    """(role, split, other folders) by the folders above a file."""
    role, split, other_folders = "", "", []
    for part in path.split("/") if path else []:
        if part.lower() in mask_words or part.lower() in image_words:
            role = "mask" if part.lower() in mask_words else "picture"
            continue
        words, own_role = _words(part, folder_names)
        role = own_role or role
        other_words = []
        for word in words:
            if word in SPLITS:
                split = SPLITS[word]
            elif word in ("tr", "ts") and own_role:  # imagesTr, labelsTs
                split = "train" if word == "tr" else "test"
            else:
                other_words.append(word)
        if other_words:
            other_folders.append("_".join(other_words))
    return role, split, tuple(other_folders)


def _words(name: str, folder_names: frozenset[str]) -> tuple[list[str], str]:
    """(words in the name of a folder but those for masks and pictures, the role that those mean)."""
    lower = name.lower()
    if lower in _OBJECTS:
        return [], "other"
    if lower in SPLITS:
        return [lower], ""
    # trainannot, defaultannot beside default
    compound = re.fullmatch(
        rf"(.+?)({'|'.join(sorted(_MASK_WORDS | _IMAGE_WORDS, key=len, reverse=True))})", lower
    )
    if compound and (compound[1] in SPLITS or compound[1] in folder_names) and compound[1].isalnum():
        return [compound[1]], "mask" if compound[2] in _MASK_WORDS else "picture"
    words = [w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+", name)]
    if {"ground", "truth"} <= set(words):
        words.append("groundtruth")
    if {"8", "bit"} <= set(words):  # leftImg8bit; frame-8 is a number like others
        words.remove("8")
    role = "mask" if _MASK_WORDS & set(words) else "picture" if _IMAGE_WORDS & set(words) else ""
    if not role:
        return [lower], ""
    return [w for w in words if w not in _MASK_WORDS | _IMAGE_WORDS | _FILLERS | {"jpeg", "jpg"}], role


def _matched(files: Sequence[_File]) -> Pairs:
    """Pairs of the same folders and stem, else of the same stem without affixes, else of the stem alone."""
    by_role: dict[str, list[_File]] = defaultdict(list)
    for file in files:
        by_role[file.role].append(file)
    pairs = Pairs(by_words=bool(by_role["mask"]))
    masks_by_name = by_role["mask"]
    # In a folder of pictures, a file with the affix of a mask is a mask if there is a picture of its name.
    pictures = [*by_role["picture"], *by_role[""]]
    stems = {file.key for file in pictures} | {(f.split, f.rest, _picture_core(f.name)) for f in pictures}
    affixed = [
        file for file in pictures
        if any((file.split, file.rest, core) in stems for core in _cores(file.name))
    ]  # fmt: skip
    if affixed and not masks_by_name:
        masks_by_name, affixed_paths = affixed, {file.path for file in affixed}
        pictures = [file for file in pictures if file.path not in affixed_paths]
    for view in [*by_role["other"], *(file for file in masks_by_name if _OTHER_VIEWS.search(file.name))]:
        pairs.others.append(view.path)
    other_views = set(pairs.others)
    masks_by_name = [file for file in masks_by_name if file.path not in other_views]
    finder = _Finder(pictures)
    single: dict[str, list[_File]] = defaultdict(list)
    several: dict[str, list[str]] = defaultdict(list)
    for mask in masks_by_name:
        picture, is_part = finder.picture(mask)
        if picture is None:
            pairs.masks_alone.append(mask.path)
            continue
        if is_part:
            several[picture.path].append(mask.path)
        else:
            single[picture.path].append(mask)
        pairs.split_of[picture.path] = picture.split or mask.split
    pairs.doubts += finder.doubts
    for path, masks_of_picture in single.items():
        pairs.masks_of[path] = [_one(masks_of_picture).path]
        ambiguous = [mask.path for mask in masks_of_picture if not _TRAIN_IDS.search(mask.name)]
        if len(ambiguous) > 1:
            two_masks = " and ".join(sorted(ambiguous)[:2])
            pairs.doubts.append(
                f"{two_masks}: two masks of one picture; accepted: one for each, of all classes"
            )
        pairs.others += [mask.path for mask in masks_of_picture if mask.path != pairs.masks_of[path][0]]
    # BUSI has a_mask.png and a_mask_1.png: if one picture has several masks, all masks are of objects.
    for path, masks in several.items():
        pairs.masks_of.setdefault(path, []).extend(masks)
    pairs.objects = any(len(paths) > 1 for paths in pairs.masks_of.values())
    with_mask = pairs.masks_of.keys()
    pairs.pictures_alone = [file.path for file in pictures if file.path not in with_mask]
    pairs.split_of |= {file.path: file.split for file in pictures if file.path not in with_mask}
    return pairs


def _one(candidates: Sequence[_File]) -> _File:
    """Which of several masks of one picture is meant; the first where that is not clear."""
    if len(candidates) == 1:
        return candidates[0]
    ids = [mask for mask in candidates if not _TRAIN_IDS.search(mask.name)]  # of Cityscapes labelIds
    if len(ids) == 1:
        return ids[0]
    return min(candidates, key=lambda mask: mask.path)


def _cores(name: str) -> list[str]:
    """The stem of a mask without affixes that mean a mask."""
    cores = [_SUFFIX.sub("", name), _PREFIX.sub("", name)]
    return [core for core in cores if core and core != name]


def _picture_core(name: str) -> str:
    return _PICTURE_PREFIX.sub("", _PICTURE_SUFFIX.sub("", name)) or name


class _Finder:
    """Finds the picture of a mask."""

    def __init__(self, pictures: Sequence[_File]) -> None:
        self.doubts: list[str] = []
        self.exact: dict[Key, list[_File]] = defaultdict(list)
        self.core: dict[Key, list[_File]] = defaultdict(list)
        self.by_name: dict[str, list[_File]] = defaultdict(list)
        self.by_folder: dict[tuple[str, tuple[str, ...]], list[_File]] = defaultdict(list)
        for file in pictures:
            self.exact[file.key].append(file)
            self.core[file.split, file.rest, _picture_core(file.name)].append(file)
            self.by_name[file.name].append(file)
            self.by_folder[file.split, file.rest].append(file)

    def picture(self, mask: _File) -> tuple[_File | None, bool]:
        """(the picture of a mask, whether the mask is that of one object)."""
        cores = [mask.name, *_cores(mask.name)]
        numbered = re.compile(r".*(?<![a-z0-9])(?:masks?|segm?|label|gt)[_\-. ]*\d{1,3}$")
        for known in (self.exact, self.core):
            for core in cores:
                candidates = known.get((mask.split, mask.rest, core), [])
                if candidates:
                    is_part = core != mask.name and bool(numbered.fullmatch(mask.name))
                    return self._only(candidates), is_part
        # masks/a/*.png beside images/a.png
        if mask.rest and (candidates := self.exact.get((mask.split, mask.rest[:-1], mask.rest[-1]), [])):
            return self._only(candidates), True
        candidates = self.by_folder.get((mask.split, mask.rest), [])
        if len(candidates) == 1 and mask.rest:  # id/images/a.png + id/masks/*.png
            return candidates[0], True
        for core in cores:  # the folders have other names, or only one of them says the split
            candidates = [
                file for file in self.by_name.get(core, [])
                if not (file.split and mask.split and file.split != mask.split)
            ]  # fmt: skip
            if len(candidates) == 1:
                return candidates[0], False
        return None, False

    def _only(self, candidates: Sequence[_File]) -> _File:
        if len(candidates) > 1:
            first, second = sorted(file.path for file in candidates)[:2]
            self.doubts.append(f"{first} and {second}: one stem; accepted: one file of each")
        return candidates[0]
