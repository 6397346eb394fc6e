"""Evaluates nets: python eval.py [--config C] [--weights W] [--shift] ... [--output results.json].

Without --config the quickstart's; without --weights the best checkpoint of the config's run. W is a
run's folder, a file of weights, or published weights: `pretrained`, as the original chooses,
`finetuned`, `scratch` or `baseline`.

Several nets in turn: python eval.py --models 'resnet*_lpf4,vgg16' --config configs/imagenet.py
--config.data.path=ILSVRC2012 [--weights W] [--output FOLDER]. Each gets FOLDER/<net>.json; what is
there already is kept, so the same command continues after an interruption. W is `pretrained` unless
given; in a path, {model} stands for the net's name.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from aa_flax import InputError, commands
from aa_flax.evaluation.measure import Option
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.turns import evaluate_in_turn, evaluate_one

_WEIGHTS = flags.DEFINE_string(
    "weights", None, "a run's folder, a file, or pretrained, finetuned, scratch, baseline"
)
_MODELS = flags.DEFINE_list("models", None, "names of nets to evaluate in turn, with * and ?")
_OUTPUT = flags.DEFINE_string(
    "output", None, "default: results.json in the run's folder; of several nets runs/evaluation/"
)
_DEFINE: Mapping[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    Path: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def main() -> None:
    config, workdir = commands.config_and_workdir()
    options = {option.name: flags.FLAGS[option.name].value for option in _options()}
    given = {"output": _OUTPUT.value, "options": options}
    try:
        if _MODELS.value:
            evaluate_in_turn(config, _MODELS.value, weights=_WEIGHTS.value or "pretrained", **given)
        else:
            evaluate_one(config, weights=_WEIGHTS.value or str(workdir), **given)
    except KeyboardInterrupt as stop:
        print(f"stopped; {str(stop) or 'nothing was measured yet'}", file=sys.stderr)
        sys.exit(130)  # as a shell says of Ctrl-C


def define_measures() -> None:
    """A flag for each option of each measure.

    Raises:
        InputError: a measure's option that is a flag of this command already.
    """
    for option in _options():
        if option.name in flags.FLAGS:
            raise InputError(
                f"a measure has an option {option.name!r}, which is a flag of eval.py already; "
                "give it another name"
            )
        default = option.default
        if isinstance(default, tuple):
            default = [str(number) for number in default]
        _DEFINE[option.kind](option.name, default, option.help)


def _options() -> list[Option]:
    return [option for m in MEASURES.values() if not m.always for option in m.options]


if __name__ == "__main__":
    commands.define_flags()  # loads plug-ins, whose measures have flags, too
    try:
        define_measures()
    except InputError as error:
        sys.exit(f"error: {error}")
    commands.run(main)
