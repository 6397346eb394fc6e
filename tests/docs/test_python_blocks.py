"""Every block of Python in the documentation runs, in the order of its page.

Models have their published names and sizes. Parameters are zeros and outputs follow from tracing:
only names, arguments, files and shapes are tested.
"""

import shutil
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import aa_flax
from aa_flax.models import registry
from aa_flax.models.classifier import Classifier
from tests.docs.markdown import PAGES, python_blocks

# Weights files that the pages name and a reader would have; `kept` is AA_FLAX_WEIGHTS.
FILES = {
    "resnet50": ["kept/resnet50-0676ba61.safetensors"],
    "resnet50_lpf4": [
        "kept/resnet50_lpf4-994b528f.safetensors",
        "kept/resnet50_lpf4_finetune-cad66808.safetensors",
        "runs/mine/weights.safetensors",
        "resnet50_lpf4.pth",
    ],
}
# Values that comments in the blocks state.
PROMISED = {
    "README.md": {
        "len(aa_flax.list_models('*_lpf4'))": 23,
        "y.shape": (2, 8, 4, 3),
        "len(set(names))": 1000,
        "probabilities.shape": (1000,),
    },
    "dense.md": {"unweighted(images, images).shape": (2,)},
    "backbones.md": {
        "[x.shape[1:] for x in maps]": [
            (32, 32, 64),
            (16, 16, 256),
            (8, 8, 512),
            (4, 4, 1024),
            (2, 2, 2048),
        ],
        "[level.reduction for level in coarse.feature_info]": [8, 32],
        "embedding.shape": (2, 2048),
        "model.num_classes": 10,
        "batch.shape": (1, 224, 224, 3),
        "[level.reduction for level in dilated.feature_info]": [2, 4, 8, 8, 8],
        "small.conv1.kernel.shape": (3, 3, 3, 64),
    },
}
# The first line of a block, and the reason.
NOT_RUN = {
    'folder = aa_flax.save_pretrained(model, "my_model", licence="apache-2.0")': (
        "its model is one of zeros; the examples of both functions run"
    ),
    "from flax import nnx  # to copy weights": "needs a file of MobileNetV2",
    'model = aa_flax.create_model("resnet50_lpf4", pretrained="runs/mine/weights.safetensors")': (
        "tests/export exports smaller models"
    ),
    "def classify(images):": "its model is one of zeros; test_functions.py exports a function",
    "from flax import nnx  # JaxNN": "needs JaxNN, which requires an older Pillow",
    "import onnxruntime": "needs the output of the block before; test_onnx.py has one",
    "from jax import export": "likewise; test_stablehlo.py has one",
    "from aa_flax import evaluate": "needs ImageNet and the reader's model",
    'distance = aa_flax.PerceptualDistance("alexnet_lpf4", pretrained=True)': "needs AlexNet's "
    "weights and the package lpips; test_perceptual.py has both",
    "@torch.no_grad()": "needs the reader's model; test_functions.py evaluates one of torch",
    "filters = {k: v for k, v in aa_flax.to_torch_state_dict(model).items() if "
    'k.endswith(".filt")}': "needs a file without filters; test_fit.py has one",
}
create_model = aa_flax.create_model


def of_zeros(name: str, *, pretrained=None, rngs=None, **options) -> Classifier:
    """Returns the result of `create_model` with zeros as parameters."""
    if pretrained:
        return create_model(name, pretrained=pretrained, **options)
    model = nnx.eval_shape(lambda: create_model(name, **options))
    nnx.update(model, jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), nnx.state(model)))
    return model


def traced(method):
    """Returns a method of a model that returns zeros in the shape of its outputs."""

    def shape_alone(model, *arguments, **options):
        graph, state = nnx.split(model)
        result = jax.eval_shape(
            lambda state, *arguments: method(nnx.merge(graph, state), *arguments, **options),
            state,
            *arguments,
        )
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)

    return shape_alone


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory):
    """Writes the files that the pages name."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("reader")
    for name, files in FILES.items():
        model = of_zeros(name)
        for file in files:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".pth":
                arrays = aa_flax.to_torch_state_dict(model)
                torch.save({"state_dict": {k: torch.tensor(v) for k, v in arrays.items()}}, path)
            else:
                aa_flax.save_weights(model, path)
    Image.new("RGB", (300, 280)).save(folder / "photo.jpg")
    yield folder
    shutil.rmtree(folder)  # hundreds of megabytes


# The package's models, without those that tests register.
OF_THE_PACKAGE = {name: e for name, e in registry._MODELS._items.items() if e.published or e.hub}


@pytest.fixture
def at_a_readers_place(readers_folder, monkeypatch):
    """Prepares this folder, and models that compute nothing."""
    monkeypatch.chdir(readers_folder)
    monkeypatch.setenv("AA_FLAX_WEIGHTS", str(readers_folder / "kept"))
    monkeypatch.setattr(registry._MODELS, "_items", dict(OF_THE_PACKAGE))
    monkeypatch.setattr(aa_flax, "create_model", of_zeros)
    match = aa_flax.match_statistics  # models that compute nothing have no batch norms to match
    monkeypatch.setattr(
        aa_flax,
        "match_statistics",
        lambda model, *given: model if isinstance(model, Classifier) else match(model, *given),
    )
    for method in ("__call__", "forward_features"):
        monkeypatch.setattr(Classifier, method, traced(getattr(Classifier, method)))
    for family in Classifier.__subclasses__():
        monkeypatch.setattr(family, "forward_head", traced(family.forward_head))


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p)], ids=lambda p: p.name)
def test_every_block_runs_and_keeps_its_promise(page, at_a_readers_place):
    names = {
        "aa_flax": aa_flax,
        "images": jnp.zeros((2, 64, 64, 3)),
        "x": jnp.zeros((2, 8, 8, 3)),
        "key": jax.random.key(0),
        "other_key": jax.random.key(1),
    }
    if page.name == "timm.md":  # torchvision without its compiled operators
        import_module("benchmarks.reference")
    for block in python_blocks(page):
        if block.splitlines()[0] not in NOT_RUN:
            exec(compile(block, page.name, "exec"), names)
    for promise, value in PROMISED.get(page.name, {}).items():
        assert eval(promise, names) == value, promise
