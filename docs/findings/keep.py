"""Put the tables and the page document of a finished run of the study into docs/findings/data/NAME: python docs/findings/keep.py RUN NAME.

What is not kept is made from them, as the page is, or is large. Give the run by paths from the root of the project, since they are in the
page document.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def keep(run: Path, name: str) -> Path:
    """Raises FileNotFoundError where the run has not finished."""
    to = HERE / "data" / name
    command = json.loads((run / "page.json").read_text("utf-8"))["manifest"]["command"]
    if " /" in command:
        raise SystemExit(f"The run names a folder of this machine: {command}")
    to.mkdir(parents=True, exist_ok=True)
    for table in [run / "verdicts.json", run / "page.json", *run.glob("*.csv")]:
        shutil.copyfile(table, to / table.name)
    return to


if __name__ == "__main__":
    print(keep(Path(sys.argv[1]), sys.argv[2]))
