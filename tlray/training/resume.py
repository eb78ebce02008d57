"""Whether a run may continue the one of the same name that is in its folder, and how that one is deleted.

A run continues from its newest checkpoint, whose manifest says which data and settings its weights come from.
Every key is compared except those named in `FREE`.
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

# Keys that may differ when a run continues. Of the data its content is compared, not its place.
FREE = (
    "name", "runs", "models", "serve", "track",
    "data.uri", "data.test_split", "data.cache_mb",
    "scale",
    "train.checkpoint_every_steps", "train.early_stop_epochs", "train.keep_checkpoints",
)  # fmt: skip
FREE_OF_TRAINING = (*FREE, "search", "train.epochs")  # for a single training
FREE_OF_SEARCH = (*FREE, "search")  # for a search, which adds the keys of its space


def check_training(config: Config, fingerprint: str) -> list[str]:
    """Raise ConfigError where the run's folder holds another run than this training; notes for the user.

    ``fingerprint``: of this training's data.
    """
    if storage.exists(storage.join(config.run_uri, rundir.TRIALS)):
        raise ConfigError(f"name = {config.name!r}: {config.run_uri} is a search; {_way_out(config)}")
    stored = _stored_run(config.run_uri)
    if stored is None:
        return []
    old, old_fingerprint, epochs = stored
    notes = [compare(config, old, FREE_OF_TRAINING, old_fingerprint, fingerprint, "run")]
    new_epochs, old_epochs = config.train.epochs, old.get("train", {}).get("epochs", config.train.epochs)
    if new_epochs < epochs:
        raise ConfigError(
            f"train.epochs = {new_epochs}: this run has had {epochs} epochs; accepted: as many or more, "
            f"another name than {config.name!r}, or --fresh to begin anew"
        )
    if new_epochs != old_epochs:
        notes.append(
            f"train.epochs {old_epochs} -> {new_epochs}: goes on after epoch {epochs} with the learning rate "
            f"that training for {new_epochs} epochs has there"
        )
    return [note for note in notes if note]


def with_stored_task(config: Config) -> Config:
    """The configuration with the task settings of the run that exists under this name.

    That is for settings which are left open here, and for which new trainings have other defaults
    (`Task.defaults`). A run from before such a setting existed has the setting's plain default, which stands
    for what was done then.
    """
    place = storage.join(config.run_uri, rundir.CONFIG)
    try:
        stored = storage.read_json(place) if storage.exists(place) else {}
    except StorageError:  # damaged: the settings are compared with the checkpoints' later
        return config
    old: Any = stored.get("task") if isinstance(stored, dict) else None
    task: Any = tasks.load(config.task)
    if not isinstance(old, dict) or old.get("name") != task.name:
        return config
    plain = tasks.load({"name": task.name}).model_dump(mode="json")  # type: ignore[attr-defined]
    left_open = [key for key in task.defaults.task if key not in config.task]
    filled = {key: old.get(key, plain[key]) for key in left_open}
    return config.model_copy(update={"task": {**config.task, **filled}})


def compare(
    config: Config,
    before: Mapping[str, Any],
    free: Iterable[str],
    old_fingerprint: str | None,
    fingerprint: str,
    what: str,
) -> str:
    """Raise ConfigError that names each key in which a configuration differs from an earlier one.

    ``before``: the earlier settings; ``free``: keys that may differ; the fingerprints are of the earlier data
    and of today's; ``what``: "run" or "search", for the message.
    Returns a note for the user where the data cannot be compared, otherwise "".
    """
    defaults = flatten(with_full_task(Config().model_dump(mode="json")))
    old = flatten(with_full_task(before))
    new = flatten(with_full_task(config.model_dump(mode="json")))
    free, changed = tuple(free), []
    if old_fingerprint is not None and old_fingerprint != fingerprint:
        changed.append(
            f"data.uri = {config.data.uri!r}: not the data that this {what} began with "
            f"({old.get('data.uri')!r}, fingerprint {old_fingerprint[:8]}, now {fingerprint[:8]})"
        )
    for key in sorted(set(old) | set(new)):
        if within(key, free):
            continue
        # A key that did not exist when the run began had the effect of today's default.
        old_value, value = old.get(key, defaults.get(key)), new.get(key)
        if old_value != value:
            changed.append(f"{key} = {value!r}: this {what} began with {old_value!r}")
    if changed:
        why = ", and its trials would not compare" if what == "search" else ""
        raise ConfigError(f"{'; '.join(changed)}{why}; {_way_out(config)}")
    if old_fingerprint is None:
        return (
            f"{config.run_uri}: written by an earlier version of tlray, without a fingerprint of its data: "
            "whether the data is the same is not checked"
        )
    return ""


def clear(config: Config) -> None:
    """Delete the files of the run of this name, so that it begins anew; other files in its folder stay.

    Raises ConfigError where the new run needs a part of the old one.
    """
    home = storage.absolute(config.run_uri)
    own_files = [storage.join(home, entry) for entry in rundir.ALL]
    needed = {
        "data.uri": config.data.uri,
        "model.head": config.model.head,
        "model.weights": config.model.weights,
    }
    for key, place in needed.items():
        is_place = bool(place) and "/" in str(place) and not str(place).startswith("hf-hub:")
        if is_place and any(f"{storage.absolute(str(place))}/".startswith(f"{uri}/") for uri in own_files):
            raise ConfigError(
                f"{key} = {place!r}: lies in the run that --fresh deletes; accepted: another name than "
                f"{config.name!r}"
            )
    if any(
        storage.exists(storage.join(home, entry)) for entry in (rundir.CONFIG, rundir.METRICS, rundir.TRIALS)
    ):
        for uri in own_files:
            storage.delete(uri)


def with_full_task(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with all settings of its task, those that have their default, too."""
    try:
        task: Any = tasks.load(dict(tree.get("task") or {}))
        return {**tree, "task": task.model_dump(mode="json")}
    except ConfigError:  # written by another version
        return dict(tree)


def _way_out(config: Config) -> str:
    return f"accepted: the old value, another name than {config.name!r}, or --fresh to begin anew"


def _stored_run(run_uri: str) -> tuple[dict[str, Any], str | None, int] | None:
    """Settings, fingerprint of the data, and number of epochs of the run in a folder; None without a run.

    They are those of the newest checkpoint, and without checkpoints those of the best epoch's bundle.
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
            continue  # damaged: training skips it, too
    return None
