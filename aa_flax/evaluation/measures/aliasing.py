"""The aliasing at every subsampling site of a model, and its part in the Lie derivative."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from aa_flax.data.pixels import normalise
from aa_flax.errors import InputError
from aa_flax.evaluation import plots
from aa_flax.evaluation.measure import Column, Option, Result, Subject
from aa_flax.evaluation.measures.equivariance import IMAGES, Subset
from aa_flax.evaluation.observe import Observations
from aa_flax.evaluation.own_images import check_one_process
from aa_flax.evaluation.row import Row
from aa_flax.evaluation.stored import StoredMeasure
from aa_flax.transform import antialias


class Aliasing(StoredMeasure):
    """Energy that aliases at each site, and its damage, before and after `antialias`."""

    options = (Option("aliasing", "the aliasing at each layer that subsamples: .npz and figure"),)
    columns = (
        Column(
            "aliasing energy",
            ("mean_energy",),
            note="energy above the Nyquist frequency of the subsampled map, mean over the layers",
        ),
        Column(
            "Lie derivative by aliasing",
            ("lie_share",),
            note="part of subsampling in the Lie derivative of the probabilities when the images "
            "are translated; other operations, such as padding, have the rest to 100 %",
        ),
    )

    def settings(self, subject: Subject) -> Result:
        return {"num_images": min(IMAGES, len(subject.source)), "lie": "translation"}

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_one_process("aliasing")
        predictor = subject.predictor
        if predictor.on_host:
            raise InputError(
                f"the measure aliasing traces functions of JAX, and {predictor.name} is not one; "
                "aa_flax.from_torch makes one of a model of PyTorch"
            )

    def result(self, seen: Observations | None, subject: Subject) -> Result:
        state, images = subject.predictor.state, _images(subject)

        def f(state: Any, images: Array) -> Array:
            return jax.nn.softmax(subject.predictor.function(state, images).astype(jnp.float32))

        found, arrays = {}, {}
        for which, run in (("", f), ("antialiased_", antialias(f))):
            profile = antialias.profile(run, state, images, lie="NHWC").arrays()
            if not np.isfinite(profile["aliasing_energy"]).any():
                raise InputError(
                    f"the measure aliasing needs layers that subsample, and {subject.name} has none"
                )
            arrays |= {which + name: values for name, values in profile.items()}
            found[f"{which}mean_energy"] = 100 * float(np.nanmean(profile["aliasing_energy"]))
            found[f"{which}lie_share"] = 100 * float(np.nansum(profile["lie_share"]))
        shown = _curves(subject.name, arrays)
        return found | self.store(subject, arrays, lambda path: plots.plot_aliasing(path, shown))

    def line(self, result: Result) -> str:
        plain, antialiased = (result[f"{which}mean_energy"] for which in ("", "antialiased_"))
        return (
            f"{'aliasing':12} {plain:.1f} % of the energy (mean over the layers that subsample), "
            f"{antialiased:.1f} % with antialias; {result['lie_share']:.0f} % of the Lie derivative"
            f"   ({result['num_images']} images)"
        )

    def draw(self, path: Path, rows: Sequence[Row]) -> None:
        curves: plots.AliasingCurves = {}
        for row in rows:
            curves |= _curves(row.title, row.arrays(self.name))
        plots.plot_aliasing(path, curves, plots.ALL_FORMATS)


def _images(subject: Subject) -> Float[Array, "N S S 3"]:
    some, crop = Subset(subject.source, IMAGES), subject.settings.crop_size
    settings = replace(subject.settings, batch_size=IMAGES * subject.mesh.size)  # all in one batch
    batch = next(settings.batches(some, crop))
    return normalise(jnp.asarray(batch["image"][batch["mask"]]))


def _curves(name: str, arrays: Mapping[str, np.ndarray]) -> plots.AliasingCurves:
    names = {"": name, "antialiased_": f"antialias({name})"}
    fields = ("layer", "aliasing_energy", "damage", "lie_share")
    return {
        title: {n: arrays[which + n] for n in fields if which + n in arrays}
        for which, title in names.items()
    }
