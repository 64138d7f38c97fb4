from __future__ import annotations

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.formats.lst import ListLine, parse_list_line
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.text(min_size=1).filter(lambda text: "\t" not in text))
def test_a_line_is_read_as_it_was_written(record_id: int, label: int, path: str) -> None:
    assert parse_list_line(f"{record_id}\t{label:f}\t{path}\n", "") == ListLine(record_id, label, path.rstrip("\n"))


@pytest.mark.parametrize("line", ["", "1\t2.0", "x\t2.0\ta/1.jpg", "1\tx\ta/1.jpg", "1\t2.0\ta\tb"])
def test_a_line_that_is_none_is_an_error(line: str) -> None:
    with pytest.raises(OpsError) as caught:
        parse_list_line(line, "File x.lst, line 3")
    assert str(caught.value) == (
        f"File x.lst, line 3: it does not have an id, a label and a path: {line!r}."
        " The file is damaged; restore it from the backup or pack the data set again"
    )
