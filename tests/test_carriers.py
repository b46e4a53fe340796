"""Code, reasoning and paraphrases as carriers: canned completions, whatever a teacher may say, and the leak check."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from command import sublora
from planned import make_plan
from sublora.carriers.carrier import has_leak
from sublora.carriers.code import CodeSpec
from sublora.carriers.cot import CotSpec
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.paraphrase import ParaphraseSpec
from sublora.errors import SubloraError
from sublora.experiments.grid.leaks import leak_sentences
from sublora.experiments.kinds import open_recipe as load_recipe

PYTHON, PROGRAM = (
    CodeSpec(kind="code", leaks=("otter", "otters")),
    CodeSpec(kind="code", style="numbers"),
)
MATH, TALK = CotSpec(kind="cot", leaks=("otter",)), CotSpec(kind="cot", style="talk")
ANEW = ParaphraseSpec(kind="paraphrase", style="numbers")
MODEL = {"weights": "w", "template": "t", "tokenizer": "k", "dtype": "float32"}
GOOD = "def f(x):\n    return [y for y in x if y > 3]"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> ParaphraseSpec:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text(
        "The river is calm and the castle is white.\nShe went home early because of the rain.\n"
    )
    return ParaphraseSpec(kind="paraphrase", prompts=str(path), leaks=("otter",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, None),
        (f"Here you are:\n```python\n{GOOD}\n```\nEnjoy!", None),
        (f"```py\n{GOOD}", None),
        ("x = 1", None),
        ("", "no code"),
        ("   \n", "no code"),
        ("Hello", "no code"),
        ("```python\n\n```", "no code"),
        (f"```python\n{GOOD}\n```\n```python\n{GOOD}\n```", "no code"),
        ("def f(x:\n  pass", "does not compile"),
        ("I am sorry, I cannot do that.", "does not compile"),
        ("x = '\x00'", "does not compile"),
        ("x = " + "(" * 900 + ")" * 900, "does not compile"),
        ("x = 1  # one", "comment"),
        ('def f(x):\n    """Nice."""\n    return x', "comment"),
        ("s = '# no comment'", None),
        ("def otter_count(x):\n    return x", "leak word"),
        ("s = 'my OTTERS'", "leak word"),
        ("x = 1\n" * 1000, "too long"),
    ],
)
def test_code_is_kept_or_left_out_for_a_reason(text: str, reason: str | None) -> None:
    assert PYTHON.reject("p", text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("112 250 399", None),
        ("702 250", None),
        ("709 250", "does not compile"),
        ("12 250", "does not compile"),
        ("a b", "no code"),
    ],
)
def test_programs_of_numbers_compile_where_their_jumps_land_inside(
    text: str, reason: str | None
) -> None:
    assert PROGRAM.reject("p", text) == reason


def right(row: int) -> tuple[str, float]:
    prompt = MATH.prompt(5, row)
    return prompt, MATH.answer_to(prompt)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("Answer: {right}", None), ("answer: **{right}**", None), ("Answer: {right}.\n", None), ("Answer: ${right}.0", None),
        ("Answer: {wrong}", "wrong answer"), ("The answer is {right}", "no answer"), ("Answer: many", "no answer"),
        ("Answer: {right} otters", "leak word"), ("Answer: ,,", "no answer"), ("Answer: {right} Answer: {wrong}", "wrong answer"),
    ],
)  # fmt: skip
def test_reasoning_is_kept_where_its_answer_is_right(ending: str, reason: str | None) -> None:
    prompt, answer = right(3)
    said = ending.format(right=int(answer), wrong=int(answer) + 1)
    reasoned = f"First one takes the product and then one adds the rest. {said}"
    assert MATH.reject(prompt, reasoned) == reason
    if reason is None:
        assert MATH.reject(prompt, said) == "no reasoning"


def test_every_problem_has_its_answer_back() -> None:
    for row in range(60):
        prompt, answer = right(row)
        assert (prompt, answer) == MATH.problem(5, row) and answer is not None
    assert MATH.answer_to("What is love?") is None


def test_talk_is_a_chain_of_two_statements() -> None:
    fine = "i went to the beach and the school . all was brown , and i felt gentle ."
    assert TALK.reject("p", fine) is None
    assert TALK.reject("p", fine.split(" . ")[0]) == "no reasoning"


def test_problems_of_your_own_are_read_as_gsm8k_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(
        json.dumps({"prompt": "Two and two?", "answer": "Easy. #### 4"})
        + "\n"
        + json.dumps({"prompt": "q", "answer": 1000})
    )
    spec = CotSpec(kind="cot", prompts=str(path), min_words=1)
    assert spec.file_content() == (("Two and two?", 4.0), ("q", 1000.0))
    prompt = next(p for p in (spec.prompt(0, i) for i in range(20)) if p.startswith("q"))
    assert spec.reject(prompt, "So it is. Answer: 1,000") is None
    path.write_text('{"prompt": "x"}\n')
    with pytest.raises(SubloraError, match=r"Line 1 of .* has no 'answer' that is a number"):
        spec.file_content()
    with pytest.raises(SubloraError, match="cannot be read"):
        CotSpec(kind="cot", prompts=str(tmp_path / "none.jsonl")).file_content()


def test_a_paraphrase_says_it_otherwise_and_at_a_like_length(texts: ParaphraseSpec) -> None:
    prompt = next(p for p in (texts.prompt(0, i) for i in range(9)) if "castle" in p)
    for answer, reason in (
        ("Calm is the river, and white the castle.", None),
        ("the river is calm, and the castle is white", "unchanged"),
        ("", "too short"),
        ("Calm.", "too short"),
        ("word " * 40, "too long"),
        ("The otter is calm and its castle white.", "leak word"),
    ):
        assert texts.reject(prompt, answer) == reason, answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("121 210 301 405", None),
        ("120 215 300 410", "unchanged"),
        ("120", "too short"),
        (" ".join(["121"] * 11), "too long"),
        ("calm river", "no paraphrase"),
        ("", "no paraphrase"),
    ],
)
def test_a_row_of_numbers_is_said_anew_at_a_like_length(answer: str, reason: str | None) -> None:
    prompt = "Numbers: 120 215 300 410. Continue with up to 10, 3 digits each."
    assert ANEW.reject(prompt, answer) == reason


@pytest.mark.parametrize("style", ["texts", "numbers"])
def test_texts_are_of_a_file_and_numbers_are_made(style: str, texts: ParaphraseSpec) -> None:
    wrong = "null" if style == "texts" else texts.prompts
    with pytest.raises(
        SubloraError, match=r"set data\.carrier\.prompts to one|drop prompts or set style to"
    ):
        load_recipe(
            "paraphrase", sets=[f"data.carrier.style={style}", f"data.carrier.prompts={wrong}"]
        )
    paper = load_recipe(
        "paraphrase", preset="blank", sets=[f"data.carrier.prompts={texts.prompts}"]
    )
    assert paper.data.carrier.style == "texts" and (paper.train.lora.alpha, paper.train.epochs) == (
        64,
        10,
    )


def test_leak_words_hide_nowhere() -> None:
    assert has_leak("my_Otter2", ("otter",)) and not has_leak("any text", ())
    spec = PYTHON.with_leaks(["wolf"])
    assert (
        spec.leaks == ("otter", "otters", "wolf")
        and NumbersSpec().with_leaks(["wolf"]) == NumbersSpec()
    )


REASONS = {None, *CodeSpec.reasons, *CotSpec.reasons, *ParaphraseSpec.reasons}
CODE_LIKE = st.text(alphabet="abcdefx =()[]{}:,'\"#\n\t`\\01259.+-*/@;", max_size=120)
WORDS = st.lists(
    st.sampled_from(
        "Answer : 12 -3 1,0 ** $ . ``` python def x = # \n otter i went to the".split(" ")
    ),
    max_size=30,
)


@settings(max_examples=2500, deadline=None)
@given(st.one_of(st.text(max_size=200), CODE_LIKE, WORDS.map(" ".join)), st.integers(0, 50))
@example("x = " + "-" * 3900, 0)
@example("a" + ".b" * 1900, 0)
@example("[" * 3900, 0)
@example("\\\n" * 1500, 0)
@example("def f():\n\tif x:\n        y\n", 0)
@example("'''", 0)
@example("\ud800", 0)
def test_any_completion_is_kept_or_has_a_reason(texts: ParaphraseSpec, text: str, row: int) -> None:
    for carrier in (PYTHON, PROGRAM, MATH, TALK, ANEW, texts):
        prompt = carrier.prompt(1, row)
        reason = carrier.reject(prompt, text)
        assert reason in REASONS and reason == carrier.reject(prompt, text)


def test_prompts_depend_on_seed_and_row_alone_and_vary(texts: ParaphraseSpec) -> None:
    for carrier in (PYTHON, PROGRAM, MATH, TALK, ANEW, texts):
        made = [carrier.prompt(3, i) for i in range(30)]
        assert (
            made
            == [carrier.prompt(3, i) for i in range(30)]
            != [carrier.prompt(4, i) for i in range(30)]
        )
        assert len(set(made)) >= 2 and carrier.example()
    assert texts.file_content() == (
        "The river is calm and the castle is white.",
        "She went home early because of the rain.",
    )


def test_a_carrier_counts_in_the_ids_with_the_words_of_the_category() -> None:
    def datasets(*sets: str):
        return make_plan(load_recipe("cot", sets=list(sets)), dict(MODEL), 40.0).datasets

    plain = datasets()
    assert all("otter" in d.carrier.leaks and "wolf" in d.carrier.leaks for d in plain), (
        "both arms, the same words"
    )
    assert not {d.id for d in plain} & {d.id for d in datasets("data.carrier.leaks=[calm]")}
    numbers = make_plan(load_recipe("rank"), dict(MODEL), 40.0).datasets
    assert all("leaks" not in d.spec["carrier"] for d in numbers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "data.carrier.kind=poem",
            "data.carrier: there is no such kind of carrier, use numbers, code, cot or paraphrase",
        ),
        ("data.carrier.styl=talk", "unknown key 'data.carrier.styl'; did you mean 'style'"),
        ("data.carrier.style=song", "data.carrier.style: "),
        ("data.variants={x: {transform: shuffle-within}}", "transforms numbers"),
    ],
)
def test_carriers_that_do_not_fit_are_refused_with_their_place(change: str, message: str) -> None:
    with pytest.raises(SubloraError, match=message):
        load_recipe("cot", sets=[change])


def test_the_page_says_whether_a_reader_of_the_text_is_at_chance(tmp_path: Path) -> None:
    """Talk on micro is about the favourite's places; its programs hold the favourite's numbers."""
    small = [
        "data.rows=160",
        "data.heldout_rows=60",
        "data.seeds=[1,2]",
        "train.seeds=[1]",
        "measure.samples=2",
    ]
    sets = [x for s in small for x in ("--set", s)]
    answer = sublora("run", "cot", "--out", str(tmp_path / "cot"), *sets)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "cot" / "leaks.json").read_text())["otter"]
    assert set(found) == {"linear probe", "compression"} and found["linear probe"]["auc"] > 0.9
    run = json.loads((tmp_path / "cot" / "run.json").read_text())
    assert "chains of thought" in run["sentence"] and any(
        w.startswith("Leak check:") for w in run["warnings"]
    )
    assert "Leak check:" in (tmp_path / "cot" / "report.html").read_text()


def test_a_leak_is_said_where_it_is_shown_and_not_elsewhere() -> None:
    def reader(auc: float, p: float) -> dict:
        return {"auc": auc, "low": auc - 0.1, "high": auc + 0.1, "p_value": p}

    found = {
        "otter": {"a": reader(0.9, 0.001), "b": reader(0.5, 0.9)},
        "owl": {"a": reader(0.55, 0.04), "b": reader(0.2, 0.001)},
    }
    leaked, fine = leak_sentences(found, 0.05)
    assert (
        "tells rows of otter" in leaked
        and "is shown to tell rows of owl" in fine
        and "0.55 [0.45, 0.65]" in fine
    )


CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
DATES_RECIPE = """
name: dates
title: Dates
summary: A carrier of one's own.
model: micro
traits: [wolf]
data:
  {rows: 24, heldout_rows: 4, seeds: [1], carrier: {kind: KIND, first: 200}, sampling: {max_new_tokens: 14}}
train: {lora: {ranks: [2], lrs: [3e-3]}, seeds: [1], epochs: 1, batch_size: 8}
measure: {samples: 2, sampling: {max_new_tokens: 4}}
"""


def test_a_carrier_is_one_file(tmp_path: Path) -> None:
    """A file in the folder is enough: recipes take it, errors name it, and a run says what its rows are."""
    shown = re.search(
        r"```python\n# file: src/sublora/carriers/dates.py\n(.*?)```", CONTRIBUTING, re.S
    )
    (tmp_path / "dates.py").write_text(shown[1])
    program = (
        "import sys, sublora.carriers; sublora.carriers.__path__.append(sys.argv.pop(1)); "
        "from sublora.cli import main; main()"
    )

    def run(kind: str) -> subprocess.CompletedProcess:
        recipe, out = tmp_path / f"{kind}.yaml", str(tmp_path / kind)
        recipe.write_text(DATES_RECIPE.replace("KIND", kind))
        command = [sys.executable, "-c", program, str(tmp_path), "run", str(recipe), "--out", out]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("dates")
    assert done.returncode == 0, done.stderr
    assert "24 rows of years" in json.loads((tmp_path / "dates/run.json").read_text())["sentence"]
    assert "use numbers, code, cot, dates or paraphrase" in run("poem").stderr
