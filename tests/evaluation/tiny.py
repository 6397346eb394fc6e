"""Random images and a model that is sensitive to shifts, for the tests of evaluation."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.configs import digits_resnet18
from aa_flax.data.batches import evaluation_batches
from aa_flax.data.pixels import normalise
from aa_flax.evaluation.observe import Observations, observe
from aa_flax.evaluation.views import Views
from aa_flax.models.classifier import Classifier
from aa_flax.nn.layers import conv2d
from aa_flax.runtime import data_mesh

COUNT, SIZE, CROP, CLASSES = 22, 14, 10, 6


class Noise:
    """Random images with random labels."""

    num_classes = CLASSES
    class_names = tuple("abcdef")

    def __init__(self, size: int = SIZE):
        rng = np.random.default_rng(1)
        self.images = rng.integers(0, 256, (COUNT, size, size, 3), np.uint8)
        self.labels = rng.integers(0, CLASSES, COUNT)

    def name(self, index: int) -> str:
        return f"noise {index}"

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        return {"image": self.images[index], "label": int(self.labels[index])}


class Flat(Classifier):
    """A linear classifier of pixels: very sensitive to shifts."""

    name = "flat"

    def __init__(self, crop: int = CROP):
        self.fc = nnx.Linear(crop * crop * 3, CLASSES, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.fc(x.reshape(len(x), -1))


class Small(Classifier):
    """One strided convolution; its features are a map, so equivariance can be measured."""

    name = "small"

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv = conv2d(3, 8, 3, stride=2, padding=1, rngs=rngs)
        self.fc = nnx.Linear(8, CLASSES, rngs=rngs)

    def named_blocks(self):
        yield "conv", lambda x: nnx.relu(self.conv(x))

    def __call__(self, x):
        return self.fc(self.forward_features(x).mean((1, 2)))


def noise_config():
    """Returns a config for the evaluation of `Noise`."""
    config = digits_resnet18.get_config()
    config.data.crop_size, config.data.image_size = CROP, SIZE
    config.eval.batch_size, config.eval.shift_range, config.eval.passes = 8, 5, 3
    return config


def batches(batch_size: int = 8):
    source = Noise()
    size = source.images.shape[1]
    return evaluation_batches(source, batch_size, noise_config().data, crop=size)


def look(views: Views, batch_size: int = 8, devices=None, model=None) -> Observations:
    model, mesh = model or Flat(), data_mesh(devices)
    return observe(model, batches(batch_size), {"all": views}, mesh=mesh)["all"]


def slow_logits(crops: np.ndarray) -> np.ndarray:
    """Returns logits, computed one crop at a time; crops have any number of leading axes."""
    flat = crops.reshape(-1, *crops.shape[-3:])
    logits = [np.asarray(Flat(flat.shape[1])(normalise(jnp.asarray(crop)[None]))) for crop in flat]
    return np.concatenate(logits).reshape(*crops.shape[:-3], CLASSES)
