"""The aliasing measure and its figure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aa_flax import InputError, antialias
from aa_flax.data.pixels import center_crop, normalise
from aa_flax.evaluation.by_config import evaluate_config
from aa_flax.evaluation.evaluate import evaluate
from aa_flax.evaluation.measure import Subject
from aa_flax.evaluation.measures import MEASURES
from aa_flax.evaluation.predict import Predictor
from aa_flax.evaluation.settings import Settings
from aa_flax.report.rows import gather
from aa_flax.runtime import data_mesh
from tests.evaluation.tiny import CROP, Flat, Noise, Small, noise_config


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("aliasing") / "results.json"
    weights = {"kind": "file", "file": "a.safetensors", "sha256": "1"}
    options = {"weights": weights, "output": output, "measures": ["aliasing"], "source": Noise()}
    return output, evaluate_config(Small(), noise_config(), **options)["aliasing"]


def test_it_is_the_profile_of_the_model_and_of_its_antialiased_function(results):
    output, found = results
    rows = np.linspace(0, len(Noise()) - 1, 8).astype(int)
    images = normalise(center_crop(jnp.asarray(Noise().images[rows]), CROP))
    (plain,) = antialias.profile(Small(), images)
    (filtered,) = antialias.profile(antialias(Small()), images)
    assert found["mean_energy"] == pytest.approx(100 * plain.aliasing_energy, rel=1e-4)
    assert found["antialiased_mean_energy"] == pytest.approx(
        100 * filtered.aliasing_energy, rel=1e-4
    )
    probabilities = antialias.profile(lambda x: jax.nn.softmax(Small()(x)), images, lie="NHWC")
    share = probabilities[0].lie_share
    assert found["lie_share"] == pytest.approx(100 * share, rel=1e-3)
    with np.load(output.parent / found["file"]) as arrays:
        assert arrays["damage"] == pytest.approx([plain.damage], rel=1e-4)
        assert arrays["lie_share"] == pytest.approx([share], rel=1e-3)


def test_the_report_draws_it(results, tmp_path):
    rows, _ = gather([results[0]])
    (figure,) = MEASURES["aliasing"].figures(tmp_path, rows)
    assert figure.stat().st_size > 10_000


def test_a_model_that_does_not_subsample_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"aliasing needs layers that subsample, and .* has none"):
        evaluate(Flat(), Noise(), ["aliasing"], output=tmp_path / "r.json", crop_size=CROP)


def test_a_function_of_numpy_is_refused(tmp_path):
    def predict(images):
        return np.zeros((len(images), 6)) + float(np.asarray(images).sum())

    with pytest.raises(
        InputError, match="aliasing traces functions of JAX, and predict is not one"
    ):
        evaluate(predict, Noise(), ["aliasing"], output=tmp_path / "r.json", crop_size=CROP)


def test_it_is_checked_before_the_model_is_loaded(tmp_path):
    def not_loaded(state, images):
        raise AssertionError("called before it was loaded")

    settings, mesh = Settings.of(noise_config()), data_mesh()
    given = (Predictor(not_loaded), None, Noise(), settings, mesh, tmp_path / "r.json")
    MEASURES["aliasing"].check(Subject("small", *given))
