"""What a person sees while it lasts: lines and progress bars, of the first host alone."""

from typing import Any

from tqdm import tqdm

from aa_flax.sharding import is_main_process


def progress_bar(total: int | None, title: str, unit: str = "img", **options: Any) -> tqdm:
    """A bar with a rate and the time left, drawn on a terminal alone: nothing into a pipe or log.

    Args:
        total: how many units there are; None: not known yet.
        options: further ones of `tqdm`, e.g. `initial`, `unit_scale`.
    """
    disable = None if is_main_process() else True  # None: off unless on a terminal
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=disable, **options)


def tell(line: str) -> None:
    """Prints a line, in the process that prints for all."""
    if is_main_process():
        print(line, flush=True)
