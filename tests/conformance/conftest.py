"""MXNet 1.9.1 as the judge, in the environment that `make conformance` makes for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = ROOT / ".venv-conformance"


class Mxnet:
    """MXNet's own im2rec.py, writers and readers."""

    def __init__(self, peer: subprocess.Popen[str], log: Path) -> None:
        self._peer = peer
        self._log = log

    def ask(self, name: str, *arguments: Any) -> Any:
        """Call a function of peer.py and return its answer."""
        assert self._peer.stdin
        assert self._peer.stdout
        self._peer.stdin.write(json.dumps([name, arguments]) + "\n")
        self._peer.stdin.flush()
        answer = self._peer.stdout.readline()
        assert answer, self._log.read_text()[-2000:]
        return json.loads(answer)

    def im2rec(self, prefix: Path, tree: Path, *options: str) -> None:
        """Run im2rec.py with ``options``; ``prefix`` is the path of its files without their suffixes."""
        (tool,) = ENVIRONMENT.glob("lib/python3.*/site-packages/mxnet/tools/im2rec.py")
        command = [str(ENVIRONMENT / "bin" / "python"), str(tool), *options, str(prefix), str(tree)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def mxnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mxnet]:
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{ENVIRONMENT.name} is missing (`make conformance` makes it where Python 3.9 to 3.11 is there)")
    log = tmp_path_factory.mktemp("mxnet") / "log"
    command = [str(python), str(Path(__file__).with_name("peer.py"))]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="ascii"
        ) as peer,
    ):
        yield Mxnet(peer, log)
        assert peer.stdin
        peer.stdin.close()
        assert peer.wait(timeout=60) == 0, log.read_text()[-2000:]


@pytest.fixture(scope="session")
def sample() -> Path:
    folder = ROOT.parent / "shared" / "imagenet-sample"
    if not folder.is_dir():
        pytest.skip(
            f"{folder.parent.name}/{folder.name} beside the checkout is missing: the sample of real photographs"
        )
    return folder
