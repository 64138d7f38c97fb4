"""`python -m tests.fuzz.one TARGET ARGUMENT...`: fuzzes a target with atheris; the arguments are those of libFuzzer."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils
import atheris

ROOT = Path(__file__).resolve().parents[2]
ansible.module_utils.__path__.append(str(ROOT / "module_utils"))

# Our own code, and what of the standard library reads the input for it.
INSTRUMENTED = [
    "ansible.module_utils.imagenet_ops",
    "recordio_reader",
    "zipfile",
    "netrc",
    "http.client",
    "email",
    "csv",
]

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz import targets


def main() -> None:
    """Run until libFuzzer ends the process."""
    name, *arguments = sys.argv[1:]
    run = targets.TARGETS[name].run
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
