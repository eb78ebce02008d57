"""The registry of models: a name and a version, or the alias ``live``, stand for a bundle. Needs no torch.

    MODELS/NAME/3/              version 3: a bundle, never changed again
    MODELS/NAME/aliases.json    {"live": 3, "history": [{"action", "time", "version"}, ...]}
    MODELS/NAME/.version-3      marks the number as taken; stays, so that no number is given twice

A version number is taken by an exclusive write, and aliases.json is updated without losing another
process's update, locally and on stores with conditional writes (see `storage.write_new`). On a store without
them, two promotions at the same moment can get the same number: promote from one place only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from tlray import storage
from tlray.bundle.files import BEST, MANIFEST
from tlray.bundle.manifest import read_manifest, verify
from tlray.errors import BundleError, RegistryError, nearest, spelling_hint
from tlray.storage import targets

ALIASES, LIVE = "aliases.json", "live"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class ModelInfo:
    """A model of the registry; ``metrics`` are those of the live version."""

    name: str
    live: int | None
    versions: list[int]
    metrics: dict[str, float]


def promote(bundle_uri: str, models_uri: str, name: str) -> int:
    """Copy a bundle (or the best one of a run) into the registry, make it live, return its version.

    Raises BundleError where there is no bundle or a file does not match its checksum.
    """
    home = _home(models_uri, name)
    source = _at_place(bundle_uri)
    if source is None:
        raise _no_bundle(bundle_uri)
    targets.check_folder(home)
    _aliases(home)  # raises for a damaged file before the copy is made
    verify(source)
    version = _take_number(home)
    target = storage.join(home, str(version))
    with storage.publish(target, MANIFEST) as folder:
        storage.download(source, folder)
        verify(str(folder))  # the copy, too
    _move(home, "promote", lambda history: version)
    return version


def rollback(models_uri: str, name: str) -> int:
    """Make the previously live version live again; its number. Raises RegistryError where there is none."""
    home = _known(models_uri, name)
    versions = _versions(home)

    def previous(history: Sequence[Mapping[str, Any]]) -> int:
        stack = _live_stack(history)
        for version in stack[-2::-1]:
            if version in versions and version != stack[-1]:
                return version
        live = f"{name}@{stack[-1]} is live" if stack else "no version is live"
        raise RegistryError(f"{name}: {live} and no earlier one is there to go back to")

    return _move(home, "rollback", previous)


def resolve(models_uri: str, ref: str) -> tuple[str, str, int]:
    """``name``, ``name@live`` or ``name@3`` -> (bundle's URI, name, version). Raises RegistryError."""
    name, separator, selector = ref.partition("@")
    home = _known(models_uri, name)
    versions = _versions(home)
    if not separator or selector == LIVE:
        live = _aliases(home).get(LIVE)
        if live not in versions:
            raise RegistryError(f"{name}: no version is live; accepted: {_listed(name, versions)}")
        version = int(live)
    elif selector.isdecimal() and int(selector) in versions:
        version = int(selector)
    else:
        raise RegistryError(f"{ref}: no such version; accepted: {name}@{LIVE}, {_listed(name, versions)}")
    return storage.join(home, str(version)), name, version


def list_models(models_uri: str) -> list[ModelInfo]:
    """All models, sorted by name; an empty list where there is no registry yet."""
    if not storage.is_dir(models_uri):
        if storage.exists(models_uri):
            raise RegistryError(f"{models_uri}: is a file; accepted: a registry's folder")
        return []
    models = []
    for name in storage.listdir(models_uri):
        home = storage.join(models_uri, name)
        if not _NAME.fullmatch(name) or not (versions := _versions(home)):
            continue
        live = _aliases(home).get(LIVE)
        live = live if live in versions else None
        metrics = dict(read_manifest(storage.join(home, str(live))).metrics) if live else {}
        models.append(ModelInfo(name, live, versions, metrics))
    return models


class Reference(NamedTuple):
    """A bundle that somebody named: its URI, its model's name and, in the registry, its version."""

    uri: str
    name: str
    version: int | None


def find(ref: str, models_uri: str) -> Reference:
    """The bundle that ``ref`` means: a bundle's URI, a run's (its best epoch), or a name in the registry.

    A place comes before a name. Raises RegistryError for an unknown name, BundleError for a place without a
    bundle.
    """
    uri = _at_place(ref)
    if uri is not None:
        name = storage.name(uri)
        if name == BEST:  # the run's name says more
            name = storage.name(storage.parent(uri))
        return Reference(uri, name, None)
    if "/" in ref or storage.exists(ref):
        raise _no_bundle(ref)
    return Reference(*resolve(models_uri, ref))


def _at_place(uri: str) -> str | None:
    """The bundle at a URI, or the best one of the run there; None where there is neither."""
    places = (uri, storage.join(uri, BEST))
    return next((place for place in places if storage.exists(storage.join(place, MANIFEST))), None)


def _no_bundle(ref: str) -> BundleError:
    hint = "" if storage.exists(ref) else spelling_hint(ref)
    return BundleError(
        f"{ref}: no bundle there ({MANIFEST} is missing); accepted: a bundle, the folder of a finished run, "
        f"or a model's name{hint}"
    )


def _home(models_uri: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise RegistryError(f"{name!r}: no model's name; accepted: a-z 0-9 . _ -, as in shoes-v2")
    return storage.join(models_uri, name)


def _known(models_uri: str, name: str) -> str:
    home = _home(models_uri, name)
    if not _versions(home):
        models = [model.name for model in list_models(models_uri)]
        hint = nearest(name, models) if models else "it holds no model yet; tlray promote RUN NAME"
        raise RegistryError(f"{name}: unknown model in {models_uri}; {hint}")
    return home


def _versions(home: str) -> list[int]:
    """Numbers of the versions that are completely written, ascending."""
    if not storage.is_dir(home):
        return []
    numbers = sorted(int(entry) for entry in storage.listdir(home) if entry.isdecimal())
    return [n for n in numbers if storage.exists(storage.join(home, str(n), MANIFEST))]


def _listed(name: str, versions: list[int]) -> str:
    return ", ".join(f"{name}@{version}" for version in versions[-5:])


def _take_number(home: str) -> int:
    entries = storage.listdir(home) if storage.is_dir(home) else []
    version = max((int(entry) for entry in entries if entry.isdecimal()), default=0) + 1
    while not storage.write_new(storage.join(home, f".version-{version}"), _now().encode()):
        version += 1
    return version


def _aliases(home: str) -> dict[str, Any]:
    uri = storage.join(home, ALIASES)
    return _checked(uri, storage.read_json(uri)) if storage.exists(uri) else {}


def _checked(uri: str, value: Any) -> dict[str, Any]:
    aliases: dict[str, Any] = value if isinstance(value, dict) else {}
    events = aliases.get("history")
    sound = isinstance(events, list) and all(
        isinstance(event, dict) and isinstance(event.get("version"), int) and "action" in event
        for event in events
    )
    if not sound or not isinstance(aliases.get(LIVE), int):
        raise RegistryError(f"{uri}: damaged; accepted: {json.dumps({LIVE: 1, 'history': []})}")
    return aliases


def _move(home: str, action: str, choose: Callable[[Sequence[Mapping[str, Any]]], int]) -> int:
    """Point the alias ``live`` to the version that ``choose(history)`` returns; add that to the history."""
    uri, time = storage.join(home, ALIASES), _now()

    def change(old: Any) -> dict[str, Any]:
        history = _checked(uri, old)["history"] if old is not None else []
        version = choose(history)
        return {LIVE: version, "history": [*history, {"action": action, "time": time, "version": version}]}

    return int(storage.update_json(uri, change)[LIVE])


def _live_stack(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Versions that were live, the present one last; without versions that were rolled back."""
    stack: list[int] = []
    for event in history:
        version = int(event["version"])
        if event["action"] == "rollback":
            while stack and stack[-1] != version:
                stack.pop()
        if not stack or stack[-1] != version:
            stack.append(version)
    return stack


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
