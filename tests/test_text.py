from isoflop.text import aligned

ROWS = [("name", "count", "note"), ("a", "1,024", ""), ("longer", "7", "all")]


def test_columns_are_aligned_and_lines_have_no_spaces_at_their_end():
    assert aligned(ROWS) == [
        "name    count  note",
        "a       1,024",
        "longer      7   all",
    ]


def test_columns_on_the_left_are_counted_from_both_ends():
    assert aligned(ROWS, left=(0, -1)) == [
        "name    count  note",
        "a       1,024",
        "longer      7  all",
    ]
    assert aligned(ROWS, left=(0, 2)) == aligned(ROWS, left=(0, -1))


def test_no_rows():
    assert aligned([]) == []
