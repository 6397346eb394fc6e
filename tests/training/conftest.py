import signal

import pytest

from aa_flax.training import train
from tests.training.tiny import register


@pytest.fixture(autouse=True)
def tiny_model() -> None:
    """`create_model("tiny")` works."""
    register()


@pytest.fixture
def no_final_evaluation(monkeypatch):
    """Saves the time of a compilation where the final results do not matter."""
    monkeypatch.setattr(train, "evaluate_config", lambda *_, **__: {})


@pytest.fixture
def heard():
    """Ctrl-C as a terminal gives it, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
