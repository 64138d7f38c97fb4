"""The pure parts of a host: the user's number, the names that it knows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lab.hosts import free_number, hosts_file
from lab.network import Address, interface_name


@given(st.sets(st.integers(0, 1100)))
def test_the_user_gets_the_first_number_of_a_person_that_is_free(taken: set[int]) -> None:
    number = free_number(str(one) for one in taken)
    assert number >= 1000
    assert number not in taken
    assert all(smaller in taken for smaller in range(1000, number))


def test_a_host_knows_itself_and_the_servers_of_the_lab() -> None:
    text = hosts_file("ip-172-31-0-4", Address("172.31.0.4", "198.18.1.1", "02:00:00:00:00:01"))
    names = {name: line.split()[0] for line in text.splitlines() for name in line.split()[1:]}
    assert names == {
        "localhost": "127.0.0.1",
        "ip-172-31-0-4": "172.31.0.4",
        "aws.lab": "172.31.255.254",
        "origin.lab": "172.31.255.254",
    }


def test_an_interface_has_a_name_that_linux_takes() -> None:
    assert interface_name("i-0123456789abcdef0") == "lab56789abcdef0"
    assert len(interface_name("i-0123456789abcdef0")) == 15
