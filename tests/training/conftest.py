import pytest

from tests.training.tiny import register


@pytest.fixture(autouse=True)
def tiny_net() -> None:
    """`create_model("tiny")` works."""
    register()
