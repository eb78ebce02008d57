"""The one typed configuration tree: a YAML file, then dotted overrides (``optim.lr=0.01``).

Imports neither ray nor torch, so that a mistake is reported before anything slow starts.
A task's own settings (label smoothing, loss, ...) stand under ``task:`` beside its name. The task's file in
``tlray/tasks`` defines them, and checks them when the task is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator

from tlray.config import recipe
from tlray.config.validation import AUTO, set_key, validate
from tlray.errors import ConfigError, spelling_hint

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

if TYPE_CHECKING:  # for code that runs after `defaults.resolve_auto`, which leaves no "auto"
    AutoRate = float
    AutoFactor = float
    AutoShare = float
    AutoCount = int
    AutoScale = tuple[float, float]
else:
    AutoRate = Literal["auto"] | Positive
    AutoFactor = Literal["auto"] | Annotated[float, Field(gt=0, le=1)]
    AutoShare = Literal["auto"] | NonNegative
    AutoCount = Literal["auto"] | Count
    AutoScale = Literal["auto"] | tuple[Share, Share]

COMMAND_LINE = "command line"


class Strict(BaseModel):
    """A part of the tree: it never changes, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Data(Strict):
    """Which data set, and how it is read."""

    uri: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    test_split: str = "test"
    cache_mb: Count = 1024  # encoded pictures that each rendering process keeps in memory
    shuffle_window: Count = 8192  # rows that are shuffled together, after the row groups were shuffled

    def required_uri(self) -> str:
        """`uri`. Raises ConfigError where it is not set."""
        if not self.uri:
            raise ConfigError(
                "data.uri = '' (configuration): accepted: the folder or s3:// URI that `tlray ingest` made"
            )
        return self.uri


class Input(Strict):
    """The model's input; a value that is left out is that of the backbone's pretrained weights."""

    size: Annotated[int, Field(ge=16, le=4096)] | None = None  # side of the square input, px
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    mean: tuple[float, float, float] | None = None
    std: tuple[Positive, Positive, Positive] | None = None


class Augmentation(Strict):
    """Random changes of training pictures, the same for the same seed, epoch and row."""

    # mild, wide: one random operation of TrivialAugment's; rand: two of RandAugment's; colour: brightness,
    # contrast and saturation below; photometric: SSD's. With boxes or masks, only operations on colour.
    policy: Literal["auto", "none", "colour", "mild", "wide", "rand", "photometric"] = "auto"
    scale: AutoScale = AUTO  # share of the picture's area that a crop keeps; 1, 1: as in evaluation
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)  # width / height of the crop
    scale_jitter: tuple[Positive, Positive] | None = None  # resize by a factor between these, without crops
    hflip: Share = 0.5
    vflip: Share = 0.0
    brightness: Share = 0.2  # this and the next two: for the policy colour
    contrast: Share = 0.2
    saturation: Share = 0.2
    erase: Share = 0.0  # how often a random rectangle is erased; not with boxes or masks
    # Each task accepts those of the next four that its labels can follow: `Task.supported_augmentations`.
    mixup: NonNegative = 0.0  # alpha of Beta(alpha, alpha), which draws another picture's share; 0: none
    cutmix: NonNegative = 0.0  # the same for a rectangle of another picture; both set: each at even odds
    mosaic: Share = 0.0  # share of the pictures that are made of four, with crops of their own
    class_balance: Share = 0.0  # share of crops placed on a class, drawn evenly from the picture's
    views: Count | None = None  # variants of each picture; 1: the picture itself; None: a new one each epoch

    @field_validator("scale", "ratio", "scale_jitter")
    @classmethod
    def ordered(cls, value: Any) -> Any:
        if isinstance(value, tuple) and not 0 < value[0] <= value[1]:
            raise ValueError("must be two numbers above 0, the smaller one first")
        return value


class ModelSettings(Strict):
    """The pretrained network, and how much of it is frozen."""

    backbone: str = "resnet10t-nano"
    weights: str = "builtin"  # builtin | timm | none | hf-hub:NAME | a local or s3:// .safetensors file
    freeze: int | float | str = (
        0  # stages frozen from the input up: a count, a fraction, a stage's name, "all"
    )
    drop_rate: Share = 0.0
    drop_path_rate: Share = 0.0
    head: str | None = None  # a bundle (then with its backbone) or .safetensors file to start from


class Optim(Strict):
    """Optimiser and schedule: warm-up, then cosine."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: AutoRate = AUTO  # highest learning rate of the head
    backbone_lr_ratio: AutoShare = AUTO  # learning rate of the backbone divided by that of the head
    layer_decay: AutoFactor = AUTO  # factor of the learning rate from each stage to the one before it
    weight_decay: NonNegative = 0.05  # not on norms and biases, nor on parameters that the model exempts
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd; beta1 of adamw
    warmup_ratio: Share = 0.1  # share of the steps in which the learning rate rises
    final_lr_ratio: Share = 0.0  # learning rate of the last step divided by the highest
    clip_grad_norm: Positive | None = 1.0


class Train(Strict):
    """The length of a run, its arithmetic and its checkpoints."""

    epochs: AutoCount = AUTO
    batch_size: AutoCount = AUTO  # rows of a step over all workers
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    early_stop_epochs: Count | None = None  # epochs without improvement before the run ends
    checkpoint_every_steps: Count | None = None  # within an epoch; one is written at its end anyway
    keep_checkpoints: Count = 2
    soup: Annotated[int, Field(ge=0, le=64)] = 6  # snapshots in the last half of training to average; 0: none
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of a moving average of the weights


class Scale(Strict):
    """How many workers train, and what each of them needs."""

    num_workers: Count = 1
    gpus_per_worker: NonNegative | Literal["auto"] = "auto"  # auto: 1 if the cluster has GPUs
    cpus_per_worker: Count | Literal["auto"] = "auto"  # auto: an equal part of the cores; also its threads
    max_failures: Annotated[int, Field(ge=0)] = 3  # how often lost workers are replaced before the run fails


class Choice(Strict):
    """One of these values."""

    choice: Annotated[list[Any], Field(min_length=1)]


class Uniform(Strict):
    """A number between two others; ``log``: uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    @field_validator("high")
    @classmethod
    def above_low(cls, value: float, info: Any) -> float:
        if value <= info.data.get("low", float("-inf")):
            raise ValueError("must be above low")
        return value


def _kind(value: Any) -> str:
    """Whether a value of the space is meant as a Choice or as a Uniform; errors then name that one alone."""
    return (
        "choice"
        if isinstance(value, Choice) or (isinstance(value, dict) and "choice" in value)
        else "uniform"
    )


Range = Annotated[
    Annotated[Choice, Tag("choice")] | Annotated[Uniform, Tag("uniform")],
    Discriminator(_kind),
]
if TYPE_CHECKING:
    AutoSpace = dict[str, Range]
else:
    AutoSpace = Annotated[
        Annotated[Literal["auto"], Tag("auto")] | Annotated[dict[str, Range], Tag("space")],
        Discriminator(lambda value: "auto" if isinstance(value, str) else "space"),
    ]


class Search(Strict):
    """What ``tlray tune`` tries, and how. ``space``: any dotted key of this tree -> Choice or Uniform."""

    space: AutoSpace = AUTO  # auto: three freeze depths x 0.5, 1 and 2 times the learning rate of auto
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    num_trials: Count = 9  # of tpe and random; grid tries every combination
    scheduler: Literal["asha", "none"] = "asha"
    grace_epochs: Count = 2  # epochs of a trial before it may be stopped
    reduction_factor: Annotated[int, Field(ge=2)] = 3  # of asha: one of so many trials goes on at each rung
    max_concurrent: Count | Literal["auto"] = "auto"
    probe: bool = True  # first fit a linear classifier on frozen features; it may win (classification)
    start_with_probe: bool | Literal["auto"] = "auto"  # from its head; auto: below 50 pictures a class
    soup: Annotated[int, Field(ge=0, le=32)] = 5  # best trials whose weights are averaged at the end; 0: none
    extend: bool = True  # if the winner has the last value of an axis, try the next value
    deepen: bool = False  # train frozen trials first; the others start from the best head, or are left out
    scores: bool = False  # score backbones and depths first (kNN, ridge, LogME); deepen: leave some out
    fuse: bool = True  # trials of one worker train side by side, on the same batches and frozen features
    side_by_side: Count = 16  # most trials in one process
    cache: str | None = "cache"  # folder or s3:// URI where features are kept for later searches
    cache_mb: Count = 10_240  # of the cache
    cache_dtype: Literal["fp32", "fp16", "bf16"] = "fp16"  # `tlray cache ls` shows its largest rounding error
    memory_mb: Count = 2048  # features that each process may keep in memory


class Serving(Strict):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Count = 1
    target_ongoing_requests: Positive = 8
    max_queued_requests: Count = 256  # more are answered 503 with Retry-After
    max_batch_size: Count = 16
    batch_wait_s: NonNegative = 0.005
    max_body_mb: Positive = 32
    max_pictures: Count = 64  # in one request
    max_megapixels: Positive = 50
    timeout_s: Positive = 30
    cpus_per_replica: Positive = 1
    gpus_per_replica: NonNegative = 0
    gallery: str = "gallery"  # folder or s3:// URI of enrolled people, which every replica can reach


class Track(Strict):
    """Where metrics are written besides the report."""

    tensorboard: bool = True
    mlflow: str | None = None  # tracking URI


class Config(Strict):
    """The whole tree. ``name`` identifies the run: the same name again continues it."""

    name: str = "run"
    runs: str = "runs"  # folder or s3:// URI that the run's folder lies in
    models: str = "models"  # the registry's folder or s3:// URI
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    task: dict[str, Any] = {"name": "classification"}
    data: Data = Data()
    input: Input = Input()
    augment: Augmentation = Augmentation()
    model: ModelSettings = ModelSettings()
    optim: Optim = Optim()
    train: Train = Train()
    scale: Scale = Scale()
    search: Search = Search()
    serve: Serving = Serving()
    track: Track = Track()

    @field_validator("name")
    @classmethod
    def a_folders_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
            raise ValueError("1 to 64 of A-Z a-z 0-9 . _ -, the first of them a letter or a digit")
        return value

    @property
    def run_uri(self) -> str:
        """Folder of this run."""
        return f"{self.runs.rstrip('/')}/{self.name}"

    def override(self, changes: Mapping[str, Any], origin: str | Mapping[str, str] = "override") -> Config:
        """A new tree with dotted keys changed. ``origin``: where the values come from, for error messages:
        one text, or one for each key. Raises ConfigError as `load` does.
        """
        tree = self.model_dump(mode="json")
        origins = dict.fromkeys(changes, origin) if isinstance(origin, str) else dict(origin)
        for key, value in changes.items():
            set_key(tree, key, value, origins[key])
        return validate(Config, tree, "configuration", origins=origins)


def load(path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file (None: all defaults) and apply ``key=value`` overrides, values in YAML syntax.

    Raises ConfigError for a file that cannot be read, a key that stands twice, an unknown key (the message
    names the nearest known one) and a value out of range.
    """
    tree: Any = {}
    if path is not None:
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(
                f"{path}: cannot be read ({why}); accepted: a YAML file{spelling_hint(path)}"
            ) from None
        tree = recipe.read(text, path)
        tree = {} if tree is None else tree
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: holds a {type(tree).__name__}; accepted: a mapping of keys")
    origins = {}
    for item in overrides:
        key, sign, text = item.partition("=")
        if not sign:
            raise ConfigError(f"{item!r} ({COMMAND_LINE}): accepted: key=value, as in optim.lr=0.01")
        set_key(tree, key, recipe.read_value(text, f"{item!r} ({COMMAND_LINE})"), COMMAND_LINE)
        origins[key] = COMMAND_LINE
    return validate(Config, tree, path or COMMAND_LINE, origins=origins)


def parse(tree: dict[str, Any], origin: str) -> Config:
    """The configuration of a plain tree; ``origin``: a file's name for error messages. Raises ConfigError."""
    return validate(Config, tree, origin)
