"""The net of a run, and the weights it starts from."""

from pathlib import Path

from flax import nnx

from aa_flax.config import Config, options_of_config
from aa_flax.create import create_model
from aa_flax.errors import InputError
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import parse_name
from aa_flax.runtime import log_line
from aa_flax.weights.fit import last_layer, named_weights, options_of, set_weights
from aa_flax.weights.locate import OfRun, locate
from aa_flax.weights.read import Weights


def model_of(config: Config, num_classes: int) -> Classifier:
    """The net of a config, with fresh weights."""
    model = create_model(
        config.model,
        num_classes=num_classes,
        rngs=nnx.Rngs(config.seed),
        dtype=config.dtype,
        **options_of_config(config.to_dict()),
    )
    model.remat = config.remat
    return model


def init_from(source: str, model: Classifier) -> None:
    """Starts the model, in place, from other weights, and prints what it took and what it did not.

    They may be of the same net, of its baseline or of another filter size, since all of these have
    the same variables; the last layer stays as it is where it is absent, or the number of classes
    differs.

    Args:
        source: `config.init_from`: "" leaves all as it is; else as `aa_flax.weights.locate` takes
            it: `pretrained`, `finetuned`, `scratch`: the net's published weights; `baseline`: those
            of the net without antialiasing; a weights file; the folder of a run.

    Raises:
        InputError: no such weights, or weights of another net.
    """
    if not source:
        return
    weights = locate(source, model=model.name)
    base, _ = parse_name(model.name)
    if parse_name(weights.name)[0] != base:
        raise InputError(
            f"{source} holds weights of {weights.name}; a {base} starts from those of {base} or "
            f"{base}_lpf1 to {base}_lpf7"
        )
    held = weights.load_relative(options_of(model))
    left = _take(held, model, source)
    anew = f"; not taken, so starting anew: {', '.join(left)}" if left else ""
    taken = len(named_weights(model)) - len(left)
    log_line(f"starting from {source} ({held.model}): {taken} arrays taken{anew}")


def _take(held: Weights, model: Classifier, source: str) -> list[str]:
    """Sets the variables; gives those the weights do not have, or for other classes."""
    own = {name: tuple(v.shape) for name, v in named_weights(model).items()}
    given = {name: tuple(array.shape) for name, array in held.arrays.items()}
    left = {
        name: f"{name} {given[name]}, here {shape}" if name in given else f"{name} (not there)"
        for name, shape in own.items()
        if given.get(name) != shape
    }
    wrong = [left[name] for name in left if name in given and name not in last_layer(model)]
    if wrong:
        raise InputError(f"{source} does not fit {model.name}: {', '.join(wrong)}")
    set_weights(model, {name: held.arrays[name] for name in own if name not in left})
    return list(left.values())


def model_from_workdir(workdir: str | Path, step: int | None = None) -> tuple[Classifier, str]:
    """The net of a run, with the weights of one of its checkpoints. The run's data is not needed.

    Args:
        step: which checkpoint, by its folder's name; default: the best by top-1, or the latest of a
            run that has evaluated none yet.

    Returns:
        The net, and where its weights come from, in words.

    Raises:
        InputError: no run there, no such checkpoint, or a damaged one.
    """
    weights = OfRun(workdir, step=step)
    return weights.load_model(), weights.sentence()
