"""Names of models: ``name@version`` and the alias ``live`` -> a bundle.

    MODELS/NAME/3/              version 3: a bundle, never changed again
    MODELS/NAME/aliases.json    {"live": 3, "history": [{"action", "time", "version"}, ...]}
    MODELS/NAME/.version-3      who took the number; stays, so that no number is given twice

Version numbers are taken by an exclusive write and aliases changed without losing another's change,
locally and on stores with conditional writes (see `storage.write_new`). On a store without them two
promotions of the very same moment can meet; promote from one place there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tlray import storage
from tlray.bundle import bundle
from tlray.bundle.files import BEST
from tlray.errors import BundleError, RegistryError, nearest
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
    """Copy a bundle (or the best one of a run's folder) into the registry, make it live, return its version.

    Raises BundleError where there is none or its files do not match their checksums.
    """
    home = _home(models_uri, name)
    source = find_bundle(bundle_uri)
    targets.check_folder(home)
    _aliases(home)  # a damaged one is told before the copy, which would stay without a name
    bundle.verify(source)
    version = _take_number(home)
    target = storage.join(home, str(version))
    with storage.publish(target, bundle.MANIFEST) as folder:
        storage.download(source, folder)
        bundle.verify(str(folder))  # what was copied is what was saved
    _move(home, "promote", lambda history: version)
    return version


def rollback(models_uri: str, name: str) -> int:
    """Make the version live that was so before, and return it. Raises RegistryError where there is none."""
    home = _known(models_uri, name)
    there = _versions(home)

    def previous(history: Sequence[Mapping[str, Any]]) -> int:
        stack = _live_stack(history)
        for version in stack[-2::-1]:
            if version in there and version != stack[-1]:
                return version
        live = f"{name}@{stack[-1]} is live" if stack else "no version is live"
        raise RegistryError(f"{name}: {live} and no earlier one is there to go back to")

    return _move(home, "rollback", previous)


def resolve(models_uri: str, ref: str) -> tuple[str, str, int]:
    """``name``, ``name@live`` or ``name@3`` -> (bundle's URI, name, version). Raises RegistryError."""
    name, sign, wanted = ref.partition("@")
    home = _known(models_uri, name)
    versions = _versions(home)
    if not sign or wanted == LIVE:
        live = _aliases(home).get(LIVE)
        if live not in versions:
            raise RegistryError(f"{name}: no version is live; accepted: {_listed(name, versions)}")
        version = int(live)
    elif wanted.isdecimal() and int(wanted) in versions:
        version = int(wanted)
    else:
        raise RegistryError(f"{ref}: no such version; accepted: {name}@{LIVE}, {_listed(name, versions)}")
    return storage.join(home, str(version)), name, version


def list_models(models_uri: str) -> list[ModelInfo]:
    """All models by name; an empty list where no registry is yet."""
    if not storage.is_dir(models_uri):
        if storage.exists(models_uri):
            raise RegistryError(f"{models_uri}: is a file; accepted: a registry's folder")
        return []
    found = []
    for name in storage.listdir(models_uri):
        home = storage.join(models_uri, name)
        if not _NAME.fullmatch(name) or not (versions := _versions(home)):
            continue
        live = _aliases(home).get(LIVE)
        live = live if live in versions else None
        metrics = dict(bundle.read_manifest(storage.join(home, str(live))).metrics) if live else {}
        found.append(ModelInfo(name, live, versions, metrics))
    return found


def find_bundle(uri: str) -> str:
    """The bundle at a URI, or the one in ``best/`` of a run's folder. Raises BundleError."""
    for place in (uri, storage.join(uri, BEST)):
        if storage.exists(storage.join(place, bundle.MANIFEST)):
            return place
    raise BundleError(
        f"{uri}: no bundle; accepted: a folder with {bundle.MANIFEST}, or a run's folder with best/ in it"
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
    """Numbers of the complete versions, ascending."""
    if not storage.is_dir(home):
        return []
    numbers = sorted(int(entry) for entry in storage.listdir(home) if entry.isdecimal())
    return [n for n in numbers if storage.exists(storage.join(home, str(n), bundle.MANIFEST))]


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
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    events = found.get("history")
    sound = isinstance(events, list) and all(
        isinstance(event, dict) and isinstance(event.get("version"), int) and "action" in event
        for event in events
    )
    if not sound or not isinstance(found.get(LIVE), int):
        raise RegistryError(f"{uri}: damaged; accepted: {json.dumps({LIVE: 1, 'history': []})}")
    return found


def _move(home: str, action: str, choose: Callable[[Sequence[Mapping[str, Any]]], int]) -> int:
    """Move the alias to the version that ``choose(history)`` names, and note it in the history."""
    uri, time = storage.join(home, ALIASES), _now()

    def change(old: Any) -> dict[str, Any]:
        history = _checked(uri, old)["history"] if old is not None else []
        version = choose(history)
        return {LIVE: version, "history": [*history, {"action": action, "time": time, "version": version}]}

    return int(storage.update_json(uri, change)[LIVE])


def _live_stack(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """Versions that were live, the present one last; what was rolled back is gone from it."""
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
