"""Evaluates nets: python eval.py [--config C] [--weights W] [--shift] ... [--output results.json].

Without --config the quickstart's; without --weights the best checkpoint of the config's run. W is a
run's folder, a .safetensors or torch file (.pth, .pth.tar), or published weights: `pretrained`, as
the original chooses, `finetuned` or `scratch`.

Several nets in turn: python eval.py --models 'resnet*_lpf4,vgg16' [--weights W] [--output FOLDER].
Each gets FOLDER/<net>.json; what is there already is kept, so the same command continues after an
interruption. W is `pretrained` unless given; in a path, {model} stands for the net's name.
"""

from pathlib import Path
from typing import Any

from absl import flags

from aa_flax import InputError, commands, create_model, list_models
from aa_flax.config import Config
from aa_flax.evaluation.evaluate import Measures, evaluate, is_done
from aa_flax.models.classifier import Classifier
from aa_flax.sharding import is_main_process
from aa_flax.training.initialise import model_from_workdir
from aa_flax.weights.pretrained import choose

_WEIGHTS = flags.DEFINE_string("weights", None, "a run's folder, a file, or pretrained")
_MODELS = flags.DEFINE_list("models", None, "names of nets to evaluate in turn, with * and ?")
_OUTPUT = flags.DEFINE_string(
    "output", None, "default: results.json in the run's folder; of several nets runs/evaluation/"
)
_MEASURES = (
    flags.DEFINE_bool("shift", False, "shift consistency: pairs of crops at random offsets"),
    flags.DEFINE_bool("per_batch", False, "--shift with one pair of offsets a batch"),
    flags.DEFINE_bool("circular", False, "consistency of rolled images"),
    flags.DEFINE_bool("worst_case", False, "images that are right at each of a grid of offsets"),
    flags.DEFINE_bool("subpixel", False, "consistency under shifts of less than a pixel"),
    flags.DEFINE_bool("jitter", False, "consistency of random crops, resized"),
    flags.DEFINE_bool("diagonal", False, "probabilities along diagonal shifts: .npz and figure"),
    flags.DEFINE_bool("equivariance", False, "maps of each block's equivariance: .npz and figure"),
    flags.DEFINE_bool("per_class", False, "accuracy of each class"),
    flags.DEFINE_bool("time", False, "the time of a forward pass of 48 images"),
)
_IMAGES = flags.DEFINE_list("images", ["0"], "which images the figure of --diagonal shows")
_PATHS = (
    flags.DEFINE_string("predictions", None, "save every image's predictions to this .npz file"),
    flags.DEFINE_string("corruptions", None, "a tree like ImageNet-C"),
    flags.DEFINE_string("perturbations", None, "a tree like ImageNet-P, of frames"),
    flags.DEFINE_string("flip_rates", None, "a reference's flip rates, for the mFR"),
)


def main() -> None:
    config, workdir = commands.config_and_workdir()
    if _MODELS.value:
        _evaluate_in_turn(config, _MODELS.value)
        return
    source = _WEIGHTS.value or str(workdir)
    model, weights = _load(source, config)
    folder = Path(source) if Path(source).is_dir() else Path()
    output = Path(_OUTPUT.value) if _OUTPUT.value else folder / "results.json"
    evaluate(model, config, weights=weights, output=output, **vars(_measures()))


def _evaluate_in_turn(config: Config, patterns: list[str]) -> None:
    """Goes through the nets; one that cannot be evaluated does not keep the others from it."""
    folder = Path(_OUTPUT.value or "runs/evaluation")
    _measures()  # a mistake in a flag shows before the first net
    failed = []
    for name in _names(patterns):
        config.model = name
        output = folder / f"{name}.json"
        try:
            model, weights = _load((_WEIGHTS.value or "pretrained").format(model=name), config)
            if is_done(output, name, weights, config, _measures(name)):
                _print(f"{output} is there already")
                continue
            evaluate(model, config, weights=weights, output=output, **vars(_measures(name)))
        except InputError as error:
            failed.append(name)
            _print(f"{name} is left out: {error}")
    if failed:
        raise InputError(f"{len(failed)} nets could not be evaluated: {', '.join(failed)}")


def _names(patterns: list[str]) -> list[str]:
    found: dict[str, None] = {}
    for pattern in patterns:
        names = list_models(pattern)
        if not names:
            raise InputError(f"no net is called {pattern!r}; see aa_flax.list_models()")
        found |= dict.fromkeys(names)
    return list(found)


def _load(source: str, config: Config) -> tuple[Classifier, str]:
    """The config's net with the weights in `source`, and where they come from, for the record."""
    name, path = config.model, Path(source)
    if source in ("pretrained", "finetuned", "scratch"):
        training = None if source == "pretrained" else source
        model = create_model(name, pretrained=training or True, dtype=config.dtype)
        return model, choose(name, training).filename
    if path.suffix in (".safetensors", ".pth", ".pt", ".tar"):
        return create_model(name, pretrained=path, dtype=config.dtype), source
    model, weights = model_from_workdir(path)
    if model.name != name:
        raise InputError(f"the run in {path} trained {model.name}, not {name}; give its --config")
    return model, weights


def _measures(model: str | None = None) -> Measures:
    """What the flags ask for; of several nets, each has a file of predictions of its own."""
    values: dict[str, Any] = {flag.name: flag.value for flag in _MEASURES}
    values |= {flag.name: Path(flag.value) for flag in _PATHS if flag.value}
    if model and "predictions" in values:
        path = values["predictions"]
        values["predictions"] = path.with_name(f"{path.stem}_{model}{path.suffix}")
    if not all(image.isdigit() for image in _IMAGES.value):
        raise InputError(f"--images are numbers such as 0,5,9; got {','.join(_IMAGES.value)}")
    return Measures(**values, images=tuple(int(image) for image in _IMAGES.value))


def _print(message: str) -> None:
    if is_main_process():
        print(message)


if __name__ == "__main__":
    commands.define_flags()
    commands.run(main)
