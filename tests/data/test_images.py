import io
import pickle

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from aa_flax.data.images import ImageError, decode


def test_every_kind_of_file_has_pils_pixels(odd_files):
    for name, encoded in odd_files.items():
        expected = Image.open(io.BytesIO(encoded)).convert("RGB")
        found = decode(encoded, name)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_plain_jpegs_are_decoded_by_the_faster_decoder(odd_files, monkeypatch):
    calls = []
    fast = simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *a, **k: calls.append(a) or fast(*a, **k))
    for name in ("420.jpg", "grey.jpg", "progressive.jpg", "cmyk.jpg", "png.JPEG"):
        decode(odd_files[name], name)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["420.jpg", "grey.jpg", "cmyk.jpg", "rgba.png", "lossy.webp"])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(odd_files, name, share):
    encoded = odd_files[name][: int(share * len(odd_files[name]))]
    with pytest.raises(ImageError, match=f"cannot read image some/{name}: "):
        decode(encoded, f"some/{name}")


def test_an_empty_file_and_a_text_are_named_for_what_they_are():
    with pytest.raises(ImageError, match=r"a\.jpg: empty"):
        decode(b"", "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: not an image"):
        decode(b"<html>", "a.jpg")


def test_damaged_jpegs_are_read_or_refused_as_pil_does(odd_files, rng):
    encoded = odd_files["420.jpg"]
    for position in rng.integers(2, len(encoded), 200):
        damaged = encoded[:position] + bytes([encoded[position] ^ 0xFF]) + encoded[position + 1 :]
        try:
            expected = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))
        except Exception:
            expected = None
        try:
            found = np.asarray(decode(damaged, "damaged.jpg"))
        except ImageError:
            found = None
        assert (found is None) == (expected is None)
        if found is not None:
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_pils_limit_of_pixels_holds_before_decoding(monkeypatch, format):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 9, 9)).save(buffer, format)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.warns(Image.DecompressionBombWarning):  # as PIL does, from half the limit on
        assert decode(buffer.getvalue(), "as large as may be").size == (30, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(
        ImageError, match=r"bomb: Image size \(600 pixels\) exceeds limit of 598 pixels; to"
    ):
        decode(buffer.getvalue(), "bomb")


def test_an_error_travels_between_processes():
    error = ImageError.of("a.jpg", ValueError("broken"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
