import signal

import pytest

from aa_flax.training import train
from tests.training.tiny import register


@pytest.fixture(autouse=True)
def tiny_model() -> None:
    """Registers `tiny` for `create_model`."""
    register()


@pytest.fixture
def no_final_evaluation(monkeypatch):
    """Skips a compilation for final results, which do not matter here."""
    monkeypatch.setattr(train, "evaluate_config", lambda *_, **__: {})


@pytest.fixture
def heard():
    """Handles Ctrl-C as on a terminal, for any parent process of the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
