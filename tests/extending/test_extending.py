"""Models, pools, measures and data sources of users, each one file outside the package."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import aa_flax
from aa_flax.pools import make_pool, pool_factory
from benchmarks.reference import compiled, randomised, relative_difference

ROOT = Path(__file__).parents[2]
SMALL = (
    "--config.num_epochs=1",
    "--config.max_steps_per_epoch=4",
    "--config.batch_size=32",
    "--config.eval.passes=1",
)
FILES = ("model_family", "pool", "measure", "source")


@pytest.fixture(scope="module", autouse=True)
def plugins():
    for name in FILES:
        importlib.import_module(f"tests.extending.{name}")


def command(script: str, *arguments: str | Path, plugins: tuple[str, ...]) -> str:
    """Returns the output of a command of the project, with some files here as its plug-ins."""
    files = ",".join(f"tests/extending/{name}.py" for name in plugins)
    words = [sys.executable, script, f"--plugin={files}", *map(str, arguments)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_family_is_listed_in_its_filter_sizes():
    assert aa_flax.list_models("stack*") == ["stack2", "stack2_lpf3", "stack3", "stack3_lpf3"]
    assert not aa_flax.list_models("stack*", pretrained=True)


def torch_stack() -> torch.nn.Module:
    """Returns the plain model as written in torch."""
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList(
        torch.nn.Sequential(
            torch.nn.Conv2d(i, o, 3, 2, 1, bias=False), torch.nn.BatchNorm2d(o), torch.nn.ReLU()
        )
        for i, o in ((3, 8), (8, 16))
    )
    model.fc = torch.nn.Linear(16, 10)
    return randomised(model)


def test_a_family_takes_weights_from_torch_and_gives_them_back():
    reference = torch_stack()
    model = aa_flax.create_model("stack2", num_classes=10)
    aa_flax.load_torch_state_dict(model, reference.state_dict())
    x = np.random.default_rng(0).standard_normal((2, 33, 32, 3), np.float32)
    with torch.no_grad():
        y = torch.tensor(x.transpose(0, 3, 1, 2).copy())
        for block in reference.blocks:
            y = block(y)
        expected = reference.fc(y.mean((2, 3))).numpy()
    assert relative_difference(compiled(model)(x), expected) <= 1e-5
    back = aa_flax.to_torch_state_dict(model)
    assert list(back) == list(reference.state_dict())
    assert all(np.array_equal(back[k], v.numpy()) for k, v in reference.state_dict().items())


def test_a_family_gives_its_pooled_embedding_where_there_are_no_classes(rng):
    x = rng.standard_normal((2, 32, 32, 3), np.float32)
    whole = aa_flax.create_model("stack2_lpf3", num_classes=10)
    trunk = aa_flax.create_model("stack2_lpf3", num_classes=0)
    nnx.update(trunk, {"blocks": nnx.state(whole)["blocks"]})
    embedding = trunk(x)
    assert embedding.shape == (2, 16)
    assert np.allclose(whole(x), whole.fc(embedding), atol=1e-6)
    assert "fc.weight" not in aa_flax.to_torch_state_dict(trunk)


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "stack2"])
def test_a_pool_goes_into_any_model_by_name(name):
    plain = nnx.eval_shape(lambda: aa_flax.create_model(name, num_classes=10))
    boxed = nnx.eval_shape(lambda: aa_flax.create_model(name, num_classes=10, pool="box"))
    assert boxed.options == {"pool": "box"}
    shapes = [jax.tree.map(lambda x: x.shape, nnx.state(model)) for model in (plain, boxed)]
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def test_a_pool_computes_the_means_of_squares():
    x = np.random.default_rng(0).standard_normal((1, 16, 12, 3), np.float32)
    box = make_pool(pool_factory(None, "box"), 2, features=3, rngs=nnx.Rngs(0))
    assert np.allclose(box(x), x.reshape(1, 8, 2, 6, 2, 3).mean((2, 4)), atol=1e-6)


def test_a_family_and_a_pool_are_trained_measured_and_converted_by_commands(tmp_path):
    run = tmp_path / "run"
    config = ("--config.model=stack2", "--config.pool=box", *SMALL, "--workdir", run)
    printed = command("train.py", *config, plugins=("model_family", "pool"))
    assert "stack2" in printed
    command(
        "eval.py", *config, "--mirror", "--circular", plugins=("model_family", "pool", "measure")
    )
    results = json.loads((run / "results.json").read_text())
    assert 0 <= results["mirror"]["agreement"] <= 100
    assert results["weights"]["options"] == {"pool": "box"}
    torch_file = tmp_path / "stack.pth"
    command(
        "convert_torch_weights.py",
        "--to-torch",
        run / "weights.safetensors",
        torch_file,
        plugins=("model_family", "pool"),
    )
    back = tmp_path / "stack.safetensors"
    command(
        "convert_torch_weights.py",
        torch_file,
        back,
        "--model=stack2",
        plugins=("model_family", "pool"),
    )
    plain = aa_flax.create_model("stack2", pretrained=back)  # a plain file does not name a pool
    boxed = aa_flax.create_model("stack2", pretrained=run / "weights.safetensors", pool="box")
    for one, other in zip(*(jax.tree.leaves(nnx.state(m)) for m in (plain, boxed)), strict=True):
        assert np.array_equal(one, other)


def test_a_measure_has_a_flag_a_line_and_a_column(tmp_path):
    help_text = subprocess.run(
        [sys.executable, "eval.py", "--plugin=tests/extending/measure.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "--mirror" in help_text.stdout
    from aa_flax.data.digits import Digits

    output = tmp_path / "results.json"
    found = aa_flax.evaluate(
        lambda x: x.mean((1, 2)) @ np.eye(3, 10, dtype=np.float32),
        Digits("val", 40),
        ["accuracy", "mirror"],
        crop_size=40,
        image_size=40,
        resize_size=0,
        output=output,
        name="means",
    )
    assert found["mirror"]["agreement"] == 100  # the mean of a digit is that of its mirror image
    report = subprocess.run(
        [
            sys.executable,
            "-c",
            "import tests.extending.measure; from aa_flax.report.__main__ import main; "
            f"main(['{output}', '--output', '{tmp_path / 'report'}'])",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "mirrored" in report.stdout, report.stderr
    assert "100.0" in report.stdout


@pytest.mark.slow
def test_a_data_source_is_trained_on_and_evaluated(tmp_path):
    run = tmp_path / "run"
    config = (
        "--config.model=stack2_lpf3",
        "--config.data.name=bars:160",
        *SMALL,
        "--config.data.worker_type=process",  # which need the plug-in as well
        "--config.data.num_workers=1",
        "--workdir",
        run,
    )
    command("train.py", *config, plugins=("model_family", "source"))
    results = json.loads((run / "results.json").read_text())
    assert results["num_images"] == 40
    printed = command("eval.py", *config, "--per_class", plugins=("model_family", "source"))
    assert "40 images" in printed
    results = json.loads((run / "results.json").read_text())
    assert set(results["per_class"]) >= {"-", "|", "\\", "/"}
