"""A model that compiles in a second, its run on the digits, and a command for this run.

python tests/training/tiny.py WORKDIR [KEY=VALUE ...] [--coordinator ADDRESS N I]
"""

import json
import sys
import types
from functools import partial
from pathlib import Path

import jax
from flax import nnx

from aa_flax.config import Config
from aa_flax.configs import digits_resnet18
from aa_flax.models.classifier import Classifier
from aa_flax.models.registry import register_model
from aa_flax.nn.blur import BlurPool
from aa_flax.nn.layers import BatchNorm, conv2d, linear


class TinyNet(Classifier):
    """A model of a convolution, an optional batch norm, BlurPool, dropout and a linear layer."""

    def __init__(
        self, *, num_classes=10, filter_size=None, batch_norm=True, dropout=0.1, dtype=None, rngs
    ):
        self.filter_size = filter_size
        self.conv = conv2d(3, 4, 3, stride=2, padding=1, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(4, rngs=rngs) if batch_norm else None
        self.blur = BlurPool(3, stride=2)
        self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
        self.fc = linear(4, num_classes, dtype=dtype, rngs=rngs)

    def stem(self, x):
        x = self.conv(x)
        return self.blur(jax.nn.relu(x if self.bn is None else self.bn(x)))

    def named_blocks(self):
        yield "stem", self.stem

    def torch_layers(self):
        yield "conv", self.conv
        if self.bn is not None:
            yield "bn", self.bn
        yield "fc", self.fc

    def __call__(self, x):
        return self.fc(self.dropout(self.forward_features(x).mean((1, 2))))


def register() -> None:
    """Registers `tiny`, and `tiny_plain` without dropout."""
    register_model("tiny", TinyNet, replace=True)
    register_model("tiny_plain", partial(TinyNet, dropout=0.0), replace=True)


def tiny_config(**changes) -> Config:
    """Returns a config of three short epochs on the digits; `changes` have dotted names."""
    config = digits_resnet18.get_config()
    config.name = config.model = "tiny"
    config.num_epochs = 3
    config.batch_size = 64
    config.max_steps_per_epoch = 6
    config.eval.batch_size = 256
    config.eval.passes = 1
    config.data.augmentation = "random_shift"
    config.data.num_workers = 2
    config.update_from_flattened_dict(changes)
    return config


def short_config(**changes) -> Config:
    """Returns a config of one epoch of two steps."""
    return tiny_config(num_epochs=1, max_steps_per_epoch=2, **changes)


def fake_wandb(began: list, logged: list) -> types.SimpleNamespace:
    """A mock of the module wandb, which records its arguments in lists."""
    run = types.SimpleNamespace(
        log=lambda figures, step: logged.append((step, figures)), finish=lambda: None
    )
    return types.SimpleNamespace(
        util=types.SimpleNamespace(generate_id=lambda: f"id{len(began)}"),
        init=lambda **options: began.append(options) or run,
    )


def main(workdir: str, *arguments: str) -> None:
    from aa_flax.cli import leave
    from aa_flax.runtime import start_distributed
    from aa_flax.training import train
    from aa_flax.training.stopping import EXIT_CODE, Stopped

    changes = list(arguments)
    if "--coordinator" in changes:
        place = changes.index("--coordinator")
        address, count, index = changes[place + 1 :]
        start_distributed(address, int(count), int(index))
        del changes[place:]
    register()
    pairs = (change.split("=", 1) for change in changes)
    config = tiny_config(**{key: json.loads(value) for key, value in pairs})
    try:
        train.evaluate_config = lambda *_, **__: {}  # the final results do not matter
        train.train(config, Path(workdir))
    except Stopped as stopped:
        leave(str(stopped), EXIT_CODE)


if __name__ == "__main__":
    main(*sys.argv[1:])
