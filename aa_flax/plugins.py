"""Files of users, imported before flags are parsed: a stand-in, to be replaced."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path


def load_plugins(argv: Sequence[str]) -> None:
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name.lstrip("-") == "plugin":
            for plugin in (value or argv[i + 1]).split(","):
                if plugin.endswith(".py"):
                    sys.path.insert(0, str(Path(plugin).resolve().parent))
                importlib.import_module(Path(plugin).stem if plugin.endswith(".py") else plugin)
