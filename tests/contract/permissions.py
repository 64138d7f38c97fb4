"""The IAM policies: rendered from the templates of the roles that create them, as docs/permissions.md shows them.

`make permissions` writes them into the document.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import jinja2

from tests.contract import tree

DOCUMENT = tree.ROOT / "docs" / "permissions.md"
HOST = "The download host"
TEMPLATES = tree.ROOT / "roles" / "iam_setup" / "templates"
HOST_TEMPLATES = tree.ROOT / "roles" / "download_host_role" / "templates"
# What the document says instead of a user's own names.
SHOWN = {
    "account_id": "ACCOUNT",
    "bucket_name": "BUCKET",
    "data_profile": {"name": "imagenet"},
    "data_project": "imagenet-ops",
    "gpu_tag": "Role",
    "gpu_tag_value": "gpu",
    "host_profile_name": "imagenet-download",
    "host_role_name": "imagenet-download",
    "kms_key_id": "",
    "partition": "aws",
    "permissions_boundary": "",
    "policy_prefix": "imagenet-ops-imagenet",
    "restore_bucket_name": "",
}


def playbook_of(name: str) -> str:
    """The playbook whose policy is the template ``name``."""
    return f"playbooks/{'steps/' if name == 'iam' else ''}{name}.yml"


def names() -> list[str]:
    """The policies of playbooks, by the names of their templates; the others are parts of them."""
    return sorted(
        path.name.partition(".")[0] for path in TEMPLATES.glob("*.json.j2") if path.name != "launch_host.json.j2"
    )


def text_of(name: str, values: Mapping[str, Any] = SHOWN) -> str:
    """The policy of a playbook, or of the `HOST`, as JSON, with these values of the role's variables."""
    folder, prefix, template = TEMPLATES, "iam_setup_", f"{name}.json.j2"
    if name == HOST:
        folder, prefix, template = HOST_TEMPLATES, "__download_host_role_", "backup_policy.json.j2"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        autoescape=False,
    )
    public = {f"download_host_role_{key}": value for key, value in values.items()} if name == HOST else {}
    given = {key if key.startswith("data_") else f"{prefix}{key}": value for key, value in values.items()}
    return environment.get_template(template).render({**public, **given}).strip()


def policy_of(name: str, values: Mapping[str, Any] = SHOWN) -> dict[str, Any]:
    """The same, parsed."""
    policy: dict[str, Any] = json.loads(text_of(name, values))
    return policy


def documented(document: str) -> str:
    """The document with the policies of now."""
    shown = {f"`{playbook_of(name)}`": text_of(name) for name in names()} | {HOST: text_of(HOST)}
    parts = re.split(r"^(## .+)$", document, flags=re.MULTILINE)
    for index in range(1, len(parts), 2):
        policy = shown.get(parts[index].removeprefix("## "))
        if policy is not None:
            before, _, rest = parts[index + 1].partition("```json\n")
            after = rest.partition("```\n")[2]
            parts[index + 1] = f"{before}```json\n{policy}\n```\n{after}"
    return "".join(parts)


def main() -> None:
    """Write the policies into docs/permissions.md."""
    DOCUMENT.write_text(documented(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
