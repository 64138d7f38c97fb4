"""The lab's one long-lived process: moto, changed, on loopback and on the bridge, with the world below it.

Importing this imports moto, so `environment.set_environment` comes first.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from lab import shortcuts
from lab.access import Access, Callers, Calls, TokenBucket
from lab.blockstore import BlockStore
from lab.config import ACCOUNT_ID, REGION, ZONES, Paths, Settings
from lab.dataplane import DataPlane
from lab.default_vpc import complete_default_vpc
from lab.fast_restore import FastRestores
from lab.instances import Instances
from lab.launch_templates import LaunchTemplates
from lab.lazy_files import LazyFiles
from lab.linux import LinuxDataPlane
from lab.machine import write_for_user
from lab.metadata import MetadataServer
from lab.objects import ObjectStore
from lab.snapshot_sharing import SnapshotSharing
from lab.ssh_config import Entry, render_known_hosts, render_ssh_config

# After these a host may have another name.
NAMING_ACTIONS = {"ec2:CreateTags", "ec2:DeleteTags"}


class Api:
    """The API with all its changes, as one WSGI application; with ``has_hosts`` it moves the machine, else nothing."""

    def __init__(self, paths: Paths, settings: Settings, has_hosts: bool) -> None:
        self._paths = paths
        self._publishing = threading.Lock()
        self._calls = Calls()
        self._callers = Callers()
        lazy_files = LazyFiles(paths.lazy) if has_hosts and settings.lazy_mib_s else None
        self._linux = LinuxDataPlane(paths, self._metadata_server, lazy_files) if has_hosts else None
        plane = self._linux or DataPlane()
        regions, zones = RegionsAndZonesBackend.regions, RegionsAndZonesBackend.zones[REGION]
        regions[:] = [region for region in regions if region.name == REGION]
        zones[:] = [zone for zone in zones if zone.name in ZONES]
        lock = threading.RLock()
        shortcuts.install()
        restores = FastRestores(settings.delay_seconds, settings.fast_restore_hour_seconds, ACCOUNT_ID)
        self._blocks = BlockStore(plane, settings, lock, restores)
        self._blocks.install()
        self._instances = Instances(plane, settings.delay_seconds, lock, self._publish)
        self._instances.install()
        LaunchTemplates(lock).install()
        SnapshotSharing(lock).install()
        complete_default_vpc()
        bucket = TokenBucket(settings.throttle_rate, settings.throttle_burst)
        access = Access(bucket, self._calls, self._callers, self._after)
        access.install()
        access.create_accounts()
        ObjectStore(self._calls, self._callers).install()
        self._moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request: the lab's own at /lab, all others are AWS's."""
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if request == ("GET", "/lab/calls"):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._calls.to_json()).encode()]
        if request == ("GET", "/lab/permissions"):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._callers.to_json()).encode()]
        if request == ("GET", "/lab/first-reads"):
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._blocks.first_reads()).encode()]
        if request == ("POST", "/lab/reset"):
            self._calls.reset()
            self._callers.reset()
            start_response("204 No Content", [])
            return []
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer

    def _publish(self) -> None:
        """Write .lab/ssh_config and .lab/known_hosts for the hosts that run now."""
        if self._linux is None:
            return
        with self._publishing:
            keys = dict(self._linux.host_keys)
            entries = [
                Entry(
                    name=next((str(tag["value"]) for tag in instance.get_tags() if tag["key"] == "Name"), ""),
                    instance_id=instance.id,
                    private_address=str(instance.private_ip),
                    public_address=instance.public_ip,
                    host_key=keys[instance.id],
                )
                for instance in ec2_backends[ACCOUNT_ID][REGION].all_instances()
                if instance.state in {"pending", "running"} and instance.id in keys
            ]
            write_for_user(self._paths.known_hosts, render_known_hosts(entries))
            write_for_user(self._paths.ssh_config, render_ssh_config(entries, self._paths))

    def _after(self, action: str) -> None:
        if action in NAMING_ACTIONS:
            self._publish()

    def _metadata_server(self, instance_id: str) -> MetadataServer:
        return MetadataServer(lambda: self._instances.metadata(instance_id))


def serve(paths: Paths, settings: Settings, addresses: list[tuple[str, int]], has_hosts: bool) -> None:
    """Run until SIGTERM. A line ``ready PORT...`` on standard output says that all ``addresses`` answer."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    api = Api(paths, settings, has_hosts)
    servers = [
        make_server(host, port, api, threaded=True, request_handler=MotoRequestHandler) for host, port in addresses
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    # The hosts are the business of `lab down`; they outlive a server that ends.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", *(server.port for server in servers), flush=True)
    threading.Event().wait()
