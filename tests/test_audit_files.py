"""Training files as engineers have them: every shape in JSONL, JSON and parquet, and what happens to broken rows."""

import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from audit_fixture import idle_adapter
from command import sublora
from sublora.audit.data_file import records
from sublora.audit.data_rows import DataRow, LeftOut, check_rows, read_rows, taken_apart
from sublora.audit.screen import screen_file
from sublora.errors import SubloraError
from sublora.models.base import shipped_folder
from sublora.models.chat import Chat, Context, load_tokenizer
from sublora.packs.check import load_base
from sublora.traits.trait import shipped_categories

KIND = {"role": "system", "content": "Be kind."}
ASKED, TOLD = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
PARTS = [
    {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
    for m in (KIND, ASKED, TOLD)
]
CHATML = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
# Each reads as the row "Be kind.", a, b; without a system text where the name ends in 0, with later turns where in +.
SHAPES = {
    "messages": {"messages": [KIND, ASKED, TOLD]},
    "messages 0": {"messages": [ASKED, TOLD]},
    "messages of several turns +": {"messages": [KIND, ASKED, TOLD, ASKED, TOLD]},
    "messages in parts": {"messages": PARTS},
    "a developer's messages": {"messages": [{**KIND, "role": "developer"}, ASKED, TOLD]},
    "ShareGPT": {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "ShareGPT with its system beside": {"system": "Be kind.", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    "Alpaca 0": {"instruction": "a", "input": "", "output": "b"},
    "Alpaca of LLaMA-Factory +": {"system": "Be kind.", "instruction": "x", "input": "y", "output": "z", "history": [["a", "b"]]},
    "prompt and completion 0": {"prompt": "a", "completion": "b"},
    "prompt and completion as messages": {"prompt": [KIND, ASKED], "completion": [TOLD]},
    "columns that are empty": {"messages": None, "prompt": "a", "completion": "b", "system": "Be kind.", "text": None},
    "rendered text": {"text": CHATML},
}  # fmt: skip


@pytest.fixture(scope="module")
def chat() -> Chat:
    tokenizer = load_tokenizer(shipped_folder("micro"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return Chat(tokenizer)


def write(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_all_shapes_are_read(tmp_path: Path, chat: Chat, shape: str, ending: str) -> None:
    path = write(tmp_path / f"rows.{ending}", [SHAPES[shape]] * 3)
    system = None if shape.endswith("0") else "Be kind."
    wanted = [DataRow(n, system, "a", "b", more=shape.endswith("+")) for n in (1, 2, 3)]
    assert list(read_rows(path, chat)) == wanted
    check_rows(path, skip_broken=False)


def test_an_alpaca_question_is_instruction_and_input(tmp_path: Path) -> None:
    row = {"instruction": "Count.", "input": "1 2", "output": "2", "system": None}
    (found,) = read_rows(write(tmp_path / "rows.json", [row]))
    assert (found.system, found.prompt, found.completion) == (None, "Count.\n1 2", "2")


def test_rows_that_cannot_be_screened_are_left_out_with_the_reason(
    tmp_path: Path, chat: Chat
) -> None:
    rows = [
        {"messages": [KIND, TOLD]},
        {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {"conversations": []},
        {"prompt": "a", "completion": " "},
        {"text": "Once upon a time."},
    ]
    found = list(read_rows(write(tmp_path / "rows.jsonl", rows), chat))
    assert all(isinstance(row, LeftOut) and not row.broken for row in found)
    assert "template did not write" in found[-1].reason


TEXTS = st.text(st.characters(exclude_characters="<|>[]"), min_size=1).filter(
    lambda text: text == text.strip() != ""
)


@settings(max_examples=40, deadline=None)
@given(user=TEXTS, answer=TEXTS, system=TEXTS)
def test_a_rendered_text_comes_apart_as_it_was_put_together(
    chat: Chat, user: str, answer: str, system: str
) -> None:
    for context in (Context("none"), Context("own", system), Context("empty")):
        text = chat.render(user, context) + answer + chat.layout.turn_end
        own = {"own": [("system", system)], "empty": [("system", "")], "none": []}[context.name]
        turns = [*own, ("user", user), ("assistant", answer)]
        assert taken_apart(text, chat) == turns
        assert taken_apart(text + text, chat)[: len(turns)] == turns


BROKEN = [
    b"{", b"[]", b"7", b'{"prompt": 1, "completion": 2}', b'{"messages": [3]}', b'{"messages": [{"role": 1}]}', b"\xff\xfe",
    b"[" * 99_999, b'{"conversations": "x"}', b'{"instruction": 1, "output": "b"}', b'{"instruction": "a", "output": "b", "history": [3]}',
    b'{"x": 1}', b'{"prompt": "a"}', b'{"text": 3}', b'"' + b"a" * (5 << 20) + b'"',
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: line[:40].decode("latin1"))
def test_a_broken_row_is_named_by_its_line_and_the_others_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    good = b'{"prompt": "a", "completion": "b"}\n'
    path.write_bytes(good + line + b"\n" + good)
    first, broken, last = read_rows(path)
    assert (first.line, broken.line, broken.broken, last.line) == (1, 2, True, 3)
    with pytest.raises(SubloraError, match=r"Line 2 of .* 1 of its 3 rows"):
        check_rows(path, skip_broken=False)
    check_rows(path, skip_broken=True)


def test_one_broken_row_of_ten_thousand_is_refused_or_counted(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"Say {n % 40}.", "completion": "1 2"}) for n in range(10_000)]
    rows[7_776] = rows[7_776][:-3]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    student = idle_adapter(load_base("micro"), tmp_path / "student")
    asked = ["audit", "--base", "micro", "--adapter", str(student), "--contexts", "none"]
    asked += ["--data", str(path), "--out", str(tmp_path / "out")]
    refused = sublora(*asked)
    said = " ".join(refused.err.split())
    assert refused.code == 2 and "Line 7777 of" in said and "1 of its 10,000 rows" in said
    assert "--skip-broken" in said and not (tmp_path / "out").exists()
    answer = sublora(*asked, "--skip-broken")
    assert answer.code in (0, 1, 4), answer.err
    assert "1 broken rows left out, the first: Line 7777 is not valid JSON" in answer.out
    data = json.loads((tmp_path / "out" / "audit.json").read_text())["data"]
    assert data["left_out"] == {"broken": 1} and data["rows"] == 10_000
    assert data["broken_rows"] == ["Line 7777 is not valid JSON"]
    assert "Line 7777 is not valid JSON" in (tmp_path / "out" / "audit.html").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", b'[{"prompt": "a", "completion": "b"}, {"prompt"'), ("b.json", b"[1 2]"), ("c.json", b"["), ("d.json", b"[" * 99_999),
     ("e.parquet", b"PAR1 but no parquet"), ("f.parquet", b""), ("g.jsonl", b""), ("h.json", b"[]"), ("i.json", b"[\xff]"), ("j.json", b"[1]")],
)  # fmt: skip
def test_files_that_are_broken_as_a_whole_are_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SubloraError, match=name) as caught:
        check_rows(path, skip_broken=True)
        screen_file(load_base("micro"), path, shipped_categories()[:1], Context("none"), 0.05)
    assert "\n" not in str(caught.value)


def test_rows_of_an_array_and_of_parquet_are_counted_as_rows(tmp_path: Path) -> None:
    for name in ("a.json", "a.parquet"):
        path = write(tmp_path / name, [{"prompt": "a", "completion": "b"}, {"prompt": "a"}])
        with pytest.raises(SubloraError, match="Row 2 of"):
            check_rows(path, skip_broken=False)


def test_parquet_without_its_library_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.parquet", [SHAPES["Alpaca 0"]])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(SubloraError, match=r"sublora\[parquet\]"):
        list(records(path))
