from __future__ import annotations

from ansible.module_utils.imagenet_ops.core.results import difference


def test_each_line_of_a_difference_has_its_end() -> None:
    assert difference(["one", "two"], []) == {"before": "one\ntwo\n", "after": ""}
