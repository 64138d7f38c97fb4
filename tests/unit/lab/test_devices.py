"""What a host's tools read of an attached volume: udev's record and the stable names, as on a Nitro instance."""

from __future__ import annotations

from lab.devices import link_name, serial, udev_record

VOLUME = "vol-0123456789abcdef0"


def test_serial_and_link_are_those_of_a_nitro_instance() -> None:
    assert serial(VOLUME) == "vol0123456789abcdef0"
    assert link_name(VOLUME) == "nvme-Amazon_Elastic_Block_Store_vol0123456789abcdef0"


def test_the_record_of_a_blank_volume_names_the_volume_and_no_filesystem() -> None:
    lines = udev_record(VOLUME, {}).splitlines()
    assert "E:ID_SERIAL_SHORT=vol0123456789abcdef0" in lines
    assert "E:ID_MODEL=Amazon Elastic Block Store" in lines
    assert f"S:disk/by-id/{link_name(VOLUME)}" in lines
    assert not [line for line in lines if "ID_FS" in line or "by-uuid" in line]


def test_the_record_of_a_formatted_volume_has_its_filesystem_too() -> None:
    lines = udev_record(VOLUME, {"ID_FS_TYPE": "ext4", "ID_FS_UUID": "1-2"}).splitlines()
    assert {"E:ID_FS_TYPE=ext4", "E:ID_FS_UUID=1-2", "S:disk/by-uuid/1-2"} <= set(lines)
