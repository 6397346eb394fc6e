import sys

import pytest

from benchmarks import startup


def test_an_unknown_model_is_named_before_anything_is_timed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["startup.py", "--models", "resnet18_lpf4", "resnet19_lpf4"])
    monkeypatch.setattr(startup, "seconds", lambda *_: pytest.fail("timed"))
    with pytest.raises(SystemExit):
        startup.main()
    error = capsys.readouterr().err
    assert "no such models: resnet19_lpf4; there are" in error
    assert "resnet18_lpf4" in error
