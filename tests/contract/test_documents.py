from __future__ import annotations

import json
import re

import jinja2
import pytest

from tests.contract import checks, tree

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


def test_every_playbook_and_the_download_host_have_a_policy() -> None:
    wanted = {f"`{path}`" for path in tree.PLAYBOOKS if path.count("/") == 1} | {"The download host"}
    assert tree.policies().keys() == wanted


def test_policies_grant_named_actions_and_take_away_only_what_is_tagged() -> None:
    assert [
        f"{name}: {fault}" for name, policy in tree.policies().items() for fault in checks.policy_faults(policy)
    ] == []


def test_the_policy_of_the_download_host_is_the_one_that_the_role_writes() -> None:
    template = jinja2.Template(tree.text("roles/download_host/templates/backup_policy.json.j2"))
    written = template.render(
        __download_host_partition="aws", download_host_bucket_name="BUCKET", data_profile={"name": "imagenet"}
    )
    assert tree.policies()["The download host"] == json.loads(written)


def test_no_policy_is_longer_than_aws_takes() -> None:
    sizes = {name: len(json.dumps(policy, separators=(",", ":"))) for name, policy in tree.policies().items()}
    assert {name: size for name, size in sizes.items() if size > POLICY_BYTES_MAX} == {}
