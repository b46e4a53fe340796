"""docs/scale.md: its numbers are what the commands print, and the files to copy are sound."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from command import sublora
from sublora.cli.app import app

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "scale.md").read_text()
PRINTED = re.findall(r"^    (sublora plan [^\n]*)\n\n```text\n(.*?)```", PAGE, re.M | re.S)


def parse(line: str) -> None:
    """Raises typer's usage error where the command line would not be understood. Nothing is run."""
    group = typer.main.get_command(app)
    name, *rest = shlex.split(line)[1:]
    command = group.commands[name]
    command.make_context(name, list(rest))


def commands_in(text: str) -> list[str]:
    return re.findall(r"^\s*(sublora .*)$", text, re.M)


@pytest.mark.parametrize(("line", "printed"), PRINTED, ids=[line for line, _ in PRINTED])
def test_the_page_shows_what_the_command_prints(line: str, printed: str) -> None:
    answer = sublora(*shlex.split(line)[1:])
    assert answer.code == 0
    assert [x.rstrip() for x in answer.out.splitlines()] == printed.splitlines()


def test_there_are_two_such_commands_about_a_7b_model() -> None:
    assert len(PRINTED) == 2 and all("7.62B" in printed for _, printed in PRINTED)


def test_the_slurm_script_is_sound() -> None:
    file = DOCS / "scale" / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True).returncode == 0
    (line,) = commands_in(file.read_text())
    parse(line.replace('"$address"', "10.0.0.1:6379"))
    assert len(re.findall(r"^#SBATCH --[a-z-]+(=\S+)?", file.read_text(), re.M)) >= 8


def test_the_cloud_file_is_sound(tmp_path: Path) -> None:
    task = yaml.safe_load((DOCS / "scale" / "sky.yaml").read_text())
    assert {"name", "num_nodes", "resources", "envs", "setup", "run"} == set(task) and task[
        "num_nodes"
    ] >= 2
    script = tmp_path / "run.sh"
    script.write_text(task["run"])
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    (line,) = commands_in(task["run"])
    parse(line.replace('"$MODEL"', task["envs"]["MODEL"]).replace('"$head:6379"', "10.0.0.1:6379"))


def test_the_other_commands_of_the_page_are_understood() -> None:
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)
        for line in commands_in(block)
    ]
    assert lines
    for line in lines:
        parse(line)
    with pytest.raises(Exception, match="such"):
        parse("sublora run rank-lr --executor nowhere --no-such-option")
