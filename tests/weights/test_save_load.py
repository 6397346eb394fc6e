import json
import os
import re
import resource
from contextlib import contextmanager
from functools import partial

import jax
import numpy as np
import pytest
import safetensors
from flax import nnx

from aa_flax import BlurPool, InputError, ModelConfig, create_model, load_weights, save_weights
from aa_flax.files import check_writable
from aa_flax.weights.convert_files import save_as_torch
from aa_flax.weights.fit import named_weights
from aa_flax.weights.locate import locate
from aa_flax.weights.read import images_in, read_weights
from aa_flax.weights.save_load import write_torch_file
from tests.compiled import run


@pytest.fixture(scope="module")
def model():
    return create_model("mobilenet_v2_lpf4", num_classes=10)


@contextmanager
def full_disk(size):
    """Limits the size of files, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def path(model, tmp_path):
    save_weights(model, tmp_path / "w.safetensors", source="a test", licence="none")
    return tmp_path / "w.safetensors"


def leaves(model):
    return [np.asarray(v[...]) for v in named_weights(model).values()]


def test_weights_survive_bit_for_bit(model, path):
    other = create_model("mobilenet_v2_lpf4", num_classes=10, rngs=nnx.Rngs(1))
    assert load_weights(other, path) is other
    for a, b in zip(leaves(model), leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_create_model_takes_weights_and_classes_from_a_file(tmp_path):
    model = made("binomial4", drop_rate=0.5)
    save_weights(model, tmp_path / "w.safetensors")
    other = made("binomial4", seed=1, drop_rate=0.5, pretrained=tmp_path / "w.safetensors")
    assert other.num_classes == 3
    x = jax.random.normal(jax.random.key(0), (2, 40, 40, 3))
    np.testing.assert_array_equal(run(model, x), run(other, x))
    other.train()  # dropout, which no file contains, works
    assert (run(other, x) != run(model, x)).all()


def test_the_images_of_a_model_are_stored_with_its_weights(model, path):
    options = {"num_classes": 3, "width_mult": 0.25}
    classifier = create_model("mobilenet_v2_lpf4", **options)
    halves = (0.5, 0.5, 0.5)
    classifier.config = ModelConfig(40, 0, "bicubic", halves, (0.25, 0.5, 0.75))
    save_weights(classifier, path)
    found = create_model("mobilenet_v2_lpf4", pretrained=path, **options).config
    assert found == classifier.config
    for damaged in ("[1]", "40", '{"mean": 1}', "{", "[" * 100_000, '{"std": [0, 1, 1]}'):
        save_weights(classifier, path, images=damaged)
        with pytest.raises(InputError, match=r"w\.safetensors: images: .*(got|not JSON)"):
            locate(path, model="mobilenet_v2_lpf4").config_changes()


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("input_size", 0, "an integer of at least 1"),
        ("input_size", -5, "an integer of at least 1"),
        ("input_size", 1e400, "an integer of at least 1"),
        ("input_size", 10**9, "a number from 1 to 65535"),
        ("input_size", 10**400, "a number from 1 to 65535"),
        ("resize_size", "224", "an integer of at least 0"),
        ("interpolation", ["bicubic"], "one of bilinear, bicubic"),
        ("mean", [float("nan")] * 3, "a number from -10000.0 to 10000.0"),
        ("mean", "abc", "a number from -10000.0 to 10000.0"),
        ("mean", {}, "three numbers, one a channel"),
        ("std", [1, 1, -1], "a number from 0.0001 to 10000.0"),
        ("std", [1, 1], "three numbers, one a channel"),
    ],
)
def test_images_that_make_no_sense_are_refused_by_file_field_and_value(field, value, accepted):
    message = rf"^w\.safetensors: images: .*{field} must be {re.escape(accepted)}[,;] got [^\n]+$"
    with pytest.raises(InputError, match=message):
        images_in({"images": json.dumps({field: value})}, "w.safetensors")


@pytest.mark.parametrize("odd", ["{", "[" * 100_000, "5", '{"width_mult": "x"}', '{"rngs": 5}'])
def test_options_that_make_no_sense_are_refused_by_file(odd, model, path):
    save_weights(model, path, options=odd)
    with pytest.raises(InputError, match=r"w\.safetensors: [^\n]*$"):
        create_model("mobilenet_v2_lpf4", pretrained=path)


def test_numbers_in_metadata_that_are_not_are_ignored(model, path):
    save_weights(model, path, epoch="\u00b2", step="9" * 5000, num_classes="\u00b2")
    weights = locate(path, model="mobilenet_v2_lpf4")
    assert weights.description().keys() == {"kind", "model", "file", "sha256"}
    assert weights.load_model().num_classes == 10


def test_metadata_name_model_source_and_licence(path):
    metadata = dict(read_weights(path).metadata)
    images = json.loads(metadata.pop("images"))
    assert ModelConfig(**images | {k: tuple(images[k]) for k in ("mean", "std")}) == ModelConfig()
    assert metadata == {
        "format": "aa_flax",
        "model": "mobilenet_v2_lpf4",
        "options": "{}",
        "num_classes": "10",
        "source": "a test",
        "licence": "none",
    }


def test_equal_weights_are_files_of_equal_bytes_that_others_read(model, path):
    facts = {
        "source": 'ä "b"\\\n\x7f\u2028😀',
        "licence": "none",
        "a": "",
        "Z": "1",
        "training": "x",
    }
    files = [path.with_name(f"{i}.safetensors") for i in range(4)]
    for file in files:
        save_weights(model, file, **facts)
    assert len({file.read_bytes() for file in files}) == 1
    with safetensors.safe_open(files[0], "pt") as file:
        assert facts.items() <= file.metadata().items()
        kernel = file.get_tensor("classifier.kernel").numpy()
    np.testing.assert_array_equal(kernel, model.classifier.kernel[...])


def test_a_number_alone_is_a_weight_like_any_other(tmp_path):
    class Scale(nnx.Module):
        def __init__(self, value):
            self.scale = nnx.Param(jax.numpy.array(value))

    save_weights(Scale(2.0), tmp_path / "w.safetensors")
    assert load_weights(Scale(1.0), tmp_path / "w.safetensors").scale[...] == 2


def test_weights_of_another_model_are_refused_by_name(path):
    other = create_model("mobilenet_v2_lpf3", num_classes=10)
    with pytest.raises(InputError, match=r"has weights of mobilenet_v2_lpf4, not of .*_lpf3"):
        load_weights(other, path)


def test_weights_of_another_shape_are_refused_and_change_nothing(path):
    other = create_model("mobilenet_v2_lpf4", num_classes=11)
    before = leaves(other)
    with pytest.raises(InputError, match=r"classifier\.kernel \(1280, 10\), .*\(1280, 11\)"):
        load_weights(other, path)
    for a, b in zip(before, leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_damaged_and_missing_files_are_named(path, model):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"w\.safetensors is not a whole safetensors file"):
        load_weights(model, path)
    with pytest.raises(InputError, match=r"no file .*absent\.safetensors"):
        create_model("mobilenet_v2_lpf4", pretrained=path.with_name("absent.safetensors"))


def test_a_device_or_pipe_is_not_replaced_by_a_file(model, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a device or a pipe"):
        save_weights(model, tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a device or a pipe"):
        check_writable(tmp_path / "pipe")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize(
    ("target", "cause"),
    [("file/w.safetensors", "(File exists|Not a directory)"), ("folder", "Is a directory")],
)
def test_a_path_that_cannot_be_written_is_one_line_that_names_it(target, cause, model, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=rf"^\S*/{target} cannot be written: {cause}; [^\n]*$"):
        save_weights(model, tmp_path / target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_metadata_that_are_not_text_are_refused(model, path):
    before = path.read_bytes()
    for odd in (3, None, "\udcff"):
        with pytest.raises(InputError, match=r"w\.safetensors cannot be written: "):
            save_weights(model, path, source=odd)
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", [save_weights, save_as_torch])
def test_a_full_disk_is_one_line_and_leaves_the_old_file(write, model, tmp_path):
    (tmp_path / "w").write_bytes(b"old")
    with (
        full_disk(1_000_000),
        pytest.raises(InputError, match=r"/w cannot be written: .*File too l"),
    ):
        write(model, tmp_path / "w")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_failed_write_leaves_the_old_file(model, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr("aa_flax.weights.save_load.save_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_weights(model, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_of_a_torch_file_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.pth"
    write_torch_file({"a": np.ones(3)}, path)
    with pytest.raises(TypeError):
        write_torch_file({"a": np.array([object()])}, path)
    assert read_weights(path).arrays["a"].tolist() == [1, 1, 1]
    assert list(tmp_path.iterdir()) == [path]


def made(pool, seed=0, **options):
    classes = {} if "pretrained" in options else {"num_classes": 3}
    rngs = nnx.Rngs(seed)
    return create_model("tiny_densenet", pool=pool, rngs=rngs, **classes, **options)


@pytest.mark.parametrize("pool", ["learned3", "lps", "aps_l2"])
def test_a_model_with_a_pool_is_saved_and_loaded_with_its_weights(pool, tmp_path):
    model = made(pool)
    save_weights(model, tmp_path / "mine.safetensors")
    again = made(pool, seed=1, pretrained=tmp_path / "mine.safetensors")
    by_hand = load_weights(made(pool, seed=1), tmp_path / "mine.safetensors")
    for name, variable in named_weights(model).items():
        np.testing.assert_array_equal(named_weights(again)[name], variable)
        np.testing.assert_array_equal(named_weights(by_hand)[name], variable)
    assert any("pool" in name for name in named_weights(model)) == (pool != "aps_l2")


def test_weights_of_one_pool_are_refused_by_a_model_with_another(tmp_path):
    save_weights(made("gaussian5"), tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="pool='gaussian5', this model has pool='gaussian7'"):
        load_weights(made("gaussian7"), tmp_path / "mine.safetensors")


def nameless():
    return lambda stride: BlurPool(3, stride)


@pytest.mark.parametrize(
    "pool",
    [lambda stride: BlurPool(5, stride), nameless(), partial(lambda k, s: BlurPool(k, s), 3)],
)
def test_a_pool_without_a_name_is_not_stored_under_one_that_others_have(pool, tmp_path):
    model = made(pool)  # usable nevertheless
    with pytest.raises(InputError, match=r"mine.*pool=.* without a unique name.*register"):
        save_weights(model, tmp_path / "mine.safetensors")
    assert not list(tmp_path.iterdir())
