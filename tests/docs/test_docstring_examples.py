"""Every public function and class has an example in its docstring, and it runs."""

import doctest

import pytest

import aa_flax

# Records, and what only subclasses or `except` clauses use.
WITHOUT = {"Column", "FeatureLevel", "InputError", "Option"}
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def examples(name: str) -> doctest.DocTest:
    docstring = getattr(aa_flax, name).__doc__ or ""
    return doctest.DocTestParser().get_doctest(docstring, {}, name, None, None)


@pytest.mark.parametrize("name", sorted(set(aa_flax.__all__) - WITHOUT))
def test_an_example_is_there_and_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = examples(name)
    if not test.examples:
        pytest.xfail("no example yet")
    assert doctest.DocTestRunner(optionflags=FLAGS).run(test).failed == 0
