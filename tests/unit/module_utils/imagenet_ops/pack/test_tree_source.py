from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.formats.recordio import RECORDIO
from ansible.module_utils.imagenet_ops.pack import tree_source
from ansible.module_utils.imagenet_ops.pack.decoder import Transformer
from ansible.module_utils.imagenet_ops.pack.image import Recipe
from ansible.module_utils.imagenet_ops.pack.listing import Listing, Tree
from ansible.module_utils.imagenet_ops.pack.tree_source import TreeSource, place_batches
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.images import jpeg, write_tree

RECIPE = Recipe(short_side_pixels=16, quality=95, resize_filter="linear", max_image_pixels=10_000)


@given(st.integers(0, 1000), st.lists(st.integers(0, 20 << 20)))
def test_stretches_cover_all_places_and_are_short(begin: int, sizes: list[int]) -> None:
    found = list(place_batches(begin, sizes))
    assert [place for stretch in found for place in stretch] == list(range(begin, begin + len(sizes)))
    for stretch in found:
        assert 1 <= len(stretch) <= 32
        assert sum(sizes[place - begin] for place in stretch[:-1]) < 8 << 20


def test_huge_images_do_not_gather_in_memory() -> None:
    assert [len(stretch) for stretch in place_batches(0, [1000] * 40 + [100 << 20] * 3)] == [32, 9, 1, 1]


@pytest.mark.parametrize(("pass_through", "expected"), [(True, 8 + 24 + 4 + 8 + 24 + 8), (False, None)])
def test_the_size_of_the_records_is_known_only_of_what_is_not_encoded(
    tmp_path: Path, expected: int | None, *, pass_through: bool
) -> None:
    tree = Tree(str(write_tree(tmp_path, {"a/1.jpg": b"123", "a/2.jpg": b"12345"})))
    source = TreeSource(Listing(tree, ["a"], None), Transformer(RECIPE._replace(pass_through=pass_through)), [RECORDIO])
    assert source.rec_bytes() == expected


def test_a_chunk_has_records_and_says_what_is_bad_or_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_source, "_BATCH_IMAGES", 2)
    write_tree(tmp_path, {"a/1.jpg": jpeg(), "a/2.jpg": b"", "b/3.jpg": jpeg(2000, 10)})
    with Transformer(RECIPE) as transformer:
        source = TreeSource(Listing(Tree(str(tmp_path)), ["a", "b"], None), transformer, [RECORDIO])
        first, second = source.batches(0, 3, 1)
    assert (first.stop, first.ids, first.bad) == (2, [0], [["a/2.jpg", "zero bytes long"]])
    assert (second.stop, second.ids, len(second.bad)) == (3, [], 1)
