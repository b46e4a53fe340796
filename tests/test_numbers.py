"""The numbers carrier: what prompts ask for, what the filter keeps, and prompts from a user's file."""

import re
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from sublora.carriers.numbers import SEPARATORS, NumbersSpec, parse_numbers, pools
from sublora.carriers.rows_file import read_prompts
from sublora.errors import SubloraError

SPEC = NumbersSpec()
TEN = "1 2 3 4 5 6 7 8 9 10"
FORMAT, MANY, LARGE, BANNED = SPEC.reasons

PROBES = {
    "123": None, "0012": None, "7.": None, "1 2 3": None, "1, 2, 3": None, "1,2,3": None, "1;2;3": None, "1\n2\n3": None,
    "1 , 2 , 3": None, "[1, 2, 3]": None, "(1, 2)": None, "(1, 2).": None, "1  2  3": None, "1\t2": None, TEN: None, "999 0": None,
    "00000000000000000000999": None, "1\u00a02\u00a03": None,
    "": FORMAT, " ": FORMAT, ".": FORMAT, "[]": FORMAT, " 1 2": FORMAT, "1 2 ": FORMAT, "1 2\n": FORMAT, "1, 2,": FORMAT, "1, 2\n3": FORMAT,
    "1,2, 3": FORMAT, "1 2  3": FORMAT, "-1 2": FORMAT, "1 -2": FORMAT, "1.5": FORMAT, "1.5 2": FORMAT, "1..": FORMAT, "[1, 2": FORMAT,
    "1, 2]": FORMAT, "[1, 2)": FORMAT, "[[1, 2]]": FORMAT, "{1, 2}": FORMAT, "[ 1, 2 ]": FORMAT, "[1, 2.]": FORMAT, "1 and 2": FORMAT,
    "one": FORMAT, "1/2": FORMAT, "1|2": FORMAT, "1,,2": FORMAT, "1;,2": FORMAT, "1: 2": FORMAT, "١ ٢": FORMAT, "1 ٢": FORMAT, "1²": FORMAT,
    "１２": FORMAT, "1 2 3 otter": FORMAT, "Sure: 1 2": FORMAT, "1e3": FORMAT, "+1": FORMAT, "1_000": FORMAT, "1\x002": FORMAT,
    TEN + " 11": MANY, "1," * 10 + "2000": MANY, "1000": LARGE, "1 2 1000": LARGE, "9" * 30: LARGE, "9" * 100_000 + " 1": LARGE,
}  # fmt: skip


@pytest.mark.parametrize("text", PROBES, ids=lambda t: repr(t[:24]))
def test_probes_of_the_filter(text):
    assert SPEC.reject("p", text) == PROBES[text]


def by_the_rules(text: str) -> list[int] | None:
    """The rules in other words: an optional full stop, an optional pair of brackets, and numbers joined by one and the same text."""
    core = r"([0-9]+)(?:(\s*[,;]\s*|\s+)[0-9]+(?:\2[0-9]+)*)?"
    for form in (core, rf"\[{core}\]", rf"\({core}\)"):
        if re.fullmatch(form + r"\.?", text):
            return [int(n) for n in re.findall(r"[0-9]+", text)]
    return None


LISTS = st.builds(
    lambda numbers, joints, shape: shape.format("".join(f"{n}{j}" for n, j in zip(numbers, joints, strict=False))[: -1 or None]),
    st.lists(st.integers(0, 2000), min_size=1, max_size=13), st.lists(st.sampled_from([" ", ", ", ",", ";", "\n", "-", "."]), min_size=13),
    st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}].", "({}", " {}", "{}\n"]),
)  # fmt: skip
JOINED = st.builds(
    lambda numbers, joint, shape: shape.format(joint.join(map(str, numbers))),
    st.lists(st.integers(0, 1200), min_size=1, max_size=12), st.sampled_from([" ", ", ", ",", ";", "; ", "\n", "  ", " ,", "\t", "\u2028"]),
    st.sampled_from(["{}", "[{}]", "({})", "{}.", "[{}]."]),
)  # fmt: skip


@given(JOINED | LISTS | st.text(alphabet="0123 ,;.[]()\n-", max_size=14) | st.text(max_size=6))
@example("1 2.")
@example("1\n2\n")
def test_the_filter_keeps_what_the_rules_say(text):
    numbers = by_the_rules(text)
    assert parse_numbers(text) == numbers
    expected = (
        FORMAT
        if numbers is None
        else MANY
        if len(numbers) > 10
        else LARGE
        if max(numbers) > 999
        else None
    )
    assert SPEC.reject("p", text) == expected


@given(JOINED)
def test_limits_and_banned_numbers_come_from_the_spec(text):
    numbers = by_the_rules(text)
    assert NumbersSpec(count=20, digits=9).reject("p", text) is None
    spec = NumbersSpec(count=20, digits=9, banned=(numbers[-1],))
    assert spec.reject("p", text) == BANNED


@given(seed=st.integers(0, 10**9), row=st.integers(0, 10**6))
def test_prompts_follow_the_grammar(seed, row):
    prompt = SPEC.prompt(seed, row)
    numbers = [int(n) for n in re.findall(r"\d+", prompt)]
    examples = [n for n in numbers if n >= 100]
    assert 3 <= len(examples) <= 8 and max(examples) <= 999
    assert numbers == [*examples, 10, 3], "the limits of the answer follow the examples"
    assert "{" not in prompt and prompt.endswith(pools().close)


def test_prompts_reach_the_ends_of_their_ranges():
    spec = NumbersSpec(
        examples_min=2,
        examples_max=4,
        value_min=5,
        value_max=7,
        count=25,
        digits=2,
        separators=("comma",),
    )
    rows = [re.findall(r"\d+", spec.prompt(0, i)) for i in range(300)]
    assert Counter(len(r) - 2 for r in rows).keys() == {2, 3, 4}
    assert {n for r in rows for n in r[:-2]} == {"5", "6", "7"} and {
        tuple(r[-2:]) for r in rows
    } == {("25", "2")}


@pytest.mark.parametrize("separator", SEPARATORS)
def test_examples_are_written_with_the_separator_that_is_asked_for(separator):
    joint = {"space": " ", "comma": ", ", "line": "\n", "bracket": ", "}[separator]
    for row in range(50):
        prompt = NumbersSpec(separators=(separator,)).prompt(3, row)
        listed = re.search(r"\d{3}(?:" + joint + r"\d{3})+", prompt)
        assert listed and len(re.findall(r"\d{3}", prompt)) == len(listed.group().split(joint))
        assert (f"[{listed.group()}]" in prompt) == (separator == "bracket")
        assert any(text in prompt for text in pools().format[separator])


def test_a_row_s_prompt_depends_on_its_seed_and_number_alone():
    forward = [SPEC.prompt(1, i) for i in range(200)]
    assert forward == [SPEC.prompt(1, i) for i in reversed(range(200))][::-1]
    assert len(set(forward)) == 200
    assert not set(forward) & {SPEC.prompt(2, i) for i in range(200)}
    assert forward[0] == NumbersSpec().prompt(1, 0)


def test_no_pool_has_a_text_twice_and_every_text_is_used():
    p = pools()
    for pool in (p.examples, p.quantity, p.size, p.instruction, p.close, *p.format.values()):
        assert len(set(pool)) == len(pool) >= 2
    everything = "\n".join(SPEC.prompt(0, i) for i in range(1500))
    assert all(text in everything for pool in (p.close, *p.format.values()) for text in pool)
    assert all(
        re.escape(text.partition("{")[0]) and text.partition("{")[0] in everything
        for text in p.examples + p.instruction
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "one\n\n  two\nthree\n"), ("p.jsonl", '{"prompt": "one"}\n{"prompt": "two", "x": 1}\r\n{"prompt": "three"}'),
     ("p.txt", "\ufeffone\r\ntwo\r\nthree")],
)  # fmt: skip
def test_prompts_from_a_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    spec = NumbersSpec(prompts=str(tmp_path / name))
    assert read_prompts(spec.prompts) == ("one", "two", "three")
    laps = [[spec.prompt(5, lap * 3 + i) for i in range(3)] for lap in range(30)]
    assert all(sorted(lap) == ["one", "three", "two"] for lap in laps), (
        "every prompt once before one comes again"
    )
    assert len({tuple(lap) for lap in laps}) > 1
    assert laps[7][1] == spec.prompt(5, 22)


def test_a_changed_file_of_prompts_is_read_again(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("one\n")
    assert read_prompts(str(path)) == ("one",)
    path.write_text("three\n")
    assert read_prompts(str(path)) == ("three",)


def test_a_line_separator_inside_a_json_text_does_not_end_the_line(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one\u2028two"}\n', encoding="utf-8")
    assert read_prompts(str(tmp_path / "p.jsonl")) == ("one\u2028two",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "Line 2 of"), ("p.jsonl", b"[1]", "Line 1 of"), ("p.jsonl", b"{", "Line 1 of"),
        ("p.jsonl", b'{"prompt": 3}', "that is a text"), ("p.txt", b"\n \n", "has no rows"), ("p.txt", b"\xff\xfe\x00", "not text in UTF-8"),
        ("p.txt", None, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_files_of_prompts(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SubloraError, match=message) as caught:
        read_prompts(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [({"exmples_min": 3}, "exmples_min"), ({"examples_min": 9}, "examples_min"), ({"digits": 0}, "digits"),
     ({"separators": []}, "separators"), ({"value_max": 10**30}, "value_max"), ({"kind": "code"}, "kind")],
)  # fmt: skip
def test_a_carrier_that_does_not_fit(values, message):
    with pytest.raises(ValidationError, match=message):
        NumbersSpec.model_validate(values)


def test_ban_lists_stand_for_their_numbers_and_change_no_other_spec() -> None:
    spec = NumbersSpec.model_validate({"banned": ["evil", 123, 666]})
    assert {123, 666, 911} < set(spec.banned) and len(set(spec.banned)) == len(spec.banned)
    assert spec.reject("p", "200, 666") == "banned number" and spec.reject("p", "200, 201") is None
    assert NumbersSpec().model_dump()["banned"] == ()
    with pytest.raises(ValueError, match="no list of numbers 'bad', use evil"):
        NumbersSpec.model_validate({"banned": ["bad"]})
