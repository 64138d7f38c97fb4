from __future__ import annotations

import json
import re

import pytest

from tests.contract import checks, permissions, tree

CELL_CHARACTERS_MAX = 300
# Quota of IAM for a managed policy, white space not counted.
POLICY_BYTES_MAX = 6144


def exists(path: str) -> bool:
    return (tree.ROOT / path).exists()


@pytest.mark.parametrize("path", tree.DOCUMENTS)
def test_commands_of_a_document_are_there(path: str) -> None:
    code = checks.code_of(tree.text(path))
    assert checks.commands_without_target(code, checks.make_targets(tree.text("Makefile"))) == []
    assert checks.missing_files(code, exists) == []


@pytest.mark.parametrize("path", tree.DOCUMENTS)
def test_links_of_a_document_lead_somewhere(path: str) -> None:
    faults = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", tree.text(path)):
        name, _, anchor = link.partition("#")
        target = tree.ROOT / path if name == "" else (tree.ROOT / path).parent / name
        if not target.exists() or (anchor and anchor not in checks.anchors(tree.text(target))):
            faults.append(link)
    assert faults == []


@pytest.mark.parametrize("path", tree.DOCUMENTS)
def test_tables_of_a_document_are_tables(path: str) -> None:
    assert checks.table_faults(tree.text(path), CELL_CHARACTERS_MAX) == []


def test_every_page_is_in_the_index() -> None:
    index = tree.text("docs/README.md")
    pages = {path.name for path in (tree.ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [page for page in sorted(pages) if f"]({page})" not in index] == []


def test_make_help_has_a_line_for_every_target() -> None:
    assert [target for target, line in checks.make_targets(tree.text("Makefile")).items() if not line] == []


def test_readme_lists_every_playbook() -> None:
    readme = tree.text("README.md")
    assert [path for path in tree.PLAYBOOKS if f"| `{path}` |" not in readme] == []


# It works on the download host alone: what reads the inventory is in the policy of every playbook.
WITHOUT_CALLS = {"playbooks/convert.yml"}


def test_every_playbook_and_the_download_host_have_a_policy() -> None:
    wanted = {f"`{path}`" for path in tree.PLAYBOOKS if path.count("/") == 1 and path not in WITHOUT_CALLS}
    assert tree.policies().keys() == wanted | {"`playbooks/steps/iam.yml`", permissions.HOST}


def test_policies_grant_named_actions_and_take_away_only_what_is_tagged() -> None:
    assert [
        f"{name}: {fault}" for name, policy in tree.policies().items() for fault in checks.policy_faults(policy)
    ] == []


def test_the_documented_policies_are_those_that_the_roles_create() -> None:
    document = tree.text("docs/permissions.md")
    assert permissions.documented(document) == document, "run `make permissions`"


def test_optional_parts_of_the_policies() -> None:
    key = "arn:aws:kms:us-east-1:123456789012:key/1"
    host = permissions.policy_of(
        permissions.HOST, {**permissions.SHOWN, "kms_key_id": key, "restore_bucket_name": "other"}
    )
    by_sid = {statement["Sid"]: statement["Resource"] for statement in host["Statement"]}
    assert by_sid["KeyOfTheBucket"] == key
    assert by_sid["ReadTheOtherBackup"] == "arn:aws:s3:::other/imagenet/*"
    named = permissions.policy_of(permissions.HOST, {**permissions.SHOWN, "kms_key_id": "alias/backup"})
    assert named["Statement"][2]["Resource"] == "arn:aws:kms:*:ACCOUNT:key/*"
    boundary = "arn:aws:iam::123456789012:policy/boundary"
    administrator = permissions.policy_of("iam", {**permissions.SHOWN, "permissions_boundary": boundary})
    (writing,) = [one for one in administrator["Statement"] if one["Sid"] == "WriteTheRole"]
    assert writing["Condition"] == {"StringEquals": {"iam:PermissionsBoundary": boundary}}


def test_no_policy_is_longer_than_aws_takes() -> None:
    sizes = {name: len(json.dumps(policy, separators=(",", ":"))) for name, policy in tree.policies().items()}
    assert {name: size for name, size in sizes.items() if size > POLICY_BYTES_MAX} == {}
