"""A user's measure in one file: how often a model's class is the same for mirrored images.

python eval.py --plugin tests/extending/measure.py --mirror
"""

from dataclasses import dataclass

import jax.numpy as jnp

import aa_flax
from aa_flax.data.pixels import center_crop


@dataclass(frozen=True)
class AsIsAndMirrored:
    """Two views: the centre of an image, and its mirror image."""

    crop_size: int
    calls = 1

    @property
    def needed_size(self):
        return self.crop_size

    def __call__(self, images, index, call):
        center = center_crop(images, self.crop_size)
        return jnp.stack([center, center[:, :, ::-1]], axis=1)


class Mirror(aa_flax.Measure):
    """The fraction of images with the same top-1 class when mirrored."""

    options = (aa_flax.Option("mirror", "agreement of an image and its mirror image"),)
    columns = (aa_flax.Column("mirrored", ("agreement",)),)

    def views(self, subject):
        return AsIsAndMirrored(subject.settings.crop_size)

    def result(self, seen, subject):
        same = seen.predicted[:, 0] == seen.predicted[:, 1]
        return {"agreement": 100 * float(same.mean())}

    def line(self, result):
        return f"{'mirrored':12} agreement {result['agreement']:6.2f} %"


aa_flax.register_measure(Mirror())
