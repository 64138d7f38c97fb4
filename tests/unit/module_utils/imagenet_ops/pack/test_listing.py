from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from ansible.module_utils.imagenet_ops.core.errors import OpsError
from ansible.module_utils.imagenet_ops.pack.listing import (
    Expected,
    Listing,
    Tree,
    choose_classes,
    read_label_order,
    refuse_unknown_classes,
)

from tests.fakes.images import write_tree


def tree(root: Path, *names: str) -> Tree:
    return Tree(str(write_tree(root, {name: name.encode() for name in names})))


def lst(listing: Listing, left_out: frozenset[str] = frozenset()) -> str:
    return b"".join(listing.lines(0, len(listing), left_out)).decode()


def error_of(root: Path) -> str:
    with pytest.raises(OpsError) as caught:
        Tree(str(root))
    return str(caught.value)


# --- Tree ------------------------------------------------------------------------------------------------------------


def test_images_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    found = tree(tmp_path, "b/2.JPEG", "b/10.jpg", "a/z.png", "a/A.PNG", "c/1.jpeg")
    assert [found.path(row) for row in range(len(found))] == ["a/A.PNG", "a/z.png", "b/10.jpg", "b/2.JPEG", "c/1.jpeg"]
    assert [found.class_of(row) for row in range(len(found))] == [0, 0, 1, 1, 2]
    assert list(found.sizes) == [7, 7, 8, 8, 8]
    assert found.counts() == {"a": 2, "b": 2, "c": 1}


def test_names_beyond_ascii_keep_their_order_and_text(tmp_path: Path) -> None:
    names = sorted(["ä/ü.jpg", "z/ß.jpg", "日本/本.jpg", "a/\U0001f600.jpg"])
    found = tree(tmp_path, *names)
    assert [found.path(row) for row in range(4)] == names


def test_links_to_images_and_directories_are_followed(tmp_path: Path) -> None:
    write_tree(tmp_path / "elsewhere", {"x/1.jpg": b"12345"})
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "tree" / "a" / "2.jpg").symlink_to(tmp_path / "elsewhere" / "x" / "1.jpg")
    found = Tree(str(tmp_path / "tree"))
    assert [found.path(row) for row in range(len(found))] == ["a/2.jpg", "b/1.jpg"]
    assert list(found.sizes) == [5, 5]


def test_what_is_no_image_by_name_is_counted_and_named(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "a/1.txt", "a/2.gif", "readme", "b/.jpg", "b/3.JPEG.part", "c/5", "c/6")
    assert len(found) == 1
    assert found.beside.files == 7
    assert found.beside.samples == ["a/1.txt", "a/2.gif", "b/.jpg", "b/3.JPEG.part", "c/5"]


def test_an_image_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg")
    path = tmp_path / "a" / "gone.jpg"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OpsError) as caught:
        Tree(str(tmp_path))
    todo = "Replace it by the image, or delete it"
    assert str(caught.value) == f"Tree {tmp_path}: {path} is a symbolic link to nothing. {todo}"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OpsError, match=f"{path} is no file"):
        Tree(str(tmp_path))


def test_annotations_beside_their_images_are_no_reason_to_warn(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "a/1.xml")
    assert (len(found), found.beside.files) == (1, 0)


def test_a_directory_within_a_class_may_hold_anything_but_images(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "a/notes/deep/readme.txt")
    assert (len(found), found.beside.files, found.beside.samples) == (1, 1, ["a/notes/deep/readme.txt"])


def test_what_desktops_leave_is_passed_over(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.DS_Store", ".DS_Store", "a/Thumbs.db", "a/desktop.ini")
    assert (len(found), found.beside.files) == (1, 0)


NFC, NFD = "caf\u00e9", "cafe\u0301"


def test_classes_that_look_the_same_are_one_too_many(tmp_path: Path) -> None:
    found = tree(tmp_path, f"{NFC}/1.jpg", f"{NFD}/2.jpg")
    with pytest.raises(OpsError) as caught:
        choose_classes(found.counts(), found.where, None)
    assert str(caught.value) == (
        f"Images of {tmp_path}: the classes 'cafe\\u0301' and 'caf\\xe9' differ in their Unicode form alone, and would"
        " get two labels. Give both directories the same name, or list both classes in label_order"
    )
    assert choose_classes(found.counts(), found.where, [NFC, NFD]) == [NFC, NFD]


def test_an_unknown_class_that_looks_like_a_known_one(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match=r"unknown: .* \(in another Unicode form: 'cafe\\u0301' is 'caf\\xe9' there\)"):
        refuse_unknown_classes(str(tmp_path), [NFD], [NFC])


@pytest.mark.parametrize(
    ("names", "error"),
    [
        (
            ["1.JPEG", "0.JPEG", "a/1.jpg"],
            (
                "2 images are not in a class directory (such as 0.JPEG), so their class is unknown. Move each into the"
                " directory of its class; imagenet_layout does that for the validation images"
            ),
        ),
        (
            ["a/1.jpg", "a/more/deep/2.jpg"],
            (
                "there are images in {root}/a/more/deep, a directory within a class, which would become another"
                " class. Move them into the directory of their class, or away"
            ),
        ),
        (
            ["a/1\t.jpg"],
            (
                "a .lst cannot have the name '1\\t.jpg' in 'a': no tabs, line breaks, white space at the ends, or bytes"
                " that are not UTF-8. Rename the file"
            ),
        ),
    ],
)
def test_what_im2rec_would_label_wrongly_is_an_error(tmp_path: Path, names: list[str], error: str) -> None:
    write_tree(tmp_path, dict.fromkeys(names, b""))
    what, _, rest = error_of(tmp_path).partition(": ")
    assert what in (f"Tree {tmp_path}", f"Images of {tmp_path}")
    assert rest == error.format(root=tmp_path)


@pytest.mark.parametrize("name", ["a/ 1.jpg", "a/1\n2.jpg", "a/1\r.jpg", "a/\u2003.jpg", "a/1.jpg\n.png"])
def test_names_that_a_list_cannot_hold_are_refused(tmp_path: Path, name: str) -> None:
    write_tree(tmp_path, {name: b""})
    assert "a .lst cannot have the name" in error_of(tmp_path)


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.close(os.open(os.fsencode(tmp_path) + b"/a/\xff.jpg", os.O_CREAT))
    assert "a .lst cannot have the name '\\udcff.jpg' in 'a'" in error_of(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert error_of(tmp_path / "train") == (
        f"Tree {tmp_path}/train: {tmp_path}/train cannot be read (No such file or directory)."
        " Lay out the images as <class>/<image> there, readable for this user"
    )


def test_the_digest_of_the_names_sees_every_name(tmp_path: Path) -> None:
    digests = {
        tree(tmp_path / str(number), *names).names_digest
        for number, names in enumerate([["a/1.jpg"], ["a/2.jpg"], ["b/1.jpg"], ["a/1.jpg", "a/2.jpg"], ["a/11.jpg"]])
    }
    assert len(digests) == 5
    assert tree(tmp_path / "again", "a/1.jpg").names_digest in digests


# --- Listing ---------------------------------------------------------------------------------------------------------


def test_a_line_has_id_label_and_path(tmp_path: Path) -> None:
    found = tree(tmp_path, "n02/x.JPEG", "n01/b.JPEG", "n01/a.JPEG")
    assert lst(Listing(found, ["n01", "n02"], None)) == (
        "0\t0.000000\tn01/a.JPEG\n1\t0.000000\tn01/b.JPEG\n2\t1.000000\tn02/x.JPEG\n"
    )


def test_a_class_without_a_directory_shifts_no_label(tmp_path: Path) -> None:
    found = tree(tmp_path, "n01/a.JPEG", "n03/c.JPEG")
    assert lst(Listing(found, ["n01", "n02", "n03"], None)) == "0\t0.000000\tn01/a.JPEG\n1\t2.000000\tn03/c.JPEG\n"


@pytest.mark.parametrize("seed", [100, 1])
def test_the_shuffle_is_that_of_im2rec(tmp_path: Path, seed: int) -> None:
    names = [f"n{number % 7}/{number}.JPEG" for number in range(60)]
    found = tree(tmp_path, *names)
    expected = list(enumerate(sorted(names)))
    random.seed(seed)
    random.shuffle(expected)
    lines = lst(Listing(found, sorted({name[:2] for name in names}), seed)).splitlines()
    assert lines == [f"{number}\t{int(name[1]):f}\t{name}" for number, name in expected]


def test_images_left_out_keep_the_ids_of_the_others(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg")
    lines = lst(Listing(found, ["a"], None), frozenset(["a/2.jpg"]))
    assert lines == "0\t0.000000\ta/1.jpg\n2\t0.000000\ta/3.jpg\n"


def test_a_directory_that_is_no_class_is_an_error(tmp_path: Path) -> None:
    found = tree(tmp_path, "a/1.jpg", "b/1.jpg", "lost+found/x.txt")
    with pytest.raises(OpsError) as caught:
        Listing(found, ["a", "c"], None)
    assert str(caught.value) == (
        f"Images of {tmp_path}: 2 of their classes are unknown: b, lost+found. Move them away, or check the list of"
        " classes (label_order, the devkit, or the first split)"
    )


def test_the_digest_of_the_sizes_sees_only_the_records_that_are_asked_for(tmp_path: Path) -> None:
    names = [f"a/{number}.jpg" for number in range(20)]
    before = Listing(tree(tmp_path, *names), ["a"], 100)
    changed = before.names.path(before.order[12])
    (tmp_path / changed).write_bytes(b"another length")
    after = Listing(Tree(str(tmp_path)), ["a"], 100)
    assert after.names.names_digest == before.names.names_digest
    equal = [before.sizes_digest(places) == after.sizes_digest(places) for places in range(21)]
    assert equal == [True] * 13 + [False] * 8


# --- classes and counts ----------------------------------------------------------------------------------------------


def test_classes_are_those_of_the_first_split_in_sorted_order() -> None:
    assert choose_classes({"b": 1, "a": 2}, "train", None) == ["a", "b"]


def test_known_classes_count_whatever_the_first_split_has() -> None:
    assert choose_classes({"b": 1, "c": 0}, "train", ["n2", "n1"]) == ["n2", "n1"]


def test_an_empty_class_would_shift_labels_and_is_an_error() -> None:
    with pytest.raises(OpsError) as caught:
        choose_classes({"a": 1, "b": 0, "c": 1}, "/data/train", None)
    assert str(caught.value) == (
        "Images of /data/train: 1 classes have no image: b; the labels of the data set come from this split."
        " Add images or delete the directories, or set devkit or label_order"
    )


@pytest.mark.parametrize(
    "text", ["n2\nn1\n", "n2 tench, Tinca tinca\nn1 goldfish\n", "n2\ttench\r\nn1\tgoldfish\r\n\n"]
)
def test_a_file_gives_the_order_of_the_labels(tmp_path: Path, text: str) -> None:
    (tmp_path / "order.txt").write_text(text)
    assert read_label_order(str(tmp_path / "order.txt")) == ["n2", "n1"]


def test_a_tab_ends_a_class_that_has_spaces(tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_text("red rose\tRosa\nlily\t\n")
    assert read_label_order(str(tmp_path / "order.txt")) == ["red rose", "lily"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "it lists no class"),
        (b"a\nb\na\n", "1 classes are listed more than once: a"),
        (b"\xff", "it is not UTF-8 text"),
    ],
)
def test_a_file_that_gives_no_order_is_an_error(tmp_path: Path, text: bytes, why: str) -> None:
    (tmp_path / "order.txt").write_bytes(text)
    with pytest.raises(OpsError, match=why) as caught:
        read_label_order(str(tmp_path / "order.txt"))
    assert caught.value.what == f"Label order {tmp_path}/order.txt"


def counted(total: int, least: int, most: int) -> str:
    try:
        Expected(total, least, most).check("train", "/data/train", {"a": 1, "b": 3, "c": 2}, ["a", "b", "c", "d"])
    except OpsError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("total", "least", "most"), [(0, 0, 0), (6, 0, 0), (6, 0, 3)])
def test_counts_that_are_as_expected_pass(total: int, least: int, most: int) -> None:
    assert counted(total, least, most) == ""


@pytest.mark.parametrize(
    ("total", "least", "most", "why"),
    [
        (7, 0, 0, "it has 6 images, expected 7"),
        (0, 2, 0, "2 classes do not have at least 2 images: a (1), d (0)"),
        (0, 2, 2, "3 classes do not have 2 images: a (1), b (3), d (0)"),
        (0, 2, 3, "2 classes do not have 2 to 3 images: a (1), d (0)"),
        (0, 0, 2, "1 classes do not have 0 to 2 images: b (3)"),
        (5, 1, 0, "it has 6 images, expected 5; 1 classes do not have at least 1 images: d (0)"),
    ],
)
def test_a_mismatch_names_the_classes(total: int, least: int, most: int, why: str) -> None:
    assert counted(total, least, most) == (
        f"Split train in /data/train: {why}."
        " Fetch or lay out the archive again, or correct the expected numbers; no record was written"
    )


def test_a_mismatch_names_only_a_few_classes() -> None:
    names = [f"n{number:03d}" for number in range(100)]
    with pytest.raises(OpsError, match=r"100 classes do not have 50 images: n000 \(1\), .*, n004 \(1\), \.\.\.\."):
        Expected(0, 50, 50).check("validation", "/data/validation", dict.fromkeys(names, 1), names)


def test_a_label_order_that_is_no_text_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_bytes("n1\nn2\n".encode("utf-16"))
    with pytest.raises(OpsError) as caught:
        read_label_order(str(tmp_path / "order.txt"))
    why = "it is not UTF-8 text (byte 0). Save it as UTF-8 and rerun"
    assert str(caught.value) == f"Label order {tmp_path}/order.txt: {why}"


def test_a_label_order_that_an_editor_of_windows_wrote(tmp_path: Path) -> None:
    (tmp_path / "order.txt").write_bytes(b"\xef\xbb\xbfn2 words\r\nn1\r\n")
    assert read_label_order(str(tmp_path / "order.txt")) == ["n2", "n1"]
