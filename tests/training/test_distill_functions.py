"""The function `distill`: training of any function on another one's outputs."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aa_flax import InputError, antialias, distill, from_torch, match_statistics
from aa_flax.runtime import data_mesh, put_batch
from aa_flax.training.distill import shifted


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def linear(params, images):
    return images.mean((1, 2)) @ params["kernel"] + params["bias"]


def params_of(classes=5, seed=1):
    return {"kernel": 3 * normal(3, classes, seed=seed), "bias": normal(classes, seed=seed + 1)}


TEACHER, IMAGES = params_of(seed=7), normal(6, 8, 8, 3)
teacher = partial(linear, TEACHER)
one_step = partial(distill, optimizer=optax.sgd(1.0))  # new params are old ones minus the gradient


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_step_follows_torchs_gradient_of_the_divergence(temperature):
    torch = pytest.importorskip("torch")
    params, losses = params_of(), []
    new = one_step(
        *(linear, teacher, params, [IMAGES]),
        temperature=temperature,
        on_step=lambda step, loss: losses.append((step, loss)),
    )
    x = torch.from_numpy(IMAGES.mean((1, 2)))
    kernel, bias, *wanted = (torch.from_numpy(a[k]) for a in (params, TEACHER) for k in a)
    kernel.requires_grad_(), bias.requires_grad_()
    student, target = x @ kernel + bias, x @ wanted[0] + wanted[1]
    loss = temperature**2 * torch.nn.functional.kl_div(
        (student / temperature).log_softmax(-1),
        (target / temperature).softmax(-1),
        reduction="batchmean",
    )
    loss.backward()
    assert losses == [(1, pytest.approx(loss.item(), rel=1e-4))]
    for name, gradient in (("kernel", kernel.grad), ("bias", bias.grad)):
        np.testing.assert_allclose(params[name] - new[name], gradient, atol=1e-4)


def test_a_student_reaches_its_teacher_and_its_start_is_not_changed():
    params, losses = params_of(), []
    before = jax.tree.map(np.copy, params)
    images = [normal(32, 8, 8, 3, seed=seed) for seed in range(10)]
    found = distill(
        *(linear, teacher, params, images * 40),
        optimizer=optax.adam(0.1),
        on_step=lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 400
    assert losses[-1] < 1e-4 < 0.1 < losses[0]
    np.testing.assert_allclose(
        jax.nn.softmax(linear(found, IMAGES)), jax.nn.softmax(teacher(IMAGES)), atol=1e-2
    )
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_without_an_optimizer_it_is_adam_at_a_small_rate():
    start = params_of()
    found = distill(linear, teacher, start, [IMAGES])
    np.testing.assert_allclose(abs(found["kernel"] - start["kernel"]), 1e-4, rtol=1e-2)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_answers_are_averaged_over_crops_of_which_the_first_is_the_students(layout):
    def corner(images):  # so that outputs differ between crops
        return 4 * (images[:, 0, 0] if layout == "NHWC" else images[..., 0, 0])

    def student(params, images):
        return corner(images) * params["scale"]

    images = normal(4, 9, 12, 3)
    given = images if layout == "NHWC" else np.moveaxis(images, -1, 1)
    options = {"crop_size": 7, "shifts": 3, "layout": layout}
    new = one_step(student, corner, {"scale": np.zeros(3, np.float32)}, [given], **options)
    room = np.array([3, 6])
    places = [shifted(shifted(jnp.zeros(2), 1, room), i, room) for i in range(3)]
    places = [tuple(map(int, place)) for place in places]
    assert len(set(places)) == 3
    corners = [4 * images[:, i, j] for i, j in places]
    target = np.mean([jax.nn.softmax(x) for x in corners], 0)
    gradient = ((1 / 3 - target) * corners[0]).mean(0)
    np.testing.assert_allclose(new["scale"], -gradient, atol=1e-5)


def test_maps_add_their_relative_distance():
    def with_maps(params, images):
        return linear(params, images), {"map": images * params["scale"]}

    params, losses = params_of() | {"scale": np.float32(3)}, []
    distilling = partial(one_step, on_step=lambda step, loss: losses.append(loss))
    wanted = TEACHER | {"scale": np.float32(2)}
    new = distilling(with_maps, partial(with_maps, wanted), params, [IMAGES], map_weight=0.5)
    distilling(linear, teacher, params, [IMAGES])
    assert losses[0] - losses[1] == pytest.approx(0.5 * 0.25, rel=1e-3)
    assert new["scale"] == pytest.approx(3 - 0.5 * 2 * 1 / 2**2, rel=1e-4)


def test_logits_of_a_single_class_leave_the_maps_alone():
    def maps_alone(params, images):
        return np.zeros((len(images), 1)), images * params["scale"]

    losses = []
    one_step(
        *(maps_alone, partial(maps_alone, {"scale": 2.0}), {"scale": np.float32(3)}, [IMAGES]),
        map_weight=1.0,
        temperature=4.0,
        on_step=lambda step, loss: losses.append(loss),
    )
    assert losses == [pytest.approx(0.25)]


def normalised(params, images):
    """A model with a batch norm, a counter and a kernel."""
    x = (images - params["mean"]) * jax.lax.rsqrt(params["var"] + 1e-5)
    return jax.nn.relu(x).mean((1, 2)) @ params["kernel"] + 0 * params["count"]


NORMALISED = {
    "mean": normal(3),
    "var": np.ones(3, np.float32),
    "kernel": normal(3, 5),
    "count": np.int32(7),
}


def test_statistics_and_integers_keep_their_values_unless_the_user_decides():
    def changed(**options):
        new = one_step(normalised, teacher, NORMALISED, [IMAGES], **options)
        return {name for name in new if not np.array_equal(new[name], NORMALISED[name])}

    assert changed() == {"kernel"}
    assert changed(frozen=lambda name: name != "mean") == {"mean"}


def test_a_batch_that_is_split_over_devices_gives_the_same():
    batch = put_batch(IMAGES, data_mesh())
    ends = [one_step(linear, teacher, params_of(), [x]) for x in (IMAGES, batch)]
    np.testing.assert_allclose(ends[0]["kernel"], ends[1]["kernel"], atol=1e-5)


@pytest.mark.skipif(find_spec("torchax") is None, reason="torchax is missing")
def test_a_model_of_torch_is_antialiased_matched_and_distilled():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 10),
    )
    model = torch.nn.Sequential(*layers).eval()
    images = [normal(16, 3, 16, 16, seed=seed) for seed in range(4)]
    f, params = from_torch(model, images[0])
    params["9.weight"] = 20 * params["9.weight"]  # confident predictions
    steady, losses = antialias(f), []
    matched = match_statistics(steady, f, images, params)
    found = distill(
        *(steady, partial(f, params), matched, images * 20),
        optimizer=optax.adam(1e-2),
        on_step=lambda step, loss: losses.append(loss),
    )
    assert np.mean(losses[-4:]) < 0.2 * np.mean(losses[:4])
    kept = {name for name in found if np.array_equal(found[name], matched[name])}
    assert kept == {f"{i}.running_{name}" for i in (1, 5) for name in ("mean", "var")}


def pair(images):
    return teacher(images), images


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": []}, "an iterable of batches of images, and got none"),
        ({"images": IMAGES}, "one array is no iterable of batches"),
        ({"images": [IMAGES[:0]]}, r"got an array of float32 \(0, 8, 8, 3\)"),
        (
            {"images": [IMAGES.astype(np.uint8)]},
            r"floats, got an array of uint8 .*; normalise them",
        ),
        ({"images": [IMAGES, (IMAGES, 3)]}, "got a tuple; normalise .* leave out labels"),
        ({"optimizer": 0}, "optimizer must be one of optax, got a int"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"map_weight": -1}, "map_weight must be a number of at least 0"),
        ({"layout": "NWHC"}, "layout must be one of NHWC, NCHW"),
        ({"crop_size": 0}, "crop_size must be an integer of at least 1"),
        ({"crop_size": 8}, r"crop_size=8 cuts crops of larger images, NHWC; got a batch \(6, 8, 8"),
        ({"crop_size": 4, "layout": "NCHW"}, r"crop_size=4 cuts crops .*, NCHW; got a batch"),
        ({"shifts": 0}, "shifts must be an integer of at least 1"),
        ({"shifts": 2}, "shifts=2 averages over crops of larger images; give crop_size"),
        ({"teacher": partial(linear, params_of(4))}, r"\(6, 5\).*\(6, 4\).*the same classes"),
        ({"teacher": lambda x: x}, r"the teacher returns an array \(6, 8, 8, 3\); .* \(6, classes"),
        ({"teacher": pair}, r"the teacher returns logits \(6, 5\) and maps; it has to return logi"),
        ({"map_weight": 1}, r"the teacher returns an array \(6, 5\); .* a pair of logits \(6, cla"),
        ({"student": lambda p, x: linear(p, x)[0]}, r"the student returns an array \(5,\)"),
        ({"frozen": lambda name: True}, "nothing to train"),
        ({"params": {"n": np.int32(1)}, "student": lambda p, x: teacher(x)}, "nothing to train"),
        ({"optimizer": optax.sgd(np.inf)}, "the norm of the trained parameters is inf"),
        (
            {"optimizer": optax.sgd(np.inf), "images": 3 * [IMAGES]},
            "the loss of step 2 is (nan|inf)",
        ),
        ({"images": [IMAGES * np.nan]}, "the loss of step 1 is nan; give a smaller"),
    ],
)
def test_what_cannot_be_distilled_is_refused(given, message):
    options = {"student": linear, "teacher": teacher, "params": params_of(), "images": [IMAGES]}
    with pytest.raises(InputError, match=message):
        distill(**options | given)


def test_a_variance_of_unknown_use_is_neither_trained_nor_frozen_in_silence():
    def odd(params, images):
        return linear(params, images) / params["var"]

    params = params_of() | {"var": np.ones(5, np.float32)}
    with pytest.raises(InputError, match=r"^var may be statistics .*; give frozen, to say which"):
        one_step(odd, teacher, params, [IMAGES])
    new = one_step(odd, teacher, params, [IMAGES], frozen=lambda name: False)
    assert not np.array_equal(new["var"], params["var"])
