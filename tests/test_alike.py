"""Many rows with one mistake are one sentence; mistakes that differ, and few of a kind, stay apart."""

from __future__ import annotations

from fusionkit.alike import tell_once


def of_row(row, what):
    return f"sample s{row} (subject p{row // 2}): {what}"


def test_many_rows_with_one_mistake_are_one_sentence_that_counts_and_names_the_first():
    given = [of_row(row, f"Age: outside its range ('{500 + row}'). Allowed: 0 to 120.") for row in range(9)]
    assert tell_once(given) == [
        (
            "sample s0 (subject p0): Age: outside its range ('500'). Allowed: 0 to 120. "
            "Alike: 8 more rows (s1, s2, s3, ...).",
            9,
        )
    ]
    assert tell_once(given[:4])[0][0].endswith(" Alike: 3 more rows (s1, s2, s3).")


def test_few_rows_are_told_one_by_one():
    given = [of_row(row, f"Age: outside its range ('{row}'). Allowed: 7 to 8.") for row in range(3)]
    assert tell_once(given) == [(sentence, 1) for sentence in given]


def test_sentences_keep_their_order():
    many = [of_row(row, f"Age: not a number ('{row}'). Mend it.") for row in (0, 2, 4, 6)]
    few = [of_row(row, "Size: not allowed ('x'). Mend it.") for row in (1, 3)]
    told = tell_once([many[0], few[0], many[1], few[1], *many[2:]])
    assert [sentence for sentence, _ in told][1:] == few
    assert told[0] == (f"{many[0]} Alike: 3 more rows (s2, s4, s6).", 4)


def test_another_column_or_another_mistake_is_told_apart():
    given = [
        of_row(row, f"{column}: {what} ('x'). Mend it.")
        for what in ("not a number", "outside its range")
        for column in ("Age", "Size")
        for row in range(5)
    ]
    told = tell_once(given)
    assert [count for _, count in told] == [5, 5, 5, 5]
    assert len({sentence for sentence, _ in told}) == 4


def test_files_of_other_names_are_alike_and_so_are_values_with_other_suggestions():
    files = [
        of_row(row, f"image: there is no such file (a/b {row}.png). Check its name.") for row in range(4)
    ]
    images = [
        of_row(row, f"data/{row}.png: the file is empty (0 bytes). Fetch it again.") for row in range(5)
    ]
    values = [
        of_row(row, f"side: not an allowed value ('{text}'). {hint}Known: left, right.")
        for row, (text, hint) in enumerate(
            [("lef", "Did you mean 'left'? "), ("x", ""), ("righ", "Did you mean 'right'? "), ("y", "")]
        )
    ]
    assert [count for _, count in tell_once([*files, *images, *values])] == [4, 5, 4]


def test_what_is_about_no_single_row_stays_as_it_is():
    given = ["split: there is no benign subject.", "and 3 more cells.", of_row(1, "Age: x ('1'). Y.")]
    assert tell_once(given) == [(sentence, 1) for sentence in given]


def test_a_sentence_that_comes_twice_is_counted_twice():
    twice = [of_row(row // 2, "a/x.png: the file is empty (0 bytes). Fetch it again.") for row in range(6)]
    ((sentence, count),) = tell_once(twice)
    assert count == 6
    assert sentence.startswith(f"{twice[0]} Alike: 5 more rows (s0, s1, s1, ...).")
