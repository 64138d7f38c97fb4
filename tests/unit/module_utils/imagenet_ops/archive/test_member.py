"""What is damaged says where and how."""

from __future__ import annotations

from ansible.module_utils.imagenet_ops.archive.member import FILE, DamagedArchiveError, Member


def test_damage_has_its_place_and_reason() -> None:
    error = DamagedArchiveError(512, "its end is missing")
    assert (error.offset, str(error)) == (512, "its end is missing")


def test_a_member_reads_well_in_a_message() -> None:
    member = Member("a/b.JPEG", FILE, 3, 0, 512, 1024)
    assert f"{member.name!r} at byte {member.offset} is a {member.kind}" == "'a/b.JPEG' at byte 0 is a file"
