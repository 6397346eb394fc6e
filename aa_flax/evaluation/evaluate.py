"""The Python function `evaluate`: any measures of any function from images to logits."""

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
from aa_flax.evaluation.engine import Plan, check, run
from aa_flax.evaluation.measure import Measure, Subject, chosen_measures, option_values
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.predict import predictor_of
from aa_flax.evaluation.results import Results, as_json
from aa_flax.evaluation.schema import why_no_results
from aa_flax.evaluation.settings import Settings, digest_of
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
    """Evaluates a model: one of this package, or any function from images to logits.

    Args:
        predict: a model, or a function from normalised float32 images `(N, H, W, 3)` (ImageNet's
            mean and standard deviation) to logits `(N, classes)`. A function of JAX is compiled;
            any other (torch, onnxruntime) gets NumPy arrays of one batch and returns an array that
            NumPy can read.
        source: labelled images, e.g. of `make_source`. For measures that need no labels (`images`,
            `drift`, `clip`, `tiles`, and of maps and points on a clip `mask_flicker`, `map_flicker`
            and `point_flicker`): a path, an image, or a list of images (paths, PIL, or uint8 `(H,
            W, 3)`); or None, if they are given as the measure's option.
        measures: names of measures, e.g. `("accuracy", "shift")`; `docs/evaluation.md` lists them.
            `tiles` also takes functions to maps `(N, h, w, C)` and labels `(N, h, w)`, `drift`
            functions to vectors `(N, d)`.
        crop_size: side in pixels of the model's input.
        image_size: side of the centre that shifted crops are cut from; default:
            `crop_size + shift_range`.
        resize_size: length of the shorter side before cropping; 0: images are not resized.
        interpolation: of that resizing, `bilinear` or `bicubic`, antialiased. None: that of the
            model's `config`; bilinear for a function.
        batch_size: images in a batch, or all if the data has fewer. 0: 32 on CPUs, else 256.
        shift_range: shifted crops are at offsets 0..shift_range-1 on each axis.
        passes: random pairs for each image. seed: of random offsets.
        num_workers: threads that read images; 0: one per CPU core.
        on_error: for images that cannot be read: "stop", or "skip" to report and omit them.
        jit: whether the function is one of JAX. None: detect it by tracing.
        output: a results file to write, with arrays and plots next to it. None: nothing is
            written. If it has results of another model, other weights or settings, these are kept
            and the new results go to `..._2.json`.
        name: of the model, for the results.
        weights: a description of the weights, for the record, e.g. `{"file": "model.pt"}`. Without
            it a function counts as a new one each time; a model is identified by its hash.
        options: of measures, e.g. `per_batch=True`.

    Returns:
        The results, as `aa_flax.eval` writes them.

    Raises:
        InputError: an unknown measure or option, a function or data that do not fit, outputs that
            are not finite.

    Examples:
        >>> import numpy as np
        >>> from aa_flax import evaluate
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
        >>> sizes = {"crop_size": 32, "shift_range": 8, "resize_size": 0}
        >>> results = evaluate(lambda x: x.mean((1, 2)), images, "images", within=1, **sizes)
        >>> results["images"]["num_images"]
        4
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
    if source is not None and not hasattr(source, "num_classes"):
        names = [measures] if isinstance(measures, str) else measures
        options = {name: source for name in names if MEASURES[name].brings_images} | options
    values = option_values(options)
    chosen = chosen_measures(measures, values)
    if not chosen:
        raise InputError(f"no measures are given; known: {', '.join(MEASURES)}")
    source = _checked_source(source, chosen)
    data = {} if isinstance(source, NoSource) else {"name": type(source).__name__}
    model = predict if isinstance(predict, Classifier) else None
    path = None if output is None else local_path(output, "output")
    name = name or predictor.name
    facts: Results = {"model": name, "data": data | settings.experiment() | digest_of(source)}
    if weights is None and path is not None and isinstance(predict, nnx.Module):
        weights = {"kind": "memory", "model": name, "sha256": _digest(predictor.state)}
    if weights is not None:
        facts["weights"] = dict(weights)
    _check_facts(facts, path or Path())
    subject = Subject(name, predictor, model, source, settings, data_mesh(), path, values)
    plan = Plan(subject, chosen, facts)
    check(plan)
    return run(plan)[0]


def _check_facts(facts: Results, output: Path) -> None:
    try:
        why = why_no_results(as_json(facts), output.parent)
    except (TypeError, ValueError) as error:
        why = str(error)
    if why:
        raise InputError(
            f"name and weights cannot be stored ({why}); give a string, and a dict of strings and "
            'numbers such as {"file": "model.pt"}'
        )


def _digest(state: nnx.State) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes())
    return digest.hexdigest()


def _checked_source(source: Any, measures: Sequence[Measure]) -> Source:
    if source is not None and not is_pictures(source):
        check_source(source, f"the source {type(source).__name__}")
        return source
    for measure in measures:
        if not measure.brings_images:
            others = ", ".join(name for name, other in MEASURES.items() if other.brings_images)
            raise InputError(
                f"the measure {measure.name} needs labelled images, a source such as of "
                f"make_source(...); images without labels are for {others}"
            )
    return NoSource()
