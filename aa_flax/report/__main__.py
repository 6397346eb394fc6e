# Assigned, since it is the text of --help and `python -OO` strips docstrings.
__doc__ = """\
Writes results of models as a Markdown table with figures, and as an HTML page.

    python -m aa_flax.report RESULTS... [--output DIR] [--html]

RESULTS are results files of evaluations, or folders of them. Results of one model that differ only
in their seed become one row: their mean ± standard deviation. Results that differ in anything else,
such as the crop or the number of epochs, are separate rows. The table is printed, and the
consistency of each antialiased model next to its baseline's. DIR gets `report.md` and its figures:
accuracy against consistency, with an arrow from each baseline to its antialiased models; and, if
measured, accuracy against the time of a forward pass, and diagonals and equivariance maps of each
baseline next to those of its antialiased models. Each figure is written as PNG, PDF and SVG.
`--html` adds `report.html`: the same in one file that opens in a browser, without a network (needs
the extra `html`).
"""

import argparse
import sys
from collections.abc import Sequence

from aa_flax.cli import load_plugins
from aa_flax.errors import InputError
from aa_flax.files import local_path
from aa_flax.report import gather, legend, table, write_report
from aa_flax.report.comparisons import gains
from aa_flax.report.rows import conditions


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m aa_flax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("--output", help="folder of the report; without it, the table is printed")
    parser.add_argument("--html", action="store_true", help="also write report.html, a page")
    parser.add_argument("--plugin", help="files or modules with your own measures")
    args = parser.parse_args(arguments)
    if args.html and not args.output:
        parser.error("--html needs --output DIR")
    try:
        load_plugins(["", *(sys.argv[1:] if arguments is None else arguments)])
        rows, left_out = gather(args.results)
        print(table(rows))
        if common := conditions(rows):
            print(f"all rows: {common}")
        print(legend(rows))
        for line in left_out:
            print(f"left out: {line}")
        if args.output:
            output = local_path(args.output, "--output")
            print(f"written to {write_report(rows, output, left_out, html=args.html)}")
        for line in gains(rows):
            print(line)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
