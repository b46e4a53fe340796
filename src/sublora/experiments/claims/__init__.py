"""The claims that the recipes test, one file a recipe, and other people's results judged by them.

A claim is a hypothesis: it names who stated it, and its test with all thresholds, fixed before a run. `author_notice: true`: the paper
carries its authors' notice that some of its main claims are incorrect. A claim that several recipes test stands once, with `recipes`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from sublora.analysis.claims import Claim, read_claims
from sublora.analysis.published import cautions, verdicts_of_rows
from sublora.analysis.published_rows import parse
from sublora.errors import SubloraError, reason

MAX_BYTES = 10_000_000


def load_claims(path: Path | None = None) -> tuple[Claim, ...]:
    """The claims of a file, or the shipped ones. Raises SubloraError naming the claim that is wrong."""
    return _read([Path(path)]) if path else _shipped()


@cache
def _shipped() -> tuple[Claim, ...]:
    return _read(sorted(Path(__file__).parent.glob("*.yaml")))


def _read(files: Sequence[Path]) -> tuple[Claim, ...]:
    claims: dict[str, Claim] = {}
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SubloraError(
                f"claims file {file} cannot be read ({reason(error)}); fix it."
            ) from None
        for claim in read_claims(text, str(file), file.stem):
            if claim.id in claims:
                raise SubloraError(
                    f"claim {claim.id!r} in {file} is there twice; give every claim an id of its own."
                )
            claims[claim.id] = claim
    return tuple(claims.values())


def verdict_file(path: Path | str, recipes: Sequence[str] = ()) -> tuple[list[dict], list[str]]:
    """The verdicts on a CSV file of results of the claims that name one of the recipes, and what the file cannot claim.

    Raises SubloraError with one sentence for every fault of the file.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SubloraError(
                f"{path} is larger than {MAX_BYTES // 10**6} MB; give a table of results."
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        why = reason(error)
        raise SubloraError(f"{path} cannot be read ({why}); give a CSV file of results.") from None
    rows = parse(text, str(path))
    return verdicts_of_rows(rows, load_claims(), recipes), cautions(rows, recipes)
