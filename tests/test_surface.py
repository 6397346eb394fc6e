"""The public surface is as recorded; `python -m tests.surface` records intended changes."""

import json

import pytest

from tests.surface import RECORD, SURFACE


@pytest.mark.parametrize("part", SURFACE)
def test_the_public_surface_is_as_recorded(part):
    recorded = json.loads(RECORD.read_text())[part]
    assert SURFACE[part]() == recorded
