"""Continuing a run of the PyTorch original: its training checkpoint, momentum and all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from aa_flax.config import Config
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.training.state import TrainState
from aa_flax.weights.fit import fit, set_weights
from aa_flax.weights.read import read_weights
from aa_flax.weights.state_dicts import torch_slots


class TorchRun(NamedTuple):
    """What a training checkpoint of the original holds.

    Attributes:
        epoch: epochs completed. momentum: SGD's momentum buffers, a tree as the parameters'.
    """

    epoch: int
    momentum: Any

    def state(self, fresh: TrainState, steps_per_epoch: int) -> TrainState:
        """The state it was saved from; `fresh` is made of the model that holds its weights."""
        step = jnp.full_like(fresh.step, self.epoch * steps_per_epoch)
        opt_state = optax.tree.set(fresh.opt_state, trace=self.momentum, count=step)
        state = fresh._replace(step=step, opt_state=opt_state)
        return jax.tree.map(jnp.copy, state)  # a step consumes its state, each array once


def read_torch_run(path: Path, model: Classifier, config: Config) -> TorchRun:
    """Reads `{'epoch', 'arch', 'state_dict', 'optimizer', ...}`; the weights go into the model.

    Raises:
        InputError: it is not a training checkpoint of this net, or not of SGD with the config's
            momentum and weight decay: the run would not be the one that was begun.
    """
    read = read_weights(path)
    content = read.checkpoint
    if not isinstance(content, Mapping) or not {"epoch", "optimizer"} <= content.keys():
        raise InputError(
            f"{path} holds no optimizer and epoch to resume; to start from its weights give "
            f"--config.init_from={path}"
        )
    arch = content.get("arch")
    if arch not in (None, model.name, parse_name(model.name)[0]):
        raise InputError(f"{path} was trained as {arch}, not as {model.name}; give its --config")
    epoch = int(content["epoch"])
    if epoch > config.num_epochs:
        raise InputError(
            f"{path} has completed {epoch} epochs, config.num_epochs is {config.num_epochs}"
        )
    set_weights(model, fit(model, read))
    buffers = _momentum_buffers(content["optimizer"], model, config, path)
    return TorchRun(epoch, _as_tree(buffers, model, path))


def _momentum_buffers(
    optimizer: Mapping[str, Any], model: Classifier, config: Config, path: Path
) -> dict[str, np.ndarray]:
    """torch's buffers by the parameter's name; a parameter without one has not moved yet."""
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
        if group[name] != config.optimizer[name]:
            raise InputError(
                f"{path} was trained with {name} {group[name]}, the config has "
                f"{config.optimizer[name]}; give --config.optimizer.{name}={group[name]}"
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
    """The buffers in the place of the parameters they belong to, zero where there is none."""
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
