"""Every public function and class has an example in its docstring, and it runs."""

import doctest

import pytest

import aa_flax
from aa_flax.models import registry
from aa_flax.nn import pool_registry

# Records, names for subclasses and `except` clauses only, functions to call before JAX is used, and
# functions that need a server.
WITHOUT = {"Column", "FeatureLevel", "InputError", "Option", "tune_cpu", "push_to_hub"}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(name: str) -> doctest.DocTest:
    docstring = getattr(aa_flax, name).__doc__ or ""
    return doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)


@pytest.mark.parametrize("name", sorted(set(aa_flax.__all__) - WITHOUT))
def test_every_example_exists_and_has_its_documented_output(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for table in (registry._MODELS, pool_registry._POOLS):  # examples that register are undone
        monkeypatch.setattr(table, "_items", dict(table._items))
    test = examples(name)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0
