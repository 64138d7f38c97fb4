"""ssh itself reads the file: every name of a host leads to its address, with its own key and no question asked."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lab.config import Paths
from lab.ssh_config import Entry, render_known_hosts, render_ssh_config

ENTRY = Entry("gpu-1", "i-0abc", "172.31.0.4", "198.18.1.1", "ssh-ed25519 AAAA")


@pytest.mark.skipif(shutil.which("ssh") is None, reason="needs the ssh program")
@pytest.mark.parametrize("name", ["gpu-1", "i-0abc", "198.18.1.1", "172.31.0.4"])
def test_ssh_finds_a_host_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    paths = Paths(tmp_path / "a checkout")
    config = tmp_path / "ssh_config"
    config.write_text(render_ssh_config([ENTRY], paths))
    shown = subprocess.run(["ssh", "-G", "-F", config, name], capture_output=True, text=True, check=True).stdout
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    assert settings["hostname"] == "198.18.1.1"
    assert settings["user"] == "ec2-user"
    assert settings["identityfile"] == str(paths.private_key)
    assert settings["userknownhostsfile"] == str(paths.known_hosts)
    assert settings["stricthostkeychecking"] == "true"


def test_a_name_that_two_hosts_have_leads_to_neither() -> None:
    text = render_ssh_config([ENTRY, replace(ENTRY, instance_id="i-0def", private_address="172.31.0.5")], Paths())
    assert "gpu-1" not in [word for line in text.splitlines() if line.startswith("Host ") for word in line.split()]
    assert "i-0def" in text


@pytest.mark.parametrize("name", ["", "two words", "*", "gpu-?", "!gpu"])
def test_a_name_that_ssh_would_read_as_a_pattern_is_left_out(name: str) -> None:
    text = render_ssh_config([replace(ENTRY, name=name)], Paths())
    assert "Host i-0abc 198.18.1.1 172.31.0.4\n" in text


def test_a_host_without_public_address_is_reached_at_its_private_one() -> None:
    private = replace(ENTRY, public_address=None)
    assert "HostName 172.31.0.4\n" in render_ssh_config([private], Paths())
    assert render_known_hosts([private]) == "172.31.0.4 ssh-ed25519 AAAA\n"


def test_known_hosts_has_the_key_of_every_host_at_the_address_that_ssh_uses() -> None:
    other = replace(ENTRY, public_address="198.18.1.2", host_key="ssh-ed25519 BBBB")
    assert render_known_hosts([ENTRY, other]) == "198.18.1.1 ssh-ed25519 AAAA\n198.18.1.2 ssh-ed25519 BBBB\n"
