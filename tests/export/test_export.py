"""The function `aa_flax.export` and its command: file types and errors."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

import aa_flax
from aa_flax import InputError
from aa_flax.export import onnx_file, write
from aa_flax.export.__main__ import run
from tests.export.models import SIZE, resnet, small


@pytest.mark.parametrize(
    "order",
    [
        "aa_flax.export(",
        "import aa_flax.export\naa_flax.export(",
        "from aa_flax import export\nexport(",
        "import aa_flax.export.write\naa_flax.export(",
        "aa_flax.export\nfrom aa_flax.export import export\nassert export\naa_flax.export(",
    ],
)
def test_export_is_a_function_whatever_was_imported_first(order):
    program = f"import aa_flax\ntry:\n    {order.replace(chr(10), chr(10) + '    ')}0, 'net.pdf')"
    program += "\nexcept aa_flax.InputError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "the output net.pdf must end in .onnx or .stablehlo\n", done


def test_this_package_loads_no_onnx():
    program = (
        "import aa_flax, sys; print({'onnx', 'onnxruntime', 'aa_flax.export'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net", {}, r"the output .*net must end in \.onnx or \.stablehlo"),
        ("net.onnx", {"size": 20}, r"images of 20x20 pixels are too small for this model, which t"),
        ("net.onnx", {"size": 0}, r"size must be an integer of at least 1, got 0"),
        ("net.onnx", {"dynamic_size": 1}, r"dynamic_size must be True or False, got 1"),
        ("net.onnx", {"preprocessing": "no"}, r"preprocessing must be True or False, got 'no'"),
        ("folder.onnx", {}, r"the output .*folder\.onnx is a directory; give the name of a file"),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(name, options, message, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InputError, match=message):
        aa_flax.export(small("basic"), tmp_path / name, **{"size": SIZE, **options})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_only_models_for_inference_are_exported(tmp_path):
    training = resnet()
    training.train()
    backbone = aa_flax.Backbone(resnet(num_classes=0))
    for model, message in (
        (training, r"in training mode; call model\.eval\(\) before"),
        (backbone, r"takes a model of aa_flax\.create_model, got a Backbone; of a backbone the w"),
        (resnet(dtype="bfloat16"), r"compute in float32, got one that computes in bfloat16; cre"),
    ):
        with pytest.raises(InputError, match=message):
            aa_flax.export(model, tmp_path / "net.onnx", size=SIZE)


@pytest.mark.parametrize(("name", "package"), [("n.onnx", "onnx"), ("n.stablehlo", "flatbuffers")])
def test_a_missing_extra_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "find_spec", lambda name: None)
    message = rf"writing {name} needs {package}: pip install 'aa_flax\[export\]'"
    with pytest.raises(InputError, match=message):
        aa_flax.export(small("basic"), tmp_path / name)


def test_without_a_runtime_nothing_is_compared(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    monkeypatch.setattr(write, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert aa_flax.export(small("basic"), tmp_path / "net.onnx", size=SIZE).difference is None


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("basic", "stablehlo"),
        ("densenet_baseline", "onnx"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                ("basic", "onnx"),
                ("densenet_baseline", "stablehlo"),
                ("mobilenet", "onnx"),
                ("mobilenet", "stablehlo"),
            )
        ),
    ],
)
def test_the_advised_size_can_be_exported(name, suffix, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match="are too small") as refused:
        aa_flax.export(small(name), tmp_path / f"net.{suffix}", size=1)
    (advised,) = re.findall(r"takes (\d+)x", str(refused.value))
    exported = aa_flax.export(small(name), tmp_path / f"net.{suffix}", size=int(advised))
    assert exported.difference <= 1e-5


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
def test_rematerialization_does_not_change_the_file(suffix, tmp_path):
    pytest.importorskip("onnx")
    paths = [tmp_path / f"{i}.{suffix}" for i in range(2)]
    for path, remat in zip(paths, (False, True), strict=True):
        model = small("densenet")
        model.remat = remat
        aa_flax.export(model, path, size=SIZE)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
@pytest.mark.parametrize(
    "remat",
    [lambda conv, x: jax.checkpoint(lambda y: conv(y))(x), nnx.remat(lambda conv, x: conv(x))],
    ids=["jax", "nnx"],
)
def test_a_block_that_rematerializes_by_itself_is_exported(remat, suffix, tmp_path):
    pytest.importorskip("onnxruntime")

    class Custom(aa_flax.Classifier):
        def __init__(self):
            super().__init__(num_classes=5)
            self.conv = nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0))
            self.fc = nnx.Linear(5, 5, rngs=nnx.Rngs(1))

        def named_blocks(self):
            yield "conv", lambda x: remat(self.conv, x)

    assert aa_flax.export(Custom(), tmp_path / f"net.{suffix}", size=SIZE).difference <= 1e-5


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    (tmp_path / "net.onnx").write_text("from before")
    right = onnx_file.run
    monkeypatch.setattr(onnx_file, "run", lambda *given: right(*given) * 1.001)
    with pytest.raises(InputError, match=r"differs from this model by 1\.0e-03 of its largest"):
        aa_flax.export(small("basic"), tmp_path / "net.onnx", size=SIZE)
    assert (tmp_path / "net.onnx").read_text() == "from before"


def test_the_command_exports_a_weights_file(tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    model = aa_flax.create_model("resnet18_lpf2", num_classes=3)
    file, output = str(tmp_path / "w.safetensors"), str(tmp_path / "net.onnx")
    aa_flax.save_weights(model, file, licence="mine")
    run([file, output, "--size=35", "--preprocessing"])
    assert f"resnet18_lpf2: written to {output}, probabilities within" in capsys.readouterr().out
    facts = {fact.key: fact.value for fact in onnx.load(output).metadata_props}
    assert (facts["source"], facts["licence"]) == (file, "mine")
    x = np.zeros((1, 35, 35, 3), np.uint8)
    np.testing.assert_allclose(onnx_file.run(output, x).sum(), 1, rtol=1e-5)
    with pytest.raises(InputError, match=r"w\.safetensors contains weights of resnet18_lpf2, not"):
        run([file, output, "--model=resnet34_lpf2"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["w.pth", "net.txt"], r"the output net\.txt must end in \.onnx or \.stablehlo"),
        (["w.pth", "net.onnx"], r"no file w\.pth"),
        (["pretrained", "net.onnx"], r"pretrained: of which .* Give --model NAME"),
        (["hf-hub:a/b", "net.onnx"], r"hf-hub:a/b: of which model\? Give --model NAME"),
        (["w.pth", "net.onnx", "--option", "x"], r"--option is NAME=VALUE"),
        (["run", "net.onnx"], r"no run in run"),
    ],
)
def test_the_command_refuses_invalid_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(write, "find_spec", lambda name: name)
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=message):
        run(arguments)
    assert not (tmp_path / "net.onnx").exists()
