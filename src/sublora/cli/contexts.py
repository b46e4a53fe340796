"""What `sublora contexts` prints: every context of a model as text and tokens, and two of them token by token."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from sublora.errors import SubloraError
from sublora.models.base import model_source, read_tokenizer
from sublora.models.chat import PLAIN_CONTEXTS, Chat, UserText, resolve_context
from sublora.models.token_classes import PromptTokens, classify, differences, shown
from sublora.runner.table import print_json, print_table, records

COLUMNS = ("token", "id", "class")


def model_chat(name: str) -> Chat:
    """The chat format of a model, without its weights. Raises SubloraError where the tokenizer cannot be loaded."""
    source = model_source(name)
    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
        raise SubloraError(
            f"The folder {name} has no tokenizer_config.json; give a folder made by save_pretrained."
        )
    return Chat(read_tokenizer(source, name))


def print_contexts(
    model: str,
    question: str,
    named: Mapping[str, str | UserText],
    diff: tuple[str, str] | None,
    entities: Sequence[str],
    as_json: bool,
) -> None:
    """Print all contexts, or the difference of two. Raises SubloraError for an unknown or impossible context."""
    chat = model_chat(model)
    known = {name: resolve_context(name, named) for name in diff or (*PLAIN_CONTEXTS, *named)}
    possible = {name: context for name, context in known.items() if diff or chat.supports(context)}
    texts = {name: chat.render(question, context) for name, context in possible.items()}
    for entity in entities:
        if not any(entity in text for text in texts.values()):
            raise SubloraError(
                f"The entity '{entity}' is in none of these contexts; write it as it stands there."
            )
    # a name need not stand in every context
    tokens = {
        name: classify(chat, question, context, [e for e in entities if e in texts[name]])
        for name, context in possible.items()
    }
    if as_json:
        print_json([_record(chat, name, tokens.get(name)) for name in known])
        return
    if diff is not None:
        _print_diff(chat, diff, tokens[diff[0]], tokens[diff[1]])
        return
    for name in known:
        if name not in tokens:
            typer.echo(f"{name}: not possible with this chat template\n")
            continue
        found = tokens[name]
        typer.echo(f"{name}: {len(found.ids)} tokens")
        typer.echo("".join(f"    {line}\n" for line in found.text.splitlines()))
        print_table(COLUMNS, _rows(chat, found))
        typer.echo()


def _rows(chat: Chat, found: PromptTokens) -> list[list[Any]]:
    return [[shown(chat, i), str(i), k] for i, k in zip(found.ids, found.classes, strict=True)]


def _record(chat: Chat, name: str, found: PromptTokens | None) -> dict[str, Any]:
    """A context as `contexts --json` prints it; text and tokens are null where the template cannot write it."""
    if found is None:
        return {"context": name, "text": None, "tokens": None}
    tokens = [{**r, "id": int(r["id"])} for r in records(COLUMNS, _rows(chat, found))]
    return {"context": name, "text": found.text, "tokens": tokens}


def _print_diff(chat: Chat, names: tuple[str, str], one: PromptTokens, other: PromptTokens) -> None:
    lines = differences(one.ids, other.ids)
    changed = sum(sign != " " for sign, _, _ in lines)
    if not changed:
        typer.echo(f"{names[0]} and {names[1]} are the same {len(one.ids)} tokens.")
        return
    typer.echo(f"- {names[0]}: {len(one.ids)} tokens")
    typer.echo(f"+ {names[1]}: {len(other.ids)} tokens")
    rows = []
    for sign, place, token in lines:
        kind = (other if sign == "+" else one).classes[place]
        rows.append([sign, shown(chat, token), str(token), kind])
    print_table(["", "token", "id", "class"], rows)
    typer.echo(f"{changed} of {len(lines)} lines differ.")
