"""The predictor: encoded pictures in, predictions or embeddings of a bundle's model out.

Evaluation, batch prediction and serving all use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from tlray.bundle import bundle
from tlray.data.image import Geometry, render_batch
from tlray.errors import PictureError
from tlray.tasks.base import Prediction


class Predictor:
    """The model of a checked bundle, ready on a device. Raises BundleError for a bundle that is not sound.

    ``device``: a torch device, or "auto" for CUDA where there is one.
    ``model_s``: seconds that the model took in the last call of `predict` or `embed`; the rest was rendering.
    """

    def __init__(self, uri: str, device: str = "auto") -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.uri, self.device = uri, device
        self.manifest, self.model = bundle.load(uri, device)
        self.task, self.preprocess, self.labels = self.model.task, self.model.preprocess, self.model.labels
        self.model_s = 0.0

    @property
    def stages(self) -> list[str]:
        """Names of the backbone's stages, input first: what `embed` accepts as ``stage``."""
        module: Any = self.model.module
        return list(module.backbone.stages)

    def predict(
        self, pictures: Sequence[bytes], on_error: Literal["raise", "return"] = "raise"
    ) -> list[Prediction | PictureError]:
        """Encoded pictures -> one prediction each, in order.

        A bad picture raises PictureError. With ``on_error="return"`` the error takes the place of the
        prediction in the list, and the other pictures are predicted as usual.
        """
        return self._render_and_run(pictures, on_error, self.predict_rendered)

    def predict_rendered(self, x_BCHW: torch.Tensor, geometries: Sequence[Geometry]) -> list[Prediction]:
        """Model input as `image.render` makes it -> predictions."""
        return self.model.predict_rendered(x_BCHW, geometries, self.device)

    def embed(
        self,
        pictures: Sequence[bytes],
        stage: str | None = None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> list[np.ndarray | PictureError]:
        """Encoded pictures -> one vector each, (D,) float32; bad pictures as in `predict`."""
        return self._render_and_run(pictures, on_error, lambda x_BCHW, _: self.embed_rendered(x_BCHW, stage))

    @torch.inference_mode()
    def embed_rendered(self, x_BCHW: torch.Tensor, stage: str | None = None) -> np.ndarray:
        """Model input -> embeddings (B, D) float32.

        Without ``stage``: the embedding that the task trains, else the pooled final features.
        With the name of a stage of the backbone: the mean of its feature map over height and width.
        Raises ConfigError for an unknown stage.
        """
        module: Any = self.model.module
        x_BCHW = x_BCHW.to(self.device, non_blocking=True)
        if stage is not None:
            x_BD = module.backbone.pyramid(x_BCHW, [stage])[0].mean(dim=(2, 3))
        elif hasattr(module, "embed"):
            x_BD = module.embed(x_BCHW)
        else:
            x_BD = module.backbone.pooled(x_BCHW)
        vectors_BD: np.ndarray = x_BD.float().cpu().numpy()
        return vectors_BD

    def _render_and_run(
        self,
        pictures: Sequence[bytes],
        on_error: Literal["raise", "return"],
        run: Callable[[torch.Tensor, Sequence[Geometry]], Iterable[Any]],
    ) -> list[Any]:
        """Results of ``run`` for the pictures that can be rendered, errors in the places of the others."""
        self.model_s = 0.0
        batch = render_batch(pictures, self.preprocess, on_error)
        if not batch.geometries:
            return batch.in_order([])
        start = time.perf_counter()
        results = run(torch.from_numpy(batch.x_BCHW), batch.geometries)  # plain values: a GPU has finished
        self.model_s = time.perf_counter() - start
        return batch.in_order(results)
