"""The network: an embedding over the backbone, and the margin losses that train it.

Letters in names: B batch, D size of the embedding, P people of the training split.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tlray.data.schema import LABEL
from tlray.tasks import losses

if TYPE_CHECKING:  # importing it imports timm, which processes that only render do not need
    from tlray.models.backbone import Backbone
    from tlray.tasks.face_recognition import Task

MARGINS = {"arcface": 0.5, "cosface": 0.35, "adaface": 0.4}  # of the papers; arcface's is an angle (rad)


class FaceEmbedder(nn.Module):
    """backbone -> pooled features (B, num_features) -> unit vectors (B, D)."""

    training_only = ("identities.",)

    def __init__(self, backbone: Backbone, settings: Task, head: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        size, self.mirror, self.margin_warmup = (
            settings.embedding_size, settings.mirror, settings.margin_warmup,
        )  # fmt: skip
        self.needs_pixels = settings.mirror  # features of a mirror image are not mirrored features
        self.margin = float(getattr(head, "margin", 0.0))  # as the loss has it, radians or a cosine
        self.project = nn.Linear(backbone.num_features, size, bias=False)  # the norm adds a bias
        self.norm = nn.BatchNorm1d(size)
        self.identities = head

    def forward(self, x_BCHW: torch.Tensor, targets: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Unit vectors, or with targets (``label`` (B,) int64: the person) the mean loss (scalar)."""
        if targets is None:
            return self.embed(x_BCHW)
        assert self.identities is not None, "a model from a bundle has no weights for a loss"
        head, x_BD = self.identities, self._vectors(x_BCHW)
        # Always in fp32: half precision cannot tell cosines near 1 apart, and the library would cast its
        # weights to the type of its input.
        with torch.autocast(x_BD.device.type, enabled=False):
            x_BD = x_BD.float()
            if isinstance(head, AdaFace):
                head.measure(x_BD)
            return losses.mixed(lambda row_targets: _by_row(head(x_BD, row_targets[LABEL])), targets).mean()

    def embed(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Unit vectors (B, D)."""
        x_BD = F.normalize(self._vectors(x_BCHW).float())
        if not self.mirror:
            return x_BD
        return F.normalize(x_BD + F.normalize(self._vectors(x_BCHW.flip(-1)).float()))

    def trained(self, share: float) -> None:
        """Grow the margin from 0: at first people cannot be told apart even without one."""
        if self.identities is not None and self.margin_warmup:
            head: Any = self.identities
            head.margin = self.margin * min(1.0, share / self.margin_warmup)

    def _vectors(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of any length."""
        x_BD = self.project(self.backbone.pooled(x_BCHW))
        if self.training and len(x_BD) == 1:  # a last batch of one picture has no variance
            norm = self.norm
            return F.batch_norm(
                x_BD, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        normed_BD: torch.Tensor = self.norm(x_BD)
        return normed_BD


def make_head(task: Task, num_people: int) -> nn.Module:
    """A module: embeddings (B, D) and people (B,) -> losses (B,), a softmax over cosines with a margin."""
    margin = MARGINS[task.head] if task.margin is None else task.margin
    if task.head == "adaface":
        return AdaFace(num_people, task.embedding_size, margin, task.scale)
    from pytorch_metric_learning import losses as margin_losses  # imports scikit-learn
    from pytorch_metric_learning.reducers import DoNothingReducer

    if task.head == "arcface":  # arXiv 1801.07698; the library takes degrees
        margin, loss = float(np.degrees(margin)), margin_losses.ArcFaceLoss
    else:
        loss = margin_losses.CosFaceLoss  # arXiv 1801.09414
    rows = DoNothingReducer()
    head: nn.Module = loss(num_people, task.embedding_size, margin=margin, scale=task.scale, reducer=rows)
    return head


def _by_row(output: Any) -> torch.Tensor:
    """The rows' losses (B,), which the library returns in nested dictionaries."""
    loss_B: torch.Tensor = output["loss"]["losses"] if isinstance(output, dict) else output
    return loss_B


class AdaFace(nn.Module):
    """A loss whose margin depends on the picture's quality, measured by the length of its embedding.

    Kim, Jain, Liu: AdaFace, arXiv 2204.00964, equations 6, 11 and 12, with their h and momentum.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        num_people: int,
        size: int,
        margin: float,
        scale: float,
        h: float = 0.333,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(F.normalize(torch.randn(size, num_people), dim=0))
        self.margin, self.scale, self.h, self.momentum = margin, scale, h, momentum
        self.register_buffer("mean", torch.tensor(20.0))  # of the lengths; initial values of the authors
        self.register_buffer("std", torch.tensor(100.0))

    @torch.no_grad()
    def measure(self, x_BD: torch.Tensor) -> None:
        """Update the running mean and deviation of lengths; call it once for each batch, before its loss."""
        norm_B = _lengths(x_BD)
        if len(norm_B) > 1:
            self.mean.lerp_(norm_B.mean(), 1 - self.momentum)
            self.std.lerp_(norm_B.std(), 1 - self.momentum)

    def forward(self, x_BD: torch.Tensor, person_B: torch.Tensor) -> torch.Tensor:
        """Losses of the rows (B,)."""
        with torch.no_grad():
            norm_B = _lengths(x_BD)
            quality_B = ((norm_B - self.mean) / (self.std + 1e-3) * self.h).clamp(-1, 1)
        cosine_BP = F.normalize(x_BD) @ F.normalize(self.W, dim=0)
        own_B1 = cosine_BP.gather(1, person_B[:, None]).clamp(-1 + 1e-4, 1 - 1e-4)
        angle_B1 = (own_B1.acos() - self.margin * quality_B[:, None]).clamp(1e-4, np.pi - 1e-4)
        with_margin_B1 = angle_B1.cos() - self.margin * (1 + quality_B[:, None])
        logits_BP = self.scale * cosine_BP.scatter(1, person_B[:, None], with_margin_B1)
        return F.cross_entropy(logits_BP, person_B, reduction="none")


def _lengths(x_BD: torch.Tensor) -> torch.Tensor:
    """Lengths (B,) of embeddings, within the limits of the authors' code."""
    norm_B: torch.Tensor = x_BD.norm(dim=1)
    return norm_B.clamp(1e-3, 100)
