"""Small models of every kind, with batch norms that show, for images of 40 pixels and more."""

from collections.abc import Callable

from flax import nnx

import aa_flax
from aa_flax.models.densenet import DenseNet
from aa_flax.models.resnet import BasicBlock, Bottleneck, ResNet
from tests.randomised import randomised

SIZE = 40


# Abstract models: without values, for `randomised`.


def resnet(block=BasicBlock, **options) -> ResNet:
    options = {"num_classes": 5, "filter_size": 4} | options
    return nnx.eval_shape(lambda: ResNet(block, (1, 1, 1, 1), rngs=nnx.Rngs(0), **options))


def densenet(**options) -> DenseNet:
    options = {"growth_rate": 8, "num_init_features": 8, "num_classes": 5} | options
    return nnx.eval_shape(lambda: DenseNet((2, 1), rngs=nnx.Rngs(0), **options))


MODELS: dict[str, Callable[[], aa_flax.Classifier]] = {
    "basic": resnet,
    "bottleneck": lambda: resnet(Bottleneck, filter_size=3, groups=8, width_per_group=8),
    "baseline": lambda: resnet(filter_size=None),
    "densenet": lambda: densenet(filter_size=4),
    "densenet_baseline": densenet,
    "mobilenet": lambda: aa_flax.create_model("mobilenet_v2_lpf4", num_classes=5, width_mult=1 / 8),
}


def small(name: str) -> aa_flax.Classifier:
    """Returns a model of `MODELS`, in evaluation mode."""
    return randomised(MODELS[name]())
