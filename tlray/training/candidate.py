"""A candidate: a model, its optimiser and its schedule of learning rates.

The loop trains several candidates on one stream of batches; plain training has one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tlray.bundle.bundle import Model
from tlray.config import Config, Optim
from tlray.models import eager
from tlray.models.backbone import Backbone, Features
from tlray.training.average import Snapshots

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which a forward pass computes in a precision."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


class Candidate:
    """A model in training: one optimiser step per batch, at the schedule's learning rate."""

    def __init__(
        self, model: Model, config: Config, steps_per_epoch: int, device: torch.device, world: int = 1
    ) -> None:
        self.model, self.config, self.device, self.world = model, config, device, world
        self.optim = config.optim
        self.num_steps = config.train.epochs * steps_per_epoch
        self.warmup_steps = round(config.optim.warmup_ratio * self.num_steps)
        module = model.module.to(device)
        if config.train.channels_last:
            module = module.to(memory_format=torch.channels_last)
        self.optimizer = _optimizer(module, config.optim)
        self.snapshots = Snapshots(module, self.num_steps, config.train.soup, config.train.ema)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
        self.forward: nn.Module = module
        if config.train.compile:
            self.forward = torch.compile(module)  # type: ignore[assignment]
        if world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.forward, device_ids=ids)

    def train_mode(self) -> None:
        """Put the model into training mode; its frozen stages stay in evaluation mode."""
        self.forward.train()

    def lr(self, step: int) -> float:
        """The head's learning rate at a step."""
        return self.optim.lr * schedule(step, self.num_steps, self.warmup_steps, self.optim.final_lr_ratio)

    def step(
        self, x_BCHW: torch.Tensor | Features, targets: dict[str, Any], step: int, weight: float
    ) -> torch.Tensor:
        """One update; returns the batch's mean loss (scalar, detached, on the device).

        ``weight`` is this rank's share of the global batch times the number of ranks. Gradients are averaged
        over ranks, so this makes every row count the same.
        """
        if (set_progress := getattr(self.model.module, "trained", None)) is not None:
            set_progress(step / self.num_steps)
        factor = self.lr(step) / self.optim.lr
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        with autocast(self.device, self.config.train.precision):
            loss: torch.Tensor = self.forward(x_BCHW, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss * weight).backward()
        if self.optim.clip_grad_norm is not None:
            self.scaler.unscale_(self.optimizer)
            trainable = [p for group in self.optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(trainable, self.optim.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.snapshots.after(self.model.module, step + 1)
        return loss.detach()

    def share_statistics(self, gather: Callable[[Any], list[Any]]) -> None:
        """Give all workers the running statistics of rank 0, which are those that a bundle gets.

        Batch norm sees other rows in each worker. ``gather``: as `worker.Worker.gather`.
        """
        if self.world == 1:
            return
        module = self.model.module
        stored = module.state_dict().keys()
        own = {
            name: value.cpu()
            for name, value in module.named_buffers()
            if name in stored and value.is_floating_point()
        }
        module.load_state_dict(gather(own)[0], strict=False)

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """The optimiser's state as flat tensors ``<parameter number>.<name>``, for safetensors."""
        state = self.optimizer.state_dict()["state"]
        return {
            f"{i}.{k}": torch.as_tensor(v).contiguous()
            for i, values in state.items()
            for k, v in values.items()
        }

    def load_optimizer_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """The inverse of `optimizer_tensors`."""
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            number, key = name.split(".", 1)
            state.setdefault(int(number), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter, values in self.optimizer.state.items():
            for key, value in values.items():
                if value.shape == parameter.shape:
                    # A fused step needs the same memory layout in both, as channels last.
                    values[key] = torch.empty_like(parameter).copy_(value)


def schedule(step: int, num_steps: int, warmup_steps: int, final_ratio: float) -> float:
    """The factor (0..1) of the highest learning rate at a step: linear warm-up, then half a cosine down to
    ``final_ratio`` (arXiv 1608.03983)."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _optimizer(module: nn.Module, settings: Optim) -> torch.optim.Optimizer:
    """An optimiser with a group of parameters for each learning rate and weight decay.

    Stages of the backbone have lower rates than the head. Norms, biases and what timm's model exempts
    (position embeddings, tokens) have no decay.
    """
    backbone: Backbone = module.backbone  # type: ignore[assignment]
    in_backbone = {id(p) for p in backbone.parameters()}
    head = [p for p in module.parameters() if id(p) not in in_backbone and p.requires_grad]
    parts: list[tuple[float, list[nn.Parameter]]] = [(settings.lr, head)]
    for stage, parameters in backbone.parameter_groups():
        distance = len(backbone.stages) - 1 - stage
        lr = settings.lr * settings.backbone_lr_ratio * settings.layer_decay**distance
        parts.append((lr, list(parameters.values())))
    exempt = backbone.no_weight_decay()
    groups = [
        {"params": chosen, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for lr, parameters in parts
        for decay, chosen in (
            (settings.weight_decay, [p for p in parameters if p.ndim > 1 and id(p) not in exempt]),
            (0.0, [p for p in parameters if p.ndim <= 1 or id(p) in exempt]),
        )
        if chosen
    ]
    if settings.optimizer == "sgd":
        # Not fused: where the first step in fp16 overflows, fused SGD keeps an uninitialised momentum.
        return eager.optimizer(torch.optim.SGD)(
            groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.momentum > 0
        )
    # Fused: one pass over the weights takes a third of the time of the default's many, on a CPU, too.
    adamw = eager.optimizer(torch.optim.AdamW)
    return adamw(groups, lr=settings.lr, betas=(settings.momentum, 0.999), fused=True)
