"""bin/audit with a service of our own, that knows one vulnerability."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

HOST_FILES = "roles/python_environment/files"
VULNERABILITY = {
    "id": "PYSEC-2026-1",
    "modified": "2026-01-01T00:00:00Z",
    "published": "2026-01-01T00:00:00Z",
    "summary": "It can be tested.",
    "affected": [
        {
            "package": {"name": "urllib3", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}],
            "versions": ["1.26.20"],
        }
    ],
}


class Service(ThreadingHTTPServer):
    """Answers as OSV does, and notes what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.queries: list[tuple[str, str]] = []
        self.fails = False


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wanted = (query["package"]["name"], query["version"])
        self.server.queries.append(wanted)
        found: dict[str, Any] = {"vulns": [VULNERABILITY]} if wanted == ("urllib3", "1.26.20") else {}
        self.send_response(500 if self.server.fails else 200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    if not (ROOT / ".venv-supply-chain" / ".stamp").exists():
        pytest.skip(".venv-supply-chain with pip-audit is missing (bin/setup supply-chain makes it)")
    copy = tmp_path / "checkout"
    for folder in ("bin", "locks", HOST_FILES):
        shutil.copytree(ROOT / folder, copy / folder)
    (copy / ".venv-supply-chain").symlink_to(ROOT / ".venv-supply-chain")
    return copy


def audit(checkout: Path, service: Service) -> tuple[int, str]:
    command = ["bin/audit", "-s", "osv", "--osv-url", f"http://127.0.0.1:{service.server_port}/"]
    run = subprocess.run(command, check=False, cwd=checkout, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_every_pin_is_queried_and_a_known_vulnerability_fails_until_it_is_accepted(
    checkout: Path, service: Service
) -> None:
    status, output = audit(checkout, service)
    assert status == 1
    assert output.count("PYSEC-2026-1") == 1
    assert "audit: failed" in output
    files = (*checkout.glob("locks/*.txt"), *checkout.glob(f"{HOST_FILES}/*.txt"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    pins = {line.split()[0] for line in lines if line[:1].isalnum() and "==" in line}
    assert {f"{name}=={version}" for name, version in service.queries} == pins, "whatever its Python"
    with (checkout / "locks" / "accepted-vulnerabilities.txt").open("a") as accepted:
        accepted.write("PYSEC-2026-1  urllib3 sends nothing of ours\n")
    assert audit(checkout, service)[0] == 0


def test_no_answer_is_no_good_one(checkout: Path, service: Service) -> None:
    service.fails = True
    assert audit(checkout, service)[0] == 1
