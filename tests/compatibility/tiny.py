"""The backbone of the stored files: so small that weights in several places fit into the repository."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

NAME = "compatibility_resnet"


def register() -> None:
    """Make the backbone known to timm in this process; a second call changes nothing."""
    if not timm.is_model(NAME):
        register_model(compatibility_resnet)


def compatibility_resnet(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,
    **settings: Any,
) -> ResNet:
    return ResNet(
        BasicBlock, layers=(1, 1, 1, 1), channels=(4, 4, 8, 8), stem_type="deep", stem_width=2, **settings
    )
