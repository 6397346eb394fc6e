from aa_flax.data.folder import natural_key


def test_numbers_in_names_are_in_their_order():
    names = ["frame10", "frame2", "frame1", "a9b10", "a9b9", "10", "9", "frame02", "", "b"]
    expected = ["", "9", "10", "a9b9", "a9b10", "b", "frame1", "frame02", "frame2", "frame10"]
    assert sorted(names, key=natural_key) == expected
