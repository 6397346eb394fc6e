"""Converts a folder of downloaded weights, file by file, and tells what became of each."""

from pathlib import Path
from typing import NamedTuple

from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.models import registry
from aa_flax.models.registry import ReleasedWeights
from aa_flax.runtime import progress_bar
from aa_flax.weights.convert import convert_torch_file
from aa_flax.weights.files import read_metadata


class Outcome(NamedTuple):
    """What became of one file: `status` is `converted`, `already done`, `missing` or an error."""

    released: ReleasedWeights
    status: str

    @property
    def failed(self) -> bool:
        return self.status not in ("converted", "already done", "missing")


def convert_folder(folder: str | Path, output: str | Path) -> list[Outcome]:
    """Converts every released file that stands in a folder; what is done already is skipped.

    Args:
        folder: the downloaded files, by their published names; torchvision's baselines as well.
        output: where `resnet50_lpf4-994b528f.safetensors` and its like are written.

    Returns:
        One outcome a file of the table; an unreadable or wrong file does not stop the others.

    Raises:
        InputError: no such folder, or none of the files in it.
    """
    folder, output = local_path(folder, "the folder"), local_path(output, "the output")
    if not folder.is_dir():
        raise InputError(f"no folder {folder}")
    table = registry.released_weights()
    if not any((folder / released.filename).is_file() for released in table):
        raise InputError(
            f"no released file in {folder}; their names are like {table[-1].filename}, and "
            "docs/weights.md lists them"
        )
    if output.exists() and not output.is_dir():
        raise InputError(f"the output {output} is a file; with --all it is a folder")
    outcomes = []
    with progress_bar(len(table), "converting", "file") as bar:
        for released in table:
            outcomes.append(Outcome(released, _convert(released, folder, output)))
            bar.update()
    return outcomes


def _convert(released: ReleasedWeights, folder: Path, output: Path) -> str:
    source = folder / released.filename
    target = (output / released.filename).with_suffix(".safetensors")
    if not source.is_file():
        return "missing"
    if _is_done(target, released):
        return "already done"
    try:
        convert_torch_file(source, target)
    except InputError as error:
        return str(error)
    return "converted"


def _is_done(target: Path, released: ReleasedWeights) -> bool:
    """Whether `target` is a whole file made from the released one."""
    try:
        return read_metadata(target).get("sha256", "").startswith(released.sha256_prefix)
    except InputError:
        return False


def table_of(outcomes: list[Outcome]) -> str:
    """The outcomes as a table, the missing files as a count below it."""
    found = [o for o in outcomes if o.status != "missing"]
    width = max(len(o.released.filename) for o in found)
    lines = [
        f"{o.released.filename:{width}}  {o.released.parameters:>11,}  {o.status}" for o in found
    ]
    failed = sum(o.failed for o in outcomes)
    lines.append(
        f"{len(found) - failed} of {len(outcomes)} files are converted, {failed} failed, "
        f"{len(outcomes) - len(found)} are not in the folder"
    )
    return "\n".join([f"{'file':{width}}  {'parameters':>11}  status", *lines])
