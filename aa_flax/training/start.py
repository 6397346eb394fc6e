"""The start of a run: a new model, and its values from weights, a run of the original, or none."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils

from aa_flax.config import Config, OptimizerConfig, images_of_config, options_of_config
from aa_flax.create import create_model
from aa_flax.data.batches import training_batches
from aa_flax.data.pixels import preprocess_batch
from aa_flax.data.sources import Source
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.match import match_statistics
from aa_flax.models.recalibrate import check_batch_norms
from aa_flax.models.registry import parse_name
from aa_flax.runtime import log_line
from aa_flax.weights.fit import fit, last_layer, named_weights, options_of, set_weights
from aa_flax.weights.locate import OfRun, locate
from aa_flax.weights.read import Weights, read_weights
from aa_flax.weights.state_dicts import torch_slots
from aa_flax.weights.train_state import TrainState


def new_model(config: Config, num_classes: int) -> Classifier:
    """Returns the model of a config, with random weights.

    Raises:
        InputError: the model cannot train on the config's images or batches: they are too small,
            or it has no batch statistics to recalibrate.
    """
    record, side = config.to_dict(), config.data.crop_size
    options = {"dtype": config.dtype, **options_of_config(record)}
    model = create_model(
        config.model, num_classes=num_classes, rngs=nnx.Rngs(config.seed), **options
    )
    model.remat = config.remat
    model.config = replace(model.config, **images_of_config(record))
    if config.recalibrate_batches:
        check_batch_norms(model)
    part = config.batch_size // (config.optimizer.accumulation_steps * config.batch_stat_groups)
    model.train()  # normalises by the statistics of the batch, which need more than one value
    graphdef, state = nnx.split(model)
    model.eval()
    image = jax.ShapeDtypeStruct((part, side, side, 3), jnp.float32)
    try:
        jax.eval_shape(lambda state, x: nnx.merge(graphdef, state)(x), state, image)
    except ValueError as error:
        raise InputError(
            f"config.data.crop_size {side}, {part} images in a part of a batch: {error}"
        ) from error
    return model


def init_from(source: str, model: Classifier) -> Weights:
    """Copies other weights into the model, and logs which arrays they have and lack.

    They may be of the same model, of its baseline or of another filter size, since all of these
    have the same variables; the last layer stays random where the weights have none, or one of
    another number of classes. `source` is a `config.init_from`, as `locate` accepts it. Returns the
    weights, for `match_start`.

    Raises:
        InputError: no such weights, or weights of another model.
    """
    weights = locate(source, model=model.name)
    base, _ = parse_name(model.name)
    if parse_name(weights.name)[0] != base:
        raise InputError(
            f"{source} has weights of {weights.name}; a {base} starts from those of {base} or "
            f"{base}_lpf1 to {base}_lpf7"
        )
    found = weights.load_relative(options_of(model))
    left = _copy_fitting(found, model, source)
    random = f"; random at the start: {', '.join(left)}" if left else ""
    count = len(named_weights(model)) - len(left)
    log_line(f"starting from {source} ({found.model}): {count} arrays loaded{random}")
    return found


def match_start(weights: Weights, model: Classifier, config: Config, source: Source) -> None:
    """Matches statistics of a model to those of the model that its initial weights are of.

    The images are the first `config.match_images` of the run.

    Raises:
        InputError: nothing can be matched.
    """
    batches = training_batches(source, config.batch_size, config.data, seed=config.seed)
    first = islice(batches, -(-config.match_images // config.batch_size))
    images = jnp.concatenate([preprocess_batch(batch, config.data) for batch in first])
    if jax.process_count() > 1:  # each host has read its part
        images = multihost_utils.process_allgather(images, tiled=True)
    images = np.asarray(images)[: config.match_images]
    options = {"dtype": config.dtype, **(weights.options or {})}
    origin = create_model(weights.model, num_classes=model.num_classes, **options)
    nnx.update(origin, nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    match_statistics(model, origin, images)
    log_line(f"statistics matched to those of {weights.model} on {len(images)} images")


def _copy_fitting(found: Weights, model: Classifier, source: str) -> list[str]:
    """Sets the variables; returns those that the weights lack, or have for other classes."""
    own = {name: tuple(v.shape) for name, v in named_weights(model).items()}
    given = {name: tuple(array.shape) for name, array in found.arrays.items()}
    left = {
        name: f"{name} {given[name]}, here {shape}" if name in given else f"{name} (not there)"
        for name, shape in own.items()
        if given.get(name) != shape
    }
    wrong = [left[name] for name in left if name in given and name not in last_layer(model)]
    if wrong:
        raise InputError(f"{source} does not fit {model.name}: {', '.join(wrong)}")
    set_weights(model, {name: found.arrays[name] for name in own if name not in left})
    return list(left.values())


class TorchRun(NamedTuple):
    """A run of the PyTorch original, from its training checkpoint.

    Attributes:
        epoch: epochs completed. momentum: SGD's momentum buffers, a tree like the parameters.
    """

    epoch: int
    momentum: Any

    def state(self, fresh: TrainState, steps_per_epoch: int) -> TrainState:
        """Returns the state of the run; `fresh` is that of the model with its weights."""
        step = jnp.full_like(fresh.step, self.epoch * steps_per_epoch)
        opt_state = optax.tree.set(fresh.opt_state, trace=self.momentum, count=step)
        state = fresh._replace(step=step, opt_state=opt_state)
        return jax.tree.map(jnp.copy, state)  # a step donates its state, each array once


def read_torch_run(
    path: Path, model: Classifier, options: OptimizerConfig, num_epochs: int
) -> TorchRun:
    """Reads `{'epoch', 'arch', 'state_dict', 'optimizer', ...}`; its weights go into the model.

    Raises:
        InputError: it is not a training checkpoint of this model, or not of SGD with the config's
            momentum and weight decay: the run would become another.
    """
    read = read_weights(path)
    content = read.checkpoint
    if not isinstance(content, Mapping) or not {"epoch", "optimizer"} <= content.keys():
        raise InputError(
            f"{path} has no optimizer and epoch to resume; to start from its weights give "
            f"--config.init_from={path}"
        )
    arch = content.get("arch")
    if arch not in (None, model.name, parse_name(model.name)[0]):
        raise InputError(f"{path} was trained as {arch}, not as {model.name}; give its --config")
    epoch = int(content["epoch"])
    if epoch > num_epochs:
        raise InputError(f"{path} has completed {epoch} epochs, config.num_epochs is {num_epochs}")
    set_weights(model, fit(model, read))
    buffers = _momentum_buffers(content["optimizer"], model, options, path)
    return TorchRun(epoch, _as_tree(buffers, model, path))


def _momentum_buffers(
    optimizer: Mapping[str, Any], model: Classifier, options: OptimizerConfig, path: Path
) -> dict[str, np.ndarray]:
    """Returns torch's buffers by the parameter's name; without one it has not been updated yet."""
    groups = optimizer["param_groups"]
    if len(groups) != 1:
        raise InputError(f"{path} has {len(groups)} groups of parameters; one can be resumed")
    group = groups[0]
    if "momentum" not in group or group.get("nesterov") or group.get("dampening"):
        raise InputError(
            f"{path} was not trained by SGD with plain momentum, so its optimizer cannot be "
            f"resumed; to start from its weights give --config.init_from={path}"
        )
    for name in ("momentum", "weight_decay"):
        if group[name] != options[name]:
            raise InputError(
                f"{path} was trained with {name} {group[name]}, the config has {options[name]}; "
                f"give --config.optimizer.{name}={group[name]}"
            )
    names = [name for name in torch_slots(model) if "running_" not in name]
    if len(names) != len(group["params"]):
        raise InputError(
            f"{path} has an optimizer of {len(group['params'])} parameters, {model.name} has "
            f"{len(names)}"
        )
    buffers = {}
    for name, index in zip(names, group["params"], strict=True):  # both in torch's order
        buffer = optimizer["state"].get(index, {}).get("momentum_buffer")
        if buffer is not None:
            buffers[name] = buffer.float().numpy()
    return buffers


def _as_tree(buffers: Mapping[str, np.ndarray], model: Classifier, path: Path) -> Any:
    """Returns the buffers in the tree of the parameters; a missing one is zero."""
    twin = nnx.clone(model)
    for name, slot in torch_slots(twin).items():
        buffer = buffers.get(name, np.zeros(slot.torch_shape, np.float32))
        if buffer.shape != slot.torch_shape:
            raise InputError(
                f"{path} has a momentum of shape {buffer.shape} for {name}, which has "
                f"{slot.torch_shape}"
            )
        slot.variable.set_value(jnp.asarray(slot.from_torch(buffer)))
    return nnx.state(twin, nnx.Param)


def model_from_workdir(workdir: str | Path, step: int | None = None) -> tuple[Classifier, str]:
    """Returns the model of a run with the weights of a checkpoint; the run's data is not needed.

    Args:
        step: the checkpoint, by the name of its folder; default: the best by top-1, or the latest
            if none is evaluated yet.

    Returns:
        The model, and a description of its weights, for people.

    Raises:
        InputError: no run there, no such checkpoint, or a damaged one.
    """
    weights = OfRun(workdir, step=step)
    return weights.load_model(), weights.sentence()
