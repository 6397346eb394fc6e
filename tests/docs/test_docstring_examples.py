"""Every public function and class has an example in its docstring, and it runs."""

import doctest

import pytest

import aa_flax
from aa_flax.models import registry
from aa_flax.nn import pool_registry

# Records, what only subclasses or `except` clauses use, what comes before JAX computes, and what
# needs a server.
WITHOUT = {"Column", "FeatureLevel", "InputError", "Option", "tune_cpu", "push_to_hub"}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(name: str) -> doctest.DocTest:
    docstring = getattr(aa_flax, name).__doc__ or ""
    return doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)


@pytest.mark.parametrize("name", sorted(set(aa_flax.__all__) - WITHOUT))
def test_an_example_is_there_and_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for table in (registry._MODELS, pool_registry._POOLS):  # examples that register are undone
        monkeypatch.setattr(table, "_items", dict(table._items))
    test = examples(name)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0
