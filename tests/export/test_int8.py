"""ONNX files in int8: nearly the same function, on other images than those of calibration."""

import json

import numpy as np
import pytest
from PIL import Image

import aa_flax
from aa_flax import InputError
from aa_flax.data.pixels import normalise
from aa_flax.export import int8
from aa_flax.export.__main__ import run
from tests.compiled import run as logits
from tests.export.models import SIZE, small

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from aa_flax.export.onnx_file import run as run_onnx  # noqa: E402


@pytest.fixture
def model():
    model = small("basic")
    model.config = aa_flax.ModelConfig(input_size=SIZE, resize_size=SIZE)
    return model


@pytest.fixture
def images(rng):
    """Returns distinct colours and waves: uint8 `(200, 40, 40, 3)`."""
    waves = np.sin(np.arange(SIZE) * rng.uniform(0.05, 1.5, (200, 1)))
    waves = waves[:, :, None, None] * rng.uniform(-1, 1, (200, 1, 1, 3)) + np.zeros((SIZE, 1))
    return (127 + 80 * waves + rng.uniform(-45, 45, (200, 1, 1, 3))).astype(np.uint8)


ANY = 0.5  # predictions of random models agree by chance


def test_an_int8_file_is_small_and_nearly_the_same(model, images, tmp_path):
    before = aa_flax.export(model, tmp_path / "float.onnx").path
    exported = aa_flax.export(model, tmp_path / "int8.onnx", int8=images, int8_min_agreement=ANY)
    file = onnx.load(exported.path)
    names = {array.name: array for array in file.graph.initializer}
    kinds = [names[n.input[0]].data_type for n in file.graph.node if n.input[0] in names]
    assert kinds.count(onnx.TensorProto.INT8) == sum(
        node.op_type == "Conv" for node in onnx.load(before).graph.node
    )
    (last,) = (node for node in file.graph.node if node.op_type == "Gemm")
    assert names[last.input[1]].data_type == onnx.TensorProto.FLOAT
    assert exported.path.stat().st_size < 0.35 * before.stat().st_size
    x = np.asarray(normalise(images))
    found, expected = run_onnx(exported.path, x), np.asarray(logits(model, x))
    assert 1e-5 < np.abs(found - expected).mean() / np.abs(expected).mean() < 0.1
    same = found.argmax(-1) == expected.argmax(-1)
    assert exported.agreement == pytest.approx(same[1::2].mean())
    assert exported.difference <= 1e-5  # before


@pytest.mark.slow
def test_images_of_a_folder_are_preprocessed_by_the_models_config(model, images, tmp_path, capsys):
    """Larger images are cropped; inputs are uint8, outputs are probabilities."""
    framed = np.pad(images, ((0, 0), (8, 8), (8, 8), (0, 0)))
    for i, image in enumerate(framed):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    model = aa_flax.create_model("resnet18_lpf2", num_classes=3)
    model.config = aa_flax.ModelConfig(input_size=SIZE, resize_size=0)
    aa_flax.save_weights(model, weights := tmp_path / "w.safetensors")
    more = ["--preprocessing", f"--int8={tmp_path}", f"--int8-min-agreement={ANY}"]
    run([str(weights), str(out := tmp_path / "n.onnx"), *more])
    properties = {fact.key: fact.value for fact in onnx.load(out).metadata_props}
    facts = json.loads(properties["int8"])
    assert (facts["calibrated_on"], facts["compared_on"], properties["model"]) == (
        100,
        100,
        "resnet18_lpf2",
    )
    same = run_onnx(out, images).argmax(-1) == np.asarray(logits(model, normalise(images))).argmax(
        -1
    )
    assert facts["agreement"] == pytest.approx(same[1::2].mean())
    found = f"the same class for {100 * facts['agreement']:.1f} % of 100 images (calibrated on 100"
    printed = capsys.readouterr().out
    assert found in printed
    assert "at least 50 % were requested" in printed
    assert facts["min_agreement"] == ANY


def test_a_file_that_agrees_too_rarely_is_not_kept(model, images, tmp_path, monkeypatch):
    (tmp_path / "n.onnx").write_text("from before")
    monkeypatch.setattr(int8, "_agreement", lambda *files: 0.985)
    message = r"gives only 98\.5 % of 100 images the class that it gave them before, less than 99 %"
    with pytest.raises(InputError, match=message):
        aa_flax.export(model, tmp_path / "n.onnx", int8=images)
    assert (tmp_path / "n.onnx").read_text() == "from before"
    accepted = aa_flax.export(model, tmp_path / "n.onnx", int8=images, int8_min_agreement=0.98)
    assert accepted.metadata["int8"]["min_agreement"] == 0.98


@pytest.mark.parametrize(
    ("path", "given", "options", "message"),
    [
        ("n.stablehlo", "images", {}, r"int8 is an option of ONNX, and n\.stablehlo is not; give"),
        ("n.onnx", True, {}, r"int8 must be a folder of images, or images \(.*\); got True"),
        ("n.onnx", "nowhere", {}, r"no folder .*nowhere \(int8\); give a folder of images"),
        (
            "n.onnx",
            [np.zeros((40, 40, 3), np.uint8)] * 9,
            {},
            r"needs 200 images or more, .* got 9",
        ),
        ("n.onnx", None, {"int8_min_agreement": 0.9}, r"int8_min_agreement needs int8; give"),
        ("n.onnx", "images", {"int8_min_agreement": 95}, r"int8_min_agreement must be .* 0 to 1"),
        ("n.onnx", "images", {"size": 41}, r"int8 resizes images to 40 pixels as model\.config "),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(
    path, given, options, message, model, images, tmp_path
):
    given = images if given == "images" else given
    with pytest.raises(InputError, match=message):
        aa_flax.export(model, tmp_path / path, int8=given, **options)
    assert not list(tmp_path.iterdir())


def test_an_embedding_has_no_classes_to_compare(images, tmp_path):
    model = aa_flax.create_model("resnet18_lpf2", num_classes=0)
    with pytest.raises(
        InputError, match=r"resnet18_lpf2 has none \(num_classes=0\); export it wit"
    ):
        aa_flax.export(model, tmp_path / "n.onnx", size=SIZE, int8=images)
