import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from aa_flax import InputError, create_model, to_torch_state_dict
from aa_flax.models import registry
from aa_flax.weights import published
from aa_flax.weights.published import choose, published_file
from aa_flax.weights.read import read_weights
from tests.weights.conftest import NAME


def assert_has_weights_of(model, reference):
    expected = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    found = to_torch_state_dict(model)
    assert list(found) == list(expected)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "training", "filename"),
    [
        ("resnet50_lpf4", None, "resnet50_lpf4_finetune-cad66808.pth"),
        ("resnet50_lpf4", "scratch", "resnet50_lpf4-994b528f.pth"),
        ("resnet50_lpf4_finetune", None, "resnet50_lpf4_finetune-cad66808.pth"),
        ("resnet50_lpf3", None, "resnet50_lpf3-a4e868d2.pth"),
        ("resnet50", None, "resnet50-0676ba61.pth"),
    ],
)
def test_the_file_is_chosen_as_the_original_chooses(name, training, filename):
    assert choose(name, training).filename == filename


@pytest.mark.parametrize(
    ("name", "training", "message"),
    [
        ("vgg11_lpf3", None, r"no weights .* vgg11_lpf3; .*vgg11_lpf4 \(finetuned\)$"),
        ("resnet50_lpf3", "finetuned", r"no finetuned weights .* resnet50_lpf5 \(scratch\)$"),
        ("resnet50", "scratch", r"no scratch weights .*resnet50 \(baseline\)"),
    ],
)
def test_weights_that_were_never_released_are_refused_with_those_that_were(name, training, message):
    with pytest.raises(InputError, match=message):
        choose(name, training)


def test_a_download_is_checked_converted_and_kept(reference, released, serve, cache):
    requests = serve()
    assert_has_weights_of(create_model(f"{NAME}_finetune", pretrained=True), reference)
    assert_has_weights_of(create_model(NAME, pretrained="finetuned"), reference)
    assert requests == [f"/{released.filename}"]
    assert [path.suffix for path in cache.iterdir() if path.suffix != ".lock"] == [".safetensors"]


def test_a_file_in_the_local_folder_is_used_before_any_download(
    reference, released, released_folder, serve, monkeypatch
):
    requests = serve()
    monkeypatch.setenv("AA_FLAX_WEIGHTS", str(released_folder))
    assert_has_weights_of(create_model(NAME, pretrained=True), reference)
    assert requests == []


def test_a_converted_file_in_the_local_folder_needs_no_torch_file(
    reference, released, serve, cache, tmp_path, monkeypatch
):
    serve()
    converted = published_file(released)
    folder = tmp_path / "converted"
    folder.mkdir()
    converted.rename(folder / converted.name)
    monkeypatch.setenv("AA_FLAX_WEIGHTS", str(folder))
    assert published_file(released) == folder / converted.name


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("truncated", "ended after 1000 of"),
        ("wrong", "SHA-256 begins with"),
        ("dropped", "could not be downloaded"),
    ],
)
def test_a_broken_download_names_address_and_folder_and_leaves_nothing(
    fault, message, released, serve, cache
):
    serve(fault)
    with pytest.raises(InputError, match=message) as error:
        create_model(NAME, pretrained=True)
    assert published.address_of(released) in str(error.value)
    assert "AA_FLAX_WEIGHTS=" in str(error.value)
    assert [path.suffix for path in cache.iterdir()] in ([], [".lock"])


def test_without_a_network_the_address_is_named(released, monkeypatch):
    closed = "http://127.0.0.1:1/"
    monkeypatch.setattr(published, "ADDRESSES", dict.fromkeys(published.ADDRESSES, closed))
    what = f"{closed}{released.filename} could not be downloaded. Download it"
    with pytest.raises(InputError, match=rf"^no connection \(.*refused\): {what}") as error:
        create_model(NAME, pretrained=True)
    assert error.value.__suppress_context__  # without urllib's exception before


def test_without_torch_nothing_is_downloaded(released, serve, monkeypatch):
    requests = serve()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs torch; .* --index-url https://download\.pytorch"):
        create_model(NAME, pretrained=True)
    assert requests == []


def test_a_local_folder_that_is_missing_is_named(released, monkeypatch):
    monkeypatch.setenv("AA_FLAX_WEIGHTS", "no/such/folder")
    with pytest.raises(InputError, match="AA_FLAX_WEIGHTS is no/such/folder"):
        published_file(released)


def test_a_local_folder_may_begin_with_the_home_folder(
    released, released_folder, serve, monkeypatch
):
    requests = serve()
    monkeypatch.setenv("HOME", str(released_folder.parent))
    monkeypatch.setenv("AA_FLAX_WEIGHTS", f"~/{released_folder.name}")
    assert published_file(released).is_file()
    assert requests == []


def test_without_a_cache_a_download_is_kept_as_long_as_the_process(
    reference, released, serve, tmp_path, monkeypatch
):
    requests = serve()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = published_file(released)
    assert path == published_file(released)
    assert tmp_path not in path.parents
    arrays = read_weights(path).arrays
    bias = reference.state_dict()["classifier.0.bias"].numpy()
    np.testing.assert_array_equal(arrays["classifier.bias"], bias)
    assert len(requests) == 1


def test_a_converted_file_that_was_made_from_another_is_refused(released, cache):
    cache.mkdir(parents=True)
    path = cache / released.filename.replace(".pth", ".safetensors")
    save_file({"a.kernel": np.ones(2)}, path, {"format": "aa_flax", "sha256": "0" * 64})
    with pytest.raises(InputError, match="was converted from another file than"):
        create_model(NAME, pretrained=True)


def test_a_model_without_published_weights_is_one_error(monkeypatch):
    monkeypatch.setattr(registry, "released_weights", lambda: ())
    with pytest.raises(InputError, match="no weights were released for resnet18; there are: none"):
        choose("resnet18")


def test_processes_that_want_the_same_weights_download_them_once(released, serve, cache):
    requests = serve()
    code = (
        "from aa_flax.weights import published\n"
        "from aa_flax.models.registry import ReleasedWeights\n"
        "from aa_flax.models import registry\n"
        f"row = ReleasedWeights(*{tuple(released)!r})\n"
        "registry.released_weights = lambda: (row,)\n"
        f"published.ADDRESSES = {published.ADDRESSES!r}\n"
        "print(published.published_file(row))"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, cwd=root, env=os.environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert outputs == [str(cache / released.filename.replace(".pth", ".safetensors"))] * 2
    assert len(requests) == 1


def test_a_new_number_of_classes_keeps_all_but_the_last_layer(reference, released, serve):
    serve()
    full = create_model(NAME, pretrained=True)
    other = create_model(NAME, pretrained=True, num_classes=7)
    np.testing.assert_array_equal(full.head.conv.kernel[...], other.head.conv.kernel[...])
    fresh = create_model(NAME, num_classes=7)
    assert other.classifier.kernel.shape == (1280, 7)
    np.testing.assert_allclose(
        other.classifier.kernel[...], fresh.classifier.kernel[...], rtol=0, atol=1e-6
    )


def test_the_documentation_lists_every_published_file():
    text = (Path(__file__).parents[2] / "docs" / "weights.md").read_text()
    assert [r.filename for r in registry.released_weights() if r.filename not in text] == []


def test_the_table_lists_every_published_file():
    table = registry.released_weights()
    assert [sum(r.training == t for r in table) for t in ("baseline", "scratch", "finetuned")] == [
        23,
        36,
        23,
    ]
    for released in table:
        assert released.filename.endswith(f"-{released.sha256_prefix}.pth")
        registry.parse_name(released.model)
    assert {r.model for r in registry.published_results()} <= set(registry.list_models())
