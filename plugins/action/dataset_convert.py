"""Runs dataset_convert as a job that outlives the connection, and shows its progress (long_task.py)."""

from __future__ import annotations

from ansible.plugins.loader import action_loader

# Plugins cannot import one another, for their folder is no package; Ansible's loader finds the class that they share.
ActionModule = action_loader.get("long_task", class_only=True)
