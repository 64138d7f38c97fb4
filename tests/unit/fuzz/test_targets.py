"""The targets of `make fuzz`, for a moment and without coverage, so that they do not rot."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from ansible.module_utils.imagenet_ops.archive.images import ImageArchive
from ansible.module_utils.imagenet_ops.pack.decoder import DecodeCheck

from tests.fuzz import targets
from tests.fuzz.mutations import MUTATIONS, mutated

MUTATED = 100


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    yield
    targets.close()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_target_bears_its_seeds_and_mutations_of_them(name: str) -> None:
    target = targets.TARGETS[name]
    seeds = target.seeds()
    generator = random.Random(name)
    for seed in seeds:
        target.run(seed)
    for _ in range(MUTATED // target.cost):
        target.run(mutated(generator, generator.choice(seeds), seeds))


@pytest.mark.parametrize("name", ["tar", "labelled_tar", "tar_of_tars", "compressed_tar", "zip"])
def test_the_seeds_of_archives_are_read_to_their_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = ImageArchive.images
    names: set[str] = set()

    def images(archive: ImageArchive, *arguments: Any) -> Iterator[Any]:
        for image in read(archive, *arguments):
            names.add(image.name)
            yield image

    monkeypatch.setattr(ImageArchive, "images", images)
    for seed in targets.TARGETS[name].seeds():
        names.clear()
        targets.TARGETS[name].run(seed)
        assert names


def test_what_a_reader_must_not_raise_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def images(*_: Any) -> Iterator[Any]:
        raise KeyError("a fault")

    monkeypatch.setattr(ImageArchive, "images", images)
    with pytest.raises(KeyError, match="a fault"):
        targets.TARGETS["tar"].run(targets.TARGETS["tar"].seeds()[0])


def test_a_crash_by_an_image_of_the_usual_kind_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeCheck, "__call__", lambda *_: "damaged: the decoder crashed (SIGSEGV)")
    with pytest.raises(targets.FaultError, match="an image of the usual kind: damaged: the decoder crashed"):
        targets.TARGETS["decoder"].run(targets.TARGETS["decoder"].seeds()[0])


@pytest.mark.parametrize("mutate", MUTATIONS)
def test_mutations_are_the_same_for_the_same_seed(mutate: Any) -> None:
    data, other = bytes(range(200)), b"other" * 40
    made = [mutate(random.Random(seed), data, other) for seed in range(30)]
    assert [mutate(random.Random(seed), data, other) for seed in range(30)] == made
    assert any(content != data for content in made)
