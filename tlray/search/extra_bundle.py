"""What a model that is no trial leaves in its folder below a search: a bundle, its settings and its story."""

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
    """Write it all below ``config.run_uri``; the bundle's URI.

    ``metrics``: of the validation split; ``stage``: a name and seconds, for where the time went;
    ``epochs``: of the training that the model comes from, as the loop records them.
    """
    data, split = Dataset.open(config.data.uri), config.data.validation_split
    stored, uri = config.model_dump(mode="json"), storage.join(config.run_uri, BEST)
    golden = data.rows(split, checkpoint.golden_rows(sum(data.group_rows(split))), [IMAGE])[IMAGE].to_pylist()
    bundle.save(uri, model, metrics, stored, [picture["bytes"] for picture in golden])
    storage.write_json(storage.join(config.run_uri, CONFIG), stored)
    told = {"epochs": list(epochs), "stages": [{"name": stage[0], "seconds": stage[1]}]}
    storage.write_json(storage.join(config.run_uri, METRICS), told)
    return uri
