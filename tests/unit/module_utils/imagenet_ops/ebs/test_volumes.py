from __future__ import annotations

from ansible.module_utils.imagenet_ops.ebs.volumes import DEVICE_SUFFIXES, client_token, device_name, device_suffix
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fleet import NEXT_VERSION, TAGS


@given(st.sampled_from(DEVICE_SUFFIXES), st.sampled_from(["/dev/sd", "/dev/xvd", "sd", "xvd"]), st.integers(0, 15))
def test_one_slot_has_many_names(suffix: str, prefix: str, partition: int) -> None:
    assert device_suffix(f"{prefix}{suffix}{partition or ''}") == suffix == device_suffix(device_name(suffix))


def test_tokens_differ_by_all_that_tells_volumes_apart() -> None:
    tokens = {
        client_token("snap-1", "i-1", TAGS, 0),
        client_token("snap-2", "i-1", TAGS, 0),
        client_token("snap-1", "i-2", TAGS, 0),
        client_token("snap-1", "i-1", NEXT_VERSION, 0),
        client_token("snap-1", "i-1", TAGS, 1),
    }
    assert len(tokens) == 5
    assert {len(token) for token in tokens} == {64}
    assert client_token("snap-1", "i-1", dict(reversed(TAGS.items())), 0) in tokens
