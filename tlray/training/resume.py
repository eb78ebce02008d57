"""What a run's name stands for: whether the run that lies in its folder may be gone on with, or has to go.

A run goes on from its newest checkpoint, whose manifest says which data and settings its weights have seen.
Whatever key is not named as free below is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tlray import storage, tasks
from tlray.bundle.files import MANIFEST
from tlray.config import Config
from tlray.config.tree import flatten, within
from tlray.errors import ConfigError, StorageError
from tlray.training import checkpoint, rundir

# What may differ when a run goes on. The data's place is not compared, but what lies there.
FREE = (
    "name", "runs", "models", "serve", "track",
    "data.uri", "data.test_split", "data.cache_mb",
    "scale",
    "train.checkpoint_every_steps", "train.early_stop_epochs", "train.keep_checkpoints",
)  # fmt: skip
FREE_OF_TRAINING = (*FREE, "search", "train.epochs")  # of a single training besides
FREE_OF_SEARCH = (*FREE, "search")  # and the keys of its space


def check_training(config: Config, fingerprint: str) -> list[str]:
    """Raise ConfigError where the run's folder holds another run than this training; notes for the user.

    ``fingerprint``: of the data.
    """
    if storage.exists(storage.join(config.run_uri, rundir.TRIALS)):
        raise ConfigError(f"name = {config.name!r}: {config.run_uri} is a search; {_way_out(config)}")
    before = _trained(config.run_uri)
    if before is None:
        return []
    old, seen, epochs = before
    notes = [compare(config, old, FREE_OF_TRAINING, seen, fingerprint, "run")]
    wanted, had = config.train.epochs, old.get("train", {}).get("epochs", config.train.epochs)
    if wanted < epochs:
        raise ConfigError(
            f"train.epochs = {wanted}: this run has had {epochs} epochs; accepted: as many or more, a new "
            f"name than {config.name!r}, or --fresh to begin anew"
        )
    if wanted != had:
        notes.append(
            f"train.epochs {had} -> {wanted}: goes on after epoch {epochs} with the learning rate that "
            f"training for {wanted} epochs has there"
        )
    return [note for note in notes if note]


def as_begun(config: Config) -> Config:
    """The configuration where a run of this name lies: settings of the task that are left open, and that a
    new training has its own defaults for, are those that the run has. One from before there was such a
    setting has the task's plain default, which means what was done then.
    """
    place = storage.join(config.run_uri, rundir.CONFIG)
    try:
        stored = storage.read_json(place) if storage.exists(place) else {}
    except StorageError:  # damaged; checkpoints know, too
        return config
    theirs: Any = stored.get("task") if isinstance(stored, dict) else None
    task: Any = tasks.load(config.task)
    if not isinstance(theirs, dict) or theirs.get("name") != task.name:
        return config
    plain = tasks.load({"name": task.name}).model_dump(mode="json")  # type: ignore[attr-defined]
    left = [key for key in task.defaults.task if key not in config.task]
    filled = {key: theirs.get(key, plain[key]) for key in left}
    return config.model_copy(update={"task": {**config.task, **filled}})


def compare(
    config: Config, before: Mapping[str, Any], free: Iterable[str], seen: str | None, now: str, what: str
) -> str:
    """Raise ConfigError naming each key in which ``what`` (a run, a search) differs from what it was.

    ``before``: its settings; ``seen`` and ``now``: fingerprints of its data and of today's. The note for the
    user, where it cannot all be compared; else "".
    """
    known = flatten(resolved(Config().model_dump(mode="json")))
    old, new = flatten(resolved(before)), flatten(resolved(config.model_dump(mode="json")))
    free, changed = tuple(free), []
    if seen is not None and seen != now:
        changed.append(
            f"data.uri = {config.data.uri!r}: not the data that this {what} began with "
            f"({old.get('data.uri')!r}, fingerprint {seen[:8]}, now {now[:8]})"
        )
    for key in sorted(set(old) | set(new)):
        if within(key, free):
            continue
        # A key that the earlier version did not have yet stood where its default stands now.
        was, is_ = old.get(key, known.get(key)), new.get(key)
        if was != is_:
            changed.append(f"{key} = {is_!r}: this {what} began with {was!r}")
    if changed:
        why = ", and its trials would not compare" if what == "search" else ""
        raise ConfigError(f"{'; '.join(changed)}{why}; {_way_out(config)}")
    if seen is None:
        return (
            f"{config.run_uri}: an earlier version of tlray did not keep the fingerprint of its data, so "
            "whether these are the same is not checked"
        )
    return ""


def clear(config: Config) -> None:
    """Delete what the run of this name left in its folder, for it to begin anew; other files there stay.

    Raises ConfigError where the new run needs a part of the old one.
    """
    home = storage.absolute(config.run_uri)
    ours = [storage.join(home, entry) for entry in rundir.ALL]
    needed = {
        "data.uri": config.data.uri,
        "model.head": config.model.head,
        "model.weights": config.model.weights,
    }
    for key, place in needed.items():
        is_place = bool(place) and "/" in str(place) and not str(place).startswith("hf-hub:")
        if is_place and any(f"{storage.absolute(str(place))}/".startswith(f"{uri}/") for uri in ours):
            raise ConfigError(
                f"{key} = {place!r}: lies in the run that --fresh deletes; accepted: a new name than "
                f"{config.name!r}"
            )
    if any(
        storage.exists(storage.join(home, entry)) for entry in (rundir.CONFIG, rundir.METRICS, rundir.TRIALS)
    ):
        for uri in ours:
            storage.delete(uri)


def resolved(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with the task's own settings in full: a default may be spelt out or not."""
    try:
        task: Any = tasks.load(dict(tree.get("task") or {}))
        return {**tree, "task": task.model_dump(mode="json")}
    except ConfigError:  # of another version
        return dict(tree)


def _way_out(config: Config) -> str:
    return f"accepted: the old value, a new name than {config.name!r}, or --fresh to begin anew"


def _trained(run_uri: str) -> tuple[dict[str, Any], str | None, int] | None:
    """Settings and fingerprint that a run's weights have seen, and epochs behind it; None: nothing there.

    By the newest checkpoint; where there is none any more, by its best epoch.
    """
    names = [f"{rundir.CHECKPOINTS}/{name}" for name in reversed(checkpoint.listing(run_uri))]
    for name in (*names, rundir.BEST):
        place = storage.join(run_uri, name)
        try:
            manifest = storage.read_json(storage.join(place, MANIFEST))
            config = dict(manifest["config"])
            state = storage.read_json(storage.join(place, checkpoint.STATE)) if name != rundir.BEST else {}
            return config, manifest.get("fingerprint"), len(state.get("history") or [])
        except (StorageError, KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged: training passes it over, too
    return None
