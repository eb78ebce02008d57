"""Feature extraction: embeddings of pictures by a bundle or a backbone without a head, as Parquet.

Columns: id, split, path, the label columns of the data, error (why a picture could not be used) and
``embedding``, fixed_size_list<float32, D>. ``embeddings.json`` beside the files names the model and the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from tlray import storage
from tlray.bundle import bundle
from tlray.bundle.predictor import Predictor
from tlray.data.image import Geometry, Preprocess, render_batch
from tlray.inference import batch
from tlray.inference.inputs import Inputs
from tlray.inference.neighbors import EMBEDDINGS
from tlray.models import weights as origins
from tlray.models.backbone import Backbone
from tlray.observer import Progress

RGB = tuple[float, float, float]


class Bare:
    """A backbone without a head, ready on a device. Embeds as a `Predictor` does.

    ``size``: side of the input in px; None: that of the weights.
    """

    def __init__(self, name: str, weights: str, size: int | None = None, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = device
        self.backbone = Backbone(name, weights, size=size).to(device).eval()
        side = self.backbone.size
        self.preprocess = Preprocess(
            size=(side, side) if isinstance(side, int) else (side[1], side[0]),
            mean=cast(RGB, self.backbone.mean),
            std=cast(RGB, self.backbone.std),
            interpolation="bicubic" if self.backbone.interpolation == "bicubic" else "bilinear",
        )

    @torch.inference_mode()
    def embed_rendered(self, x_BCHW: torch.Tensor, stage: str | None = None) -> np.ndarray:
        """Model input -> embeddings (B, D) float32: the pooled final features.

        With the name of a stage: the mean of its feature map over height and width. Raises ConfigError for an
        unknown stage.
        """
        x_BCHW = x_BCHW.to(self.device, non_blocking=True)
        if stage is not None:
            x_BD = self.backbone.pyramid(x_BCHW, [stage])[0].mean(dim=(2, 3))
        else:
            x_BD = self.backbone.pooled(x_BCHW)
        vectors_BD: np.ndarray = x_BD.float().cpu().numpy()
        return vectors_BD


@dataclass(frozen=True)
class Embedder:
    """The name of a model that embeds: the URI of a bundle, or, with ``weights``, the name of a backbone."""

    model: str
    weights: str | None = None
    size: int | None = None

    @classmethod
    def backbone(cls, name: str, weights: str | None, size: int | None = None) -> Embedder:
        """A backbone without a head. ``weights``: None means those that come with the backbone."""
        chosen = weights or origins.default(name)
        if chosen.endswith(".safetensors") and not chosen.startswith("hf-hub:"):
            chosen = storage.absolute(chosen)
        return cls(name, chosen, size)

    def load(self) -> Predictor | Bare:
        """Load the model. Raises BundleError, ConfigError, StorageError."""
        return Predictor(self.model) if self.weights is None else Bare(self.model, self.weights, self.size)

    def facts(self) -> dict[str, Any]:
        """The model in the manifest of its embeddings; `from_facts` reads it back."""
        if self.weights is None:
            manifest = bundle.read_manifest(self.model)
            return {"model": self.model, "weights": manifest.checksums[bundle.WEIGHTS], "backbone": None}
        return {"model": None, "weights": self.weights, "backbone": {"name": self.model, "size": self.size}}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Embedder:
        """The model that the manifest of some embeddings names."""
        if facts["backbone"] is None:
            return cls(facts["model"])
        return cls(facts["backbone"]["name"], facts["weights"], facts["backbone"]["size"])


@dataclass(frozen=True)
class _Work:
    embedder: Embedder
    stage: str | None
    preprocess: Preprocess
    dim: int

    @property
    def fields(self) -> pa.Schema:
        return pa.schema([("embedding", pa.list_(pa.float32(), self.dim))])

    def load(self) -> batch.Apply:
        model = self.embedder.load()

        def apply(x_BCHW: torch.Tensor, geometries: list[Geometry]) -> pa.Table:
            vectors_BD = model.embed_rendered(x_BCHW, self.stage).astype(np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors_BD.ravel()), self.dim)
            return pa.table([column], schema=self.fields)

        return apply


def embed(
    embedder: Embedder,
    source: Inputs,
    out: str,
    stage: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the embeddings of every picture to ``out`` -> the manifest, with rows and seconds of this call.

    ``stage``: a stage of the backbone, whose feature map is averaged over height and width; None: the final
    features, as the model's head gets them. Raises ConfigError for an unknown stage, DataError where ``out``
    holds other work; see `batch.run`.
    """
    model = embedder.load()
    width, height = model.preprocess.size
    dim = model.embed_rendered(torch.zeros(1, 3, height, width, dtype=torch.uint8), stage).shape[1]
    facts = {"kind": "embeddings", **embedder.facts(), "stage": stage, "dim": int(dim)}
    work = _Work(embedder, stage, model.preprocess, int(dim))
    return batch.run(source, work, out, EMBEDDINGS, facts, progress, "embed")


def vector(manifest: dict[str, Any], picture: bytes, model: str | None = None) -> np.ndarray:
    """Embed a picture (D,) with the model that a manifest names, or with the bundle ``model``.

    Raises PictureError, BundleError.
    """
    loaded = (Embedder.from_facts(manifest) if model is None else Embedder(model)).load()
    x_BCHW = torch.from_numpy(render_batch([picture], loaded.preprocess).x_BCHW)
    x_D: np.ndarray = loaded.embed_rendered(x_BCHW, manifest["stage"])[0]
    return x_D
