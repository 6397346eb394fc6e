"""Evaluates any function from images to logits."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from aa_flax.data.sources import Source, check_source
from aa_flax.data.unlabelled import NoSource, is_pictures
from aa_flax.errors import InputError
from aa_flax.evaluation.evaluator import Plan, check, run, stored
from aa_flax.evaluation.files import Results, as_json
from aa_flax.evaluation.measure import Measure, Subject, chosen_measures, option_values
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.run import digest_of
from aa_flax.evaluation.schema import why_no_results
from aa_flax.evaluation.settings import Settings
from aa_flax.files import local_path
from aa_flax.models.classifier import Classifier
from aa_flax.models.model_config import Interpolation, ModelConfig
from aa_flax.runtime import data_mesh


def evaluate(
    predict: Classifier | Callable[[Any], Any],
    source: Source | Any,
    measures: Sequence[str] = ("accuracy",),
    *,
    crop_size: int = 224,
    image_size: int | None = None,
    resize_size: int = 256,
    interpolation: Interpolation | None = None,
    batch_size: int = 0,
    shift_range: int = 32,
    passes: int = 5,
    seed: int = 0,
    num_workers: int = 0,
    on_error: str = "stop",
    jit: bool | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    weights: Mapping[str, Any] | None = None,
    **options: Any,
) -> Results:
    """Measures a net: one of this package, or any function from images to logits.

    Args:
        predict: a net, or a function from normalised float32 images `(N, H, W, 3)` (ImageNet's
            mean and deviation) to logits `(N, classes)`. A function of JAX is compiled; any other
            (torch, onnxruntime) gets NumPy arrays of one batch and gives what NumPy can read.
        source: labelled images, e.g. of `make_source`: `len(source)`, and `source[i]` gives a dict
            with `image` (PIL, or uint8 `(H, W, 3)`) and `label`; with `num_classes`, `class_names`
            and `name(i)`. For `images`, `clip` and `tiles`, which need no labels, what they look
            at: a path, an image, or a list of images (paths, PIL, or uint8 `(H, W, 3)`); None,
            where it is given as their option.
        measures: names of measures, e.g. `("accuracy", "shift")`; `docs/evaluation.md` lists them.
            `tiles` takes functions to maps `(N, h, w, C)` and labels `(N, h, w)`, too.
        crop_size: pixels of a side that the net sees.
        image_size: of the centre that shifted crops are cut from; default:
            `crop_size + shift_range`.
        resize_size: of the shorter side before cropping; 0: images are taken as they are.
        interpolation: of that resizing, `bilinear` or `bicubic`, antialiased. None: as the model's
            `config` says, bilinear for a function.
        batch_size: images in a batch: as many as this, or all if the data has fewer. 0: 32 on CPUs,
            else 256.
        shift_range: shifted crops are at offsets 0..shift_range-1 on each axis.
        passes: random pairs for each image. seed: of what is random.
        num_workers: threads that read images; 0: one a CPU core.
        on_error: of an image that cannot be read; "skip": it is named and left out.
        jit: whether the function is one of JAX's. None: it is, if JAX can trace it.
        output: a results file to write, with arrays and figures beside it. None: nothing is
            written. What it holds of another net, of other weights or settings stays; the results
            then stand in `..._2.json`.
        name: of the net, for the results.
        weights: what its weights are, for the record, e.g. `{"file": "net.pt"}`. A function that
            comes without is taken for another one each time; a net's are known by their hash.
        options: of measures, e.g. `per_batch=True`.

    Returns:
        The results, as `aa_flax.eval` writes them.

    Raises:
        InputError: an unknown measure or option, a function or data that do not fit, outputs that
            are not finite.
    """
    config = predict.config if isinstance(predict, Classifier) else ModelConfig()
    settings = Settings(
        crop_size=crop_size,
        image_size=crop_size + shift_range if image_size is None else image_size,
        resize_size=resize_size,
        interpolation=interpolation or config.interpolation,
        batch_size=batch_size,
        shift_range=shift_range,
        passes=passes,
        seed=seed,
        num_workers=num_workers,
        on_error=on_error,
    )
    predictor = predictor_of(predict, jit=jit, crop_size=crop_size)
    pictures = None if hasattr(source, "num_classes") else source
    values = option_values(_with_pictures(pictures, measures, options))
    wanted = chosen_measures(measures, values)
    if not wanted:
        raise InputError(f"no measures are given; known: {', '.join(MEASURES)}")
    source = _checked_source(source, wanted)
    model = predict if isinstance(predict, Classifier) else None
    place = None if output is None else local_path(output, "output")
    name = name or predictor.name
    subject = Subject(name, predictor, model, source, settings, data_mesh(), place, values)
    named = {} if isinstance(source, NoSource) else {"name": type(source).__name__}
    data = {**named, **settings.experiment(), **digest_of(source)}
    facts: Results = {"model": name, "data": data}
    if weights is None and place is not None and isinstance(predict, nnx.Module):
        weights = {"kind": "memory", "model": name, "sha256": _digest(predictor.state)}
    if weights is not None:
        facts["weights"] = dict(weights)
    _check_facts(facts, place)
    plan = Plan(subject, wanted, facts)
    stored(plan)  # a damaged file is found now
    check(plan)
    return run(plan)[0]


def _check_facts(facts: Results, place: Path | None) -> None:
    try:
        why = why_no_results(as_json(facts), Path() if place is None else place.parent)
    except (TypeError, ValueError) as error:
        why = str(error)
    if why:
        raise InputError(
            f"name and weights cannot be stored ({why}); give a text, and a dict of texts and "
            'numbers such as {"file": "net.pt"}'
        )


def _digest(state: nnx.State) -> str:
    """SHA-256 of all arrays of a net."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()


def _with_pictures(
    pictures: Any, measures: Sequence[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options, with pictures as that of each measure that brings its own and has none yet."""
    names = [measures] if isinstance(measures, str) else measures
    if pictures is None:
        return dict(options)
    return {**{n: pictures for n in names if MEASURES[n].brings_images}, **options}


def _checked_source(source: Any, measures: Sequence[Measure]) -> Source:
    if source is None or is_pictures(source):
        for measure in measures:
            if not measure.brings_images:
                raise InputError(
                    f"the measure {measure.name} needs labelled images, a source such as of "
                    "make_source(...); pictures without labels are for images, clip and tiles"
                )
        return NoSource()
    check_source(source, f"the source {type(source).__name__}")
    return source
