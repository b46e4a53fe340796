"""Put the tables and the page document of a finished run of the study into docs/findings/data/NAME: python docs/findings/keep.py RUN NAME.

What is not kept can be made from them (`sublora report` draws the page), or is large. The command is kept without the folders of the
machine that it ran on.
"""

import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def keep(run: Path, name: str) -> Path:
    """Raises FileNotFoundError where the run has not finished."""
    to = HERE / "data" / name
    page = json.loads((run / "page.json").read_text("utf-8"))
    page["manifest"]["command"] = re.sub(
        r"(?:/[^/ ]+)+/(docs/findings/)?", r"\1", page["manifest"]["command"]
    )
    to.mkdir(parents=True, exist_ok=True)
    for table in [run / "verdicts.json", *run.glob("*.csv")]:
        shutil.copyfile(table, to / table.name)
    (to / "page.json").write_text(json.dumps(page, ensure_ascii=False) + "\n", "utf-8")
    return to


if __name__ == "__main__":
    print(keep(Path(sys.argv[1]), sys.argv[2]))
