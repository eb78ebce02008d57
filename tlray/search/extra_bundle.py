"""The files of a probe or an average in its folder below a search: bundle, configuration and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tlray import storage
from tlray.bundle import bundle
from tlray.bundle.bundle import Model
from tlray.config import Config
from tlray.data.dataset import Dataset
from tlray.data.schema import IMAGE
from tlray.training import checkpoint
from tlray.training.rundir import BEST, CONFIG, METRICS


def leave(
    model: Model,
    config: Config,
    metrics: Mapping[str, float],
    stage: tuple[str, float],
    epochs: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Write the files below ``config.run_uri``; returns the bundle's URI.

    ``metrics``: of the validation split; ``stage``: name and seconds of the work, for the times of stages;
    ``epochs``: records of the training that the model comes from.
    """
    data, split = Dataset.open(config.data.uri), config.data.validation_split
    stored, uri = config.model_dump(mode="json"), storage.join(config.run_uri, BEST)
    golden = data.rows(split, checkpoint.golden_rows(sum(data.group_rows(split))), [IMAGE])[IMAGE].to_pylist()
    bundle.save(uri, model, metrics, stored, [picture["bytes"] for picture in golden])
    storage.write_json(storage.join(config.run_uri, CONFIG), stored)
    story = {"epochs": list(epochs), "stages": [{"name": stage[0], "seconds": stage[1]}]}
    storage.write_json(storage.join(config.run_uri, METRICS), story)
    return uri
