# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Evaluates models: python -m aa_flax.eval [--config C] [--weights W] [--shift] ... [--output FILE].

The default of --config is the quickstart's, that of --weights the best checkpoint of the config's
run. W is a run's folder, a file of weights, or published weights: `pretrained`, as the PyTorch
original chooses, `finetuned`, `scratch` or `baseline`.

Several models: python -m aa_flax.eval --models 'resnet*_lpf4,vgg16' --config imagenet
--config.data.path=ILSVRC2012 [--weights W] [--output FOLDER]. Each gets FOLDER/<model>.json; models
whose results exist are skipped, so the same command resumes after an interruption. The default of
--weights is `pretrained`; in a path, {model} is replaced by the model's name.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from aa_flax import cli
from aa_flax.evaluation.by_config import evaluate_models
from aa_flax.evaluation.measure import Option
from aa_flax.evaluation.measures import MEASURES

_DEFINE: Mapping[type, Any] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    Path: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}


def main() -> None:
    """Runs the command; see the top of this file."""
    cli.define_flags()  # loads plug-ins, whose measures have flags, too
    flags.DEFINE_string(
        "weights", None, "a run's folder, a file, or pretrained, finetuned, scratch, baseline"
    )
    flags.DEFINE_list("models", None, "names of several models to evaluate, with * and ?")
    flags.DEFINE_string(
        "output",
        None,
        "default: results.json in the run's folder; for several models runs/evaluation/",
    )
    for option in _options():
        if option.name in flags.FLAGS:
            sys.exit(
                f"error: a measure has an option {option.name!r}, which is a flag of "
                f"{cli.called()} already; give it another name"
            )
        default = option.default
        if isinstance(default, tuple):
            default = [str(number) for number in default]
        _DEFINE[option.kind](option.name, default, option.help)
    text = cli.as_called(str(__doc__), "aa_flax.eval")
    cli.run(_evaluate, text, interrupted="stopped; nothing was measured yet")


def _evaluate() -> None:
    config, workdir = cli.config_and_workdir()
    models = flags.FLAGS.models or ()
    evaluate_models(
        config,
        models,
        weights=flags.FLAGS.weights or ("pretrained" if models else str(workdir)),
        output=flags.FLAGS.output,
        options={option.name: flags.FLAGS[option.name].value for option in _options()},
    )


def _options() -> list[Option]:
    """Returns each option once: measures may share one."""
    measures = [m for m in MEASURES.values() if not (m.always or m.of_maps)]
    return list(dict.fromkeys(option for m in measures for option in m.options))


if __name__ == "__main__":
    main()
