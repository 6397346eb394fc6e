"""The net of a run, and the weights it starts from."""

from functools import partial
from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from aa_flax.config import Config
from aa_flax.create import create_model
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.sharding import is_main_process
from aa_flax.training.checkpoints import Checkpoints
from aa_flax.weights.convert import abstract_net, model_in
from aa_flax.weights.files import is_safetensors, named_weights, read_metadata
from aa_flax.weights.pretrained import choose, pretrained_file
from aa_flax.weights.torch_files import read_torch_file


def model_of(config: Config, num_classes: int) -> Classifier:
    """The net of a config, with fresh weights."""
    model = create_model(
        config.model, num_classes=num_classes, rngs=nnx.Rngs(config.seed), dtype=config.dtype
    )
    model.remat = config.remat
    return model


def init_from(source: str, model: Classifier) -> None:
    """Starts the model, in place, from other weights, and prints what it took and what it did not.

    They may be of the same net, of its baseline or of another filter size, since all of these have
    the same variables; the last layer stays as it is where the number of classes differs.

    Args:
        source: `config.init_from`: "" leaves all as it is; `pretrained`: the net's published
            weights; `baseline`: those of the net without antialiasing; a safetensors or torch file;
            the folder of a run.

    Raises:
        InputError: no such weights, or weights of another net.
    """
    if not source:
        return
    other = _net_in(source, model.name)
    given, left = named_weights(other), []
    for name, variable in named_weights(model).items():
        if given[name].shape == variable.shape:
            variable.set_value(jnp.array(given[name][...]))
        else:
            left.append(f"{name} {given[name].shape}, here {variable.shape}")
    if is_main_process():
        anew = f"; not taken, so starting anew: {', '.join(left)}" if left else ""
        print(f"starting from {source} ({other.name}): {len(given) - len(left)} arrays taken{anew}")


def _net_in(source: str, name: str) -> Classifier:
    """The net whose weights `source` holds: a relative of the net `name`."""
    base, _ = parse_name(name)
    path = Path(source)
    if source in ("pretrained", "baseline"):
        released = choose(name if source == "pretrained" else base)
        path, found = pretrained_file(released), released.model
    elif path.is_dir():
        return model_from_workdir(path, relative_of=base)[0]
    elif is_safetensors(path):
        found = read_metadata(path).get("model", name)
    else:
        filters = [v for k, v in read_torch_file(path).items() if k.endswith(".filt")]
        found = f"{base}_lpf{filters[0].shape[-1]}" if filters else base
    _check_relative(found, base, source)
    return model_in(path, partial(abstract_net, found))


def _check_relative(name: str, base: str, source: str | Path) -> None:
    if parse_name(name)[0] != base:
        raise InputError(
            f"{source} holds weights of {name}; a {base} starts from those of {base} or "
            f"{base}_lpf1 to {base}_lpf7"
        )


def model_from_workdir(
    workdir: Path, step: int | None = None, relative_of: str = ""
) -> tuple[Classifier, str]:
    """The net of a run, with the weights of one of its checkpoints. The run's data is not needed.

    Args:
        step: which checkpoint, by its folder's name; default: the best by top-1, or the latest of a
            run that has evaluated none yet.
        relative_of: a net without antialiasing that the run's net must be a variant of.

    Returns:
        The net, and where its weights come from, for the record.

    Raises:
        InputError: no run there, no such checkpoint, or a damaged one.
    """
    if not (workdir / "config.json").is_file():
        raise InputError(
            f"no run in {workdir} (no config.json there); train first, or give --weights"
        )
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        record = checkpoints.find(step)
        name = record.config["model"]
        if relative_of:
            _check_relative(name, relative_of, workdir)
        dtype = record.config["dtype"]
        model = create_model(name, num_classes=record.num_classes, dtype=dtype)
        checkpoints.restore_model(record.step, model)
        best = ", the best" if record == checkpoints.best else f", step {record.step}"
    return model, f"{workdir} (epoch {record.epoch}{best})"
