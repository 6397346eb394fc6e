"""The config of a run: every value, its range, and the checks before all work."""

import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import jax
from ml_collections.config_dict import RequiredValueError

from aa_flax.errors import InputError, unknown
from aa_flax.files import local_path
from aa_flax.models.registry import parse_name
from aa_flax.pools import pool_factory

MOST = 2**31 - 1  # the largest integer that is accepted
_BOUNDS = {
    "at_least": operator.ge,
    "at_most": operator.le,
    "above": operator.gt,
    "below": operator.lt,
}


def _number(default: float, **bounds: float) -> Any:
    """A number within bounds, which `_BOUNDS` has the names of."""
    if isinstance(default, int):
        bounds.setdefault("at_most", MOST)
    return field(default=default, metadata=bounds)


def _one_of(*known: str) -> Any:
    """One of a few words; the first is the default."""
    return field(default=known[0], metadata={"known": known})


class _Group:
    """Values by attribute, as in `config.batch_size`, or by name, as in `config["batch_size"]`."""

    def to_dict(self) -> dict[str, Any]:
        """Returns nested dicts, as in `configs/`."""
        return asdict(self)  # pyright: ignore[reportArgumentType]

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


@dataclass
class OptimizerConfig(_Group):
    """SGD with momentum, and its learning rate."""

    # The learning rate over the epochs: in steps, along a cosine, or up and down once.
    schedule: str = _one_of("step", "cosine", "one_cycle")
    # The highest learning rate of the schedule.
    learning_rate: float = _number(0.1, at_least=0)
    # SGD's momentum.
    momentum: float = _number(0.9, at_least=0, below=1)
    # Weight decay of every parameter, or of kernels only: see decay_norm_and_bias.
    weight_decay: float = _number(1e-4, at_least=0)
    # Schedule "step": epochs between two steps.
    step_epochs: int = _number(30, at_least=1)
    # Schedule "step": each step multiplies the learning rate by this.
    step_factor: float = _number(0.1, above=0)
    # Schedule "cosine": changes the learning rate at each step, not at each epoch.
    per_step: bool = False
    # Epochs in which the learning rate rises linearly from 0.
    warmup_epochs: int = _number(0, at_least=0)
    # Weight decay includes batch norms and biases.
    decay_norm_and_bias: bool = True
    # Multiplies the learning rate by batch_size / 256.
    scale_lr: bool = False
    # The probability mass that is spread over all classes.
    label_smoothing: float = _number(0.0, at_least=0, below=1)
    # Micro-batches per update.
    accumulation_steps: int = _number(1, at_least=1)
    # How gradients of micro-batches are combined; the original uses "sum".
    accumulate: str = _one_of("mean", "sum")


@dataclass
class DistillConfig(_Group):
    """Training on the answers of a teacher instead of labels: docs/distill.md."""

    # The teacher's weights, with the words of init_from; "": none, labels are trained on.
    teacher: str = ""
    # Divides the logits of both models before the softmax.
    temperature: float = _number(1.0, above=0)
    # Shifted crops over which the teacher's answer is averaged; the first is the student's.
    shifts: int = _number(1, at_least=1)


@dataclass
class DataConfig(_Group):
    """The source of images, and their preprocessing: docs/data.md."""

    # The source: folder, digits, tfds:NAME[:VERSION], hfds:NAME, wds:PATTERN, or a registered one.
    name: str = "folder"
    # Its folder: with train/ and val/, or the data_dir of TFDS.
    path: str = ""
    # Pixels of the shorter side before cropping; 0: not resized.
    resize_size: int = _number(256, at_least=0, at_most=65535)
    # Resizing in evaluation; "": that of the weights, else bilinear.
    interpolation: str = _one_of("", "bilinear", "bicubic")
    # Pixels of the central square that shifted crops are cut from.
    image_size: int = _number(256, at_least=1, at_most=65535)
    # Pixels that the model sees.
    crop_size: int = _number(224, at_least=1, at_most=65535)
    # Augmentation of training images.
    augmentation: str = _one_of("random_resized_crop", "center_crop", "random_shift")
    # Mirrors every second training image at random.
    flip: bool = True
    # On an image that cannot be read; "skip" leaves it out.
    on_error: str = _one_of("stop", "skip")
    # The order of the logits: "imagenet", "sorted" or a file of class names; "": see docs/data.md.
    class_order: str = ""
    # Threads or processes that read images; 0: one per CPU core.
    num_workers: int = _number(0, at_least=0, at_most=4096)
    # The kind of those workers.
    worker_type: str = _one_of("thread", "process")


@dataclass
class EvalConfig(_Group):
    """Evaluation, during training and by `eval`."""

    # Images per batch at most, over all devices of all hosts; 0: 32 on CPUs, else 256.
    batch_size: int = _number(0, at_least=0)
    # Shifted crops have offsets from 0 to shift_range - 1 on each axis.
    shift_range: int = _number(32, at_least=1, at_most=65535)
    # Pairs of shifted crops per image.
    passes: int = _number(5, at_least=1)
    # Seed of the random offsets.
    seed: int = _number(0, at_least=0)


@dataclass
class LogConfig(_Group):
    """Metrics besides `metrics.jsonl`."""

    # Event files for TensorBoard (extra `tensorboard`).
    tensorboard: bool = False
    # Weights & Biases (extra `wandb`).
    wandb: bool = False


@dataclass
class CheckpointConfig(_Group):
    """Checkpoints besides the two latest and the best."""

    # Epochs between two checkpoints that are kept.
    keep_every: int = _number(10, at_least=1)


@dataclass
class Config(_Group):
    """A recipe; the defaults are those of ResNets: 90 epochs, batch 256, steps by ten.

    The recipes of `configs/` are an `ml_collections.ConfigDict` with these fields, for the command
    line; `check_config` converts it.
    """

    # The run's folder is runs/NAME, unless --workdir is given.
    name: str = "imagenet"
    # A name of `aa_flax.list_models()`.
    model: str = "resnet50_lpf4"
    # A registered pool for all subsampling; "": that of the model's name.
    pool: str = ""
    # Further arguments of the model, e.g. {"pool_only": False}.
    model_options: dict[str, Any] = field(default_factory=dict)
    # Seed of initial values, the order of images and augmentation.
    seed: int = _number(0, at_least=0)
    # Type of the computation; parameters and batch statistics are float32.
    dtype: str = _one_of("float32", "bfloat16", "float16")
    # Passes over the training images.
    num_epochs: int = _number(90, at_least=1)
    # Images per update, over all devices of all hosts.
    batch_size: int = _number(256, at_least=1)
    # Ends each epoch early, for a trial; 0: all steps.
    max_steps_per_epoch: int = _number(0, at_least=0)
    # Initial weights: "" (random), "pretrained", "baseline" (the published weights of the model
    # without antialiasing), a file, or the folder of a run.
    init_from: str = ""
    # Training images on which the statistics of `init_from` are matched to those of the model that
    # its weights are of; 0: they are copied.
    match_images: int = _number(0, at_least=0)
    # Batches of training images from which batch statistics are re-estimated before each
    # evaluation; 0: the running statistics of training.
    recalibrate_batches: int = _number(0, at_least=0)
    # Recomputes activations in the backward pass: less memory, more time.
    remat: bool = False
    # Traces a few steps into the run's folder, for TensorBoard or Perfetto.
    profile: bool = False
    # Number of parts of a batch that are normalised separately.
    batch_stat_groups: int = _number(1, at_least=1)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def to_json(self) -> str:
        """Returns `to_dict` as JSON."""
        return json.dumps(self.to_dict())


def check_config(config: Any, *, training: bool = False) -> Config:
    """Returns the typed config of a `ConfigDict`, a `Config` or nested dicts, with defaults.

    Code below this trusts it and checks nothing again.

    Args:
        training: also check what only training needs.

    Raises:
        InputError: an unknown field, a value of a wrong type or out of its range, an unknown model
            or word, an address for a path, images smaller than their crops, or batches that do not
            divide among the devices. For training also: an option that the schedule, the
            teacher or the start ignores, batches that do not divide into micro-batches and groups,
            and images too small for the shifts of the evaluation.
    """
    checked = _checked_group(Config, config, "config")
    if not checked.name:
        raise InputError('config.name is ""; it names the folder of the run, so give it one')
    _check_model(checked)
    if checked.data.path:
        checked.data.path = str(local_path(checked.data.path, "config.data.path"))
    size, crop, reach = checked.data.image_size, checked.data.crop_size, checked.eval.shift_range
    if size < crop:
        raise InputError(
            f"config.data.image_size {size} is smaller than crop_size {crop}, which is cut from it"
        )
    if checked.eval.batch_size % jax.device_count():
        raise InputError(
            f"config.eval.batch_size {checked.eval.batch_size} does not divide among "
            f"{jax.device_count()} devices"
        )
    if training:
        if checked.match_images and not checked.init_from:
            raise InputError(
                f"config.match_images={checked.match_images} matches statistics to those of the "
                "model that the weights are of; give config.init_from with it"
            )
        _check_schedule(checked.optimizer)
        _check_distill(checked)
        _check_batches(checked)
        if size < crop + reach - 1:
            raise InputError(
                f"images of {size} pixels are too small for crops of {crop} at offsets "
                f"0..{reach - 1}; change config.data.image_size, data.crop_size or eval.shift_range"
            )
    return checked


def _check_model(config: Config) -> None:
    """Checks the model, its pool, and its options, which have to be stored with the run."""
    base, filter_size = parse_name(config.model)
    if config.pool and filter_size is not None:
        raise InputError(
            f"config.pool {config.pool!r} would replace the BlurPools of {config.model}; give "
            f"--config.model={base} with it"
        )
    if config.pool:
        pool_factory(None, config.pool)
    try:
        json.dumps(config.model_options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"config.model_options {_shown(config.model_options)} cannot be stored as JSON "
            f"({error}); give numbers, words, True or False"
        ) from error


def _check_schedule(optimizer: OptimizerConfig) -> None:
    """Refuses options that have no effect on this schedule, unless they have their default."""
    used = {"step": {"step_epochs", "step_factor"}, "cosine": {"per_step"}, "one_cycle": set()}
    default = OptimizerConfig()
    for name in ("step_epochs", "step_factor", "per_step"):
        value = optimizer[name]
        if name not in used[optimizer.schedule] and value != default[name]:
            of = ", ".join(schedule for schedule, names in used.items() if name in names)
            raise InputError(
                f"config.optimizer.{name}={value} does nothing on schedule {optimizer.schedule}, "
                f"only on {of}; leave it out, or give --config.optimizer.schedule={of}"
            )


def _check_distill(config: Config) -> None:
    """Refuses options that have no effect with a teacher, or without one."""
    distill = config.distill
    if distill.teacher and config.optimizer.label_smoothing:
        raise InputError(
            f"config.optimizer.label_smoothing={config.optimizer.label_smoothing} does nothing "
            "with config.distill.teacher, whose answers replace labels; leave one of them out"
        )
    if not distill.teacher and distill != DistillConfig():
        raise InputError(
            f"config.distill.temperature={distill.temperature} and shifts={distill.shifts} do "
            "nothing without config.distill.teacher; give its weights, or leave them out"
        )
    if distill.shifts > 1 and config.data.augmentation != "random_shift":
        raise InputError(
            f"config.distill.shifts={distill.shifts} averages over shifted crops, and "
            f"config.data.augmentation {config.data.augmentation} makes none; give random_shift"
        )


def _check_batches(config: Config) -> None:
    """Checks that a batch divides into equal micro-batches, on each device and in each group."""
    micro_batches, groups = config.optimizer.accumulation_steps, config.batch_stat_groups
    devices = jax.device_count()
    for what, parts in (
        (f"{micro_batches} micro-batches on {devices} devices", devices),
        (f"{micro_batches} micro-batches of {groups} groups of batch statistics", groups),
    ):
        if config.batch_size % (micro_batches * parts):
            raise InputError(
                f"batch_size {config.batch_size} does not divide into {what}; change "
                "--config.batch_size, optimizer.accumulation_steps or batch_stat_groups"
            )


def _checked_group(kind: Any, given: Any, where: str) -> Any:
    """Returns a dataclass of values, each checked by its field."""
    to_dict = getattr(given, "to_dict", None)
    try:
        values: Any = to_dict() if to_dict else given
    except RequiredValueError as error:  # a placeholder without a value
        raise InputError(f"{where} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is {_shown(given)}; it has to be a group of values")
    known = {f.name: f for f in fields(kind)}
    for name in values:
        if name not in known:
            raise InputError(unknown_field(f"{where}.{name}".partition(".")[2]))
    return kind(
        **{name: _checked(known[name], value, f"{where}.{name}") for name, value in values.items()}
    )


def _checked(spec: Any, value: Any, where: str) -> Any:
    """Returns the value in the type of its field."""
    kind: Any = spec.type
    if is_dataclass(kind):
        return _checked_group(kind, value, where)
    value = _converted(kind, value, where)
    if "known" in spec.metadata:
        if value not in spec.metadata["known"]:
            raise InputError(unknown(where, value, list(spec.metadata["known"])))
        return value
    for bound, limit in spec.metadata.items():
        if not _BOUNDS[bound](value, limit):
            raise InputError(
                f"{where} is {_shown(value)}; it has to be {bound.replace('_', ' ')} {limit}"
            )
    return value


_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "text",
    dict: "a group of values, by name",
}


def _converted(kind: Any, value: Any, where: str) -> Any:
    """Returns a `bool`, `int`, `float`, `str` or `dict`; NumPy scalars and paths are accepted."""
    kind = getattr(kind, "__origin__", kind)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # scalars of NumPy and JAX
        value = value.item()
    if kind is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**63 else math.inf
    if kind is dict and isinstance(value, Mapping):
        value = dict(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where} is {_shown(value)}; it has to be {_WORDS[kind]}")
    if kind is float and not math.isfinite(value):
        raise InputError(f"{where} is {_shown(value)}; it has to be a finite number")
    if kind is str and set("\0\n") & set(str(value)):
        raise InputError(f"{where} is {_shown(value)}; it has to be one line of text")
    return value


def _shown(value: Any) -> str:
    """Returns a value for a message, on one line and not too long."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def config_fields() -> list[str]:
    """Returns the names of all values, e.g. `optimizer.momentum`, and of their groups."""
    names = []
    for group in fields(Config):
        names.append(group.name)
        if is_dataclass(group.type):
            names += [f"{group.name}.{value.name}" for value in fields(group.type)]
    return names


def unknown_field(name: str) -> str:
    """Returns the message about an unknown field: the nearest, or those it abbreviates (`lr`)."""

    def initials(path: str) -> str:
        return "".join(word[0] for word in path.rpartition(".")[2].split("_"))

    known = [f"config.{path}" for path in config_fields()]
    meant = [path for path in known if initials(path) == name.rpartition(".")[2]]
    message = unknown("field", f"config.{name}", known)
    return f"unknown field 'config.{name}'; did you mean {', '.join(meant)}?" if meant else message


def images_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the images of a run's evaluation, as fields of `ModelConfig`."""
    data = config["data"]
    sizes = {"input_size": data["crop_size"], "resize_size": data["resize_size"]}
    return {**sizes, "interpolation": data.get("interpolation") or "bilinear"}


def options_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of the model in a run's config."""
    options = dict(config.get("model_options") or {})
    return {**options, "pool": config["pool"]} if config.get("pool") else options
