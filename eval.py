"""Evaluates a net: python eval.py [--config C] [--weights W] [--shift] [--output results.json].

Without --config the quickstart's, without --weights the best checkpoint of the config's run. W is
a run's folder or a torch file (.pth).
"""

from pathlib import Path

from absl import flags

from aa_flax import commands
from aa_flax.evaluation.evaluate import evaluate
from aa_flax.training.loop import load_weights_of, model_of

_WEIGHTS = flags.DEFINE_string("weights", None, "a run's folder, or a .pth file")
_SHIFT = flags.DEFINE_bool("shift", False, "measure shift consistency, too")
_OUTPUT = flags.DEFINE_string("output", None, "default: results.json in the run's folder")


def main() -> None:
    config, workdir = commands.config_and_workdir()
    source = Path(_WEIGHTS.value) if _WEIGHTS.value else workdir
    model = model_of(config)
    weights = load_weights_of(source, model)
    folder = source if source.is_dir() else Path()
    output = Path(_OUTPUT.value) if _OUTPUT.value else folder / "results.json"
    evaluate(model, config, weights=weights, shift=_SHIFT.value, output=output)


if __name__ == "__main__":
    commands.define_flags()
    commands.run(main)
