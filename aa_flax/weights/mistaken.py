"""Files that are taken for weights and are none: what they are, and what to do."""

from pathlib import Path

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights: fetch them by git lfs pull",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?), of which no weights are read",
    b"<": "a web page or XML, not weights: download the file itself",
    b"{": "JSON, not weights",
}


def what_it_is(data: bytes, path: Path) -> str:
    """What the bytes of a file are, where that is plain; "" where it is not.

    Args:
        path: its name says what some files are.
    """
    if not data:
        return "empty"
    if path.name.endswith(".index.json"):
        return "the index of weights in several files: merge them into one, e.g. by safetensors"
    if data[8:9] == b"{":  # safetensors, whatever the length of its header looks like
        return ""
    start = data.lstrip()[:32]
    for beginning, said in _BEGINNINGS.items():
        if start.startswith(beginning):
            return said
    if start.startswith(b"PK"):
        return _zip(data)
    is_text = data[:200].isascii() and b"\0" not in data[:200]
    return "a text, not weights" if is_text else ""


def _zip(data: bytes) -> str:
    """Names of its members stand plainly in an archive; torch's own begin with `NAME/data.pkl`."""
    if b"/code/" in data and b"constants.pkl" in data:
        return "a TorchScript archive, which holds code: save its state_dict() alone"
    if b"data.pkl" in data[:2000] or b"/data/0" in data:
        return ""
    if b".npy" in data[:2000]:
        return "a NumPy archive: load_torch_state_dict takes dict(numpy.load(FILE))"
    return "a zip archive that torch did not write"
