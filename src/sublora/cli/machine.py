"""What the command line asks of the machine that it runs on."""

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from sublora.runner.table import print_table

PACKAGES = "sublora torch transformers peft tokenizers safetensors numpy scipy scikit-learn ray trl"


def cores() -> int:
    """Physical cores that this process may use; hyper-threads only get in each other's way."""
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        folders = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology")
        names = ("physical_package_id", "core_id")
        pairs = {tuple((folder / name).read_text() for name in names) for folder in folders}
    except OSError:
        return usable
    return max(1, min(usable, len(pairs) or usable))


def command_line() -> str:
    return "sublora " + " ".join(map(shlex.quote, sys.argv[1:]))


def print_env() -> None:
    """Versions, threads, devices and paths."""
    import torch

    from sublora.runner.tested import newer
    from sublora.store import Store

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = [
        ["python", platform.python_version()],
        ["system", platform.platform()],
        *([package, version_of(package)] for package in PACKAGES.split()),
        ["threads", str(torch.get_num_threads())],
        ["cores", str(os.cpu_count())],
        ["devices", ", ".join(gpus) or "cpu"],
        ["store", str(Store().root)],
    ]
    print_table(["what", "value"], rows)
    if said := newer():
        typer.echo(said)
