"""Names of YOLO's class ids, from data.yaml, obj.data and obj.names of darknet, classes.txt or notes.json."""

from __future__ import annotations

import ast
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from tlray.data.schema import SPLITS
from tlray.errors import DataError
from tlray.ingestion.findings import Finding, finding
from tlray.ingestion.formats.listing import Listing, lines_of, text_of
from tlray.ingestion.formats.picture_paths import plain

PLACES = "data.yaml with names, obj.data, obj.names (any .names), classes.txt, or notes.json"
# Files of class names, one a line, the most reliable first. LabelImg leaves its predefined_classes.txt in
# many folders whose classes are others.
_LISTS = (
    ("obj.names", "*.names"),
    ("classes.txt", "class.txt", "classes.names", "labels.txt", "names.txt", "_darknet.labels"),
    ("predefined_classes.txt",),
)
_NOTHING = ("", "~", "null", "none")


@dataclass(frozen=True)
class Config:
    """What a data.yaml or obj.data states."""

    file: str
    names: dict[int, str] | None = None
    splits: tuple[tuple[str, str], ...] = ()  # (split, path of a folder or list of pictures, as written)
    path: str = ""  # the folder that the paths of the splits are relative to
    keypoints: tuple[int, int] | None = None  # (number of keypoints, numbers for each)


@dataclass
class Names:
    """Class names by id, and the file that states them."""

    by_id: dict[int, str]
    file: str
    empty: list[int] = field(default_factory=list)  # ids whose line in the file is empty
    findings: list[Finding] = field(default_factory=list)

    def ordered(self) -> list[str]:
        """Names in the order of their ids, each once."""
        return list(dict.fromkeys(name for _, name in sorted(self.by_id.items())))


def configs(listing: Listing) -> list[Config]:
    """The data.yaml and obj.data files nearest to the root. Raises DataError."""
    all_configs = [c for file in config_files(listing) if (c := _config(listing, file)) is not None]
    depth = min((c.file.count("/") for c in all_configs), default=0)
    return [c for c in all_configs if c.file.count("/") == depth]


def config_files(listing: Listing) -> list[str]:
    """Files that may be a data.yaml or obj.data, by their names and first bytes."""
    yamls = [f for f in listing.labels(".yaml", ".yml") if f.count("/") <= 3]
    datas = [f for f in listing.labels(".data") if f.count("/") <= 3]
    return [f for f in yamls[:50] if "names" in listing.head_text(f)] + [
        f for f in datas[:50] if "=" in listing.head_text(f)
    ]


def list_files(listing: Listing) -> list[str]:
    """Files of class names, one a line, of the most reliable kind that is there."""
    for names in _LISTS:
        files = [
            f
            for f in listing.files
            if _is_called(f, names) and (not listing.named or _may_be_used(listing, f))
        ]
        if files:
            return files
    return []


def is_list_file(path: str) -> bool:
    """Whether the name of a file is that of a list of class names."""
    return any(_is_called(path, names) for names in _LISTS)


def _is_called(path: str, names: Sequence[str]) -> bool:
    name = posixpath.basename(path).lower()
    return name in names or ("*.names" in names and name.endswith(".names"))


def _may_be_used(listing: Listing, path: str) -> bool:
    """Where the user named a list of class names as the source, no other list is used."""
    return not is_list_file(listing.named) or path == listing.named


# ---- data.yaml and obj.data


def _config(listing: Listing, file: str) -> Config | None:
    if file.lower().endswith(".data"):
        return _darknet(listing, file)
    where = listing.where(file)
    text = listing.text(file)
    try:
        # Plain text for every value: YAML would make True of a class called "yes", and 7 of "007".
        tree = yaml.load(text, Loader=yaml.BaseLoader)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise DataError(f"{where}{line}: no valid YAML; accepted: a mapping with names") from None
    if not isinstance(tree, dict) or "names" not in tree:
        return None
    assert isinstance(node, yaml.MappingNode)
    key_names = [key.value for key, _ in node.value]
    if doubles := [key for key in key_names if key_names.count(key) > 1]:
        raise DataError(f"{where}: {doubles[0]} stands there twice; accepted: once")
    splits = []
    for key, value in tree.items():
        split = SPLITS.get(str(key).lower())
        if not split:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in values):
            raise DataError(f"{where}: {key} = {value!r}; accepted: a folder, a list file, or a list of them")
        splits += [(split, v.strip()) for v in values if v.strip().lower() not in _NOTHING]
    names = _names(where, tree["names"])
    nc = tree.get("nc")
    counts = {str(len(names)), str(max(names) + 1)}  # ids may have gaps
    if nc is not None and str(nc).strip().lower() not in _NOTHING and str(nc).strip() not in counts:
        raise DataError(
            f"{where}: nc = {nc}, but names holds {len(names)}; accepted: as many names as nc says"
        )
    path = tree.get("path")
    base = path.strip() if isinstance(path, str) and path.strip().lower() not in _NOTHING else ""
    return Config(file, names, tuple(splits), base, _keypoints(where, tree.get("kpt_shape")))


def _names(where: str, names: object) -> dict[int, str]:
    if isinstance(names, str) and names.strip().startswith(("[", "{")):
        try:
            names = ast.literal_eval(names.strip())
        except (ValueError, SyntaxError):
            names = {"": ""}
    if isinstance(names, list):
        names = dict(enumerate(names))
    pairs: dict[int, str] = {}
    for key, name in names.items() if isinstance(names, dict) else []:
        if (
            not str(key).strip().isdecimal()
            or not isinstance(name, str | int | float)
            or not str(name).strip()
        ):
            pairs = {}
            break
        pairs[int(str(key))] = str(name)
    if not pairs:
        raise DataError(f"{where}: names = {str(names)[:200]}; accepted: a list, or names by number (0: cat)")
    return pairs


def _keypoints(where: str, shape: object) -> tuple[int, int] | None:
    if shape is None or shape == "":
        return None
    try:
        num, dims = (int(v) for v in shape)  # type: ignore[attr-defined]
        if num > 0 and dims in (2, 3):
            return num, dims
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where}: kpt_shape = {shape}; accepted: number of keypoints, and 2 or 3 numbers each")


def _darknet(listing: Listing, file: str) -> Config | None:
    """What an obj.data states in its lines ``key = value``."""
    pairs = {}
    for line in lines_of(listing.text(file)):
        key, sign, value = line.partition("#")[0].partition("=")
        if sign:
            pairs[key.strip().lower()] = value.strip()
    if not {"names", "classes", "train"} & pairs.keys():
        return None
    where = listing.where(file)
    splits = tuple((SPLITS[key], value) for key, value in pairs.items() if key in SPLITS and value)
    names_path = plain(pairs.get("names", ""))
    if not names_path:
        return Config(file, None, splits)
    names_file = nearby(listing, file, names_path)
    if names_file is None:
        raise DataError(
            f"{where}: names = {pairs['names']}: no such file; looked for beside {file} by its name"
        )
    names, _ = _listed(listing, names_file)
    classes = pairs.get("classes", "")
    if classes and classes != str(max(names, default=-1) + 1) and classes != str(len(names)):
        raise DataError(
            f"{where}: classes = {classes}, but {names_file} holds {len(names)}; accepted: as many names"
        )
    return Config(file, names, splits)


def nearby(listing: Listing, file: str, path: str) -> str | None:
    """The file that a config names, by as many last parts of its path as lead to a file from the config's
    folder."""
    parts = [part for part in plain(path).split("/") if part not in ("", ".", "..")]
    folders = [posixpath.dirname(file), ""]
    for n in range(len(parts)):
        for folder in folders:
            match = listing.match(posixpath.join(folder, *parts[n:]))
            if match:
                return match
    return None


# ---- all of them together


def find(listing: Listing, configs: Sequence[Config]) -> Names:
    """The class names. Raises DataError where there are none, or two files disagree."""
    with_names = [c for c in configs if c.names is not None]
    if with_names:
        chosen = with_names[0]
        for config in with_names[1:]:
            if config.names != chosen.names:
                raise DataError(
                    f"{listing.root}: {chosen.file} and {config.file} name other classes; accepted: one of "
                    "them as the source"
                )
        assert chosen.names is not None
        empty = _listed(listing, file)[1] if (file := _names_file(listing, chosen)) else []
        names = Names(chosen.names, chosen.file, empty)
        names.findings += _disagreement(listing, names)
    else:
        names = _of_lists(listing)
    if not names.by_id:
        raise DataError(f"{listing.where(names.file)}: holds no names of classes; accepted: one name a line")
    ids_of: dict[str, list[int]] = {}
    for id_, name in names.by_id.items():
        ids_of.setdefault(name, []).append(id_)
    doubles = [f"{name}: {', '.join(map(str, ids))}" for name, ids in ids_of.items() if len(ids) > 1]
    names.findings += finding(
        "warning",
        "double_name",
        doubles,
        f"{{n}} names of {names.file} stand for several ids: one class each",
    )
    names.findings += finding(
        "info", "empty_line", [f"line {id_ + 1}" for id_ in names.empty],
        f"{{n}} lines of the class list are empty; names keep their numbers ({names.file})",
    )  # fmt: skip
    return names


def _names_file(listing: Listing, config: Config) -> str | None:
    """The list of class names that an obj.data points to."""
    if not config.file.lower().endswith(".data"):
        return None
    lines = (line.partition("=") for line in lines_of(listing.text(config.file)))
    path = next((value for key, _, value in lines if key.strip().lower() == "names"), "")
    return nearby(listing, config.file, path)


def _of_lists(listing: Listing) -> Names:
    lists = list_files(listing)
    for file in lists:
        expected, names = _listed(listing, lists[0]), _listed(listing, file)
        if names != expected:
            id_ = next(i for i in range(10**9) if expected[0].get(i) != names[0].get(i))
            raise DataError(
                f"{listing.root}: id {id_} is {expected[0].get(id_)!r} in {lists[0]} and "
                f"{names[0].get(id_)!r} in {file}; accepted: one list of classes"
            )
    if lists:
        return Names(_listed(listing, lists[0])[0], lists[0], _listed(listing, lists[0])[1])
    notes = _notes(listing)
    if notes:
        return notes
    raise DataError(
        f"{listing.root}: no names of classes; accepted: {PLACES}, at the top or beside the labels"
    )


def _listed(listing: Listing, file: str) -> tuple[dict[int, str], list[int]]:
    """(names by id, ids of empty lines): the id is the number of the line, from 0. Empty last lines do not
    count."""
    lines = [line.strip() for line in lines_of(listing.text(file))]
    while lines and not lines[-1]:
        lines.pop()
    return {i: line for i, line in enumerate(lines) if line}, [i for i, line in enumerate(lines) if not line]


def _disagreement(listing: Listing, names: Names) -> list[Finding]:
    differences = []
    for file in list_files(listing):
        listed = _listed(listing, file)[0]
        differences += [f"{file}: {i} is {n!r}" for i, n in listed.items() if names.by_id.get(i) != n]
    return finding(
        "warning",
        "other_names",
        differences,
        f"{{n}} names of other lists are not those of {names.file} (taken)",
    )


def _notes(listing: Listing) -> Names | None:
    """The categories in a notes.json of Label Studio."""
    for file in listing.labels("notes.json"):
        try:
            categories = json.loads(text_of(listing.where(file), listing.read(file)))["categories"]
            return Names({int(item["id"]): str(item["name"]) for item in categories}, file)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{listing.where(file)}: no categories with id and name") from None
    return None
