import pytest

from aa_flax.training import loop
from tests.training.tiny import register


@pytest.fixture(autouse=True)
def tiny_net() -> None:
    """`create_model("tiny")` works."""
    register()


@pytest.fixture
def no_final_evaluation(monkeypatch):
    """Saves the time of a compilation where the final results do not matter."""
    monkeypatch.setattr(loop, "evaluate_config", lambda *_, **__: {})
