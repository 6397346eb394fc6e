"""The type of a config."""

from typing import Any

# An `ml_collections.ConfigDict` as `configs/` make it: type checkers cannot know its fields.
Config = Any
