"""The command line: root by sudo or a clear word, and nothing done where the lab cannot be."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from lab import __main__ as program
from lab.machine import LabError


def test_without_root_and_without_sudo_one_line_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LabError, match=r"^The lab needs root .* or install sudo$"):
        program.become_root(["up"])


def test_without_root_the_same_command_goes_on_under_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "execvp", lambda _, arguments: started.append(arguments))
    program.become_root(["up", "--hosts", "2"])
    assert started == [["sudo", sys.executable, "-B", "-m", "lab", "up", "--hosts", "2"]]


def test_root_needs_no_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    program.become_root(["up"])


def test_elsewhere_than_on_linux_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(LabError, match=r"^The lab needs Linux"):
        program.main(["up"])


def test_archives_can_be_named_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGENET_ARCHIVES", "/archives")
    assert str(program.parser().parse_args(["up"]).archives) == "/archives"
    assert str(program.parser().parse_args(["up", "--archives", "/others"]).archives) == "/others"
