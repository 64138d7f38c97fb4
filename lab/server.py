"""The lab's one long-lived process: moto, patched, on loopback and on the bridge, and the control of everything below it."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lab.config import (
    ACCOUNT_ID,
    API_HOST_NAME,
    IMAGE_ID,
    IMAGE_NAME,
    IMAGE_OWNER_ID,
    REGION,
    ROOT_DEVICE,
    ZONES,
    Paths,
    Settings,
)
from lab.dataplane import DataPlane, LinuxDataPlane, NoDataPlane
from lab.machine import write_for_user
from lab.metadata import MetadataServer
from lab.ssh_config import Entry, render_known_hosts, render_ssh_config

log = logging.getLogger("lab")
# After these the running hosts or their names may be others.
HOST_ACTIONS = {"CreateTags", "DeleteTags"}


def set_environment(paths: Paths) -> None:
    """Choose moto's own settings. It reads them while it is imported, so this comes before the first import of it."""
    images = [
        {
            "ami_id": IMAGE_ID,
            "name": IMAGE_NAME,
            "description": "Debian 12 as this machine has it",
            "owner_id": IMAGE_OWNER_ID,
            "public": True,
            "virtualization_type": "hvm",
            "architecture": "x86_64",
            "state": "available",
            "creation_date": "2025-08-14T22:04:00.000Z",
            "image_type": "machine",
            "image_location": f"{IMAGE_OWNER_ID}/{IMAGE_NAME}",
            "hypervisor": "xen",
            "root_device_type": "ebs",
            "root_device_name": ROOT_DEVICE,
            "sriov": "simple",
        }
    ]
    paths.images.write_text(json.dumps(images))
    paths.temporary.mkdir(exist_ok=True)
    os.environ.update(
        {
            "MOTO_AMIS_PATH": str(paths.images),
            "MOTO_ENABLE_AMI_VALIDATION": "true",
            "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
            # Whatever the host part of the URL is, the bucket is in the path; `virtual_host` below sees to it.
            "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true",
            "TMPDIR": str(paths.temporary),
        }
    )


class Api:
    """The API with all its patches, as one WSGI application."""

    def __init__(self, paths: Paths, settings: Settings, has_hosts: bool) -> None:
        # Only now, for the environment must be set before moto is imported.
        from moto.ec2.models import RegionsAndZonesBackend, ec2_backends
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        from lab.access import Access, Calls, TokenBucket
        from lab.blockstore import BlockStore
        from lab.instances import Instances

        self._paths = paths
        self._backends = ec2_backends
        self._publishing = threading.Lock()
        lock = threading.RLock()
        self.calls = Calls()
        self._linux = LinuxDataPlane(paths, self._metadata_server) if has_hosts else None
        plane: DataPlane = self._linux or NoDataPlane()
        regions, zones = RegionsAndZonesBackend.regions, RegionsAndZonesBackend.zones[REGION]
        regions[:] = [region for region in regions if region.name == REGION]
        zones[:] = [zone for zone in zones if zone.name in ZONES]
        BlockStore(plane, settings.delay_seconds, lock).install()
        self._instances = Instances(plane, settings.delay_seconds, lock, self.publish)
        self._instances.install()
        access = Access(TokenBucket(settings.throttle_rate, settings.throttle_burst), self.calls, self._after)
        access.install()
        access.create_accounts()
        self._moto = DomainDispatcherApplication(create_backend_app)  # type: ignore[arg-type]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/lab/calls" and environ["REQUEST_METHOD"] == "GET":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self.calls.to_json()).encode()]
        if path == "/lab/reset" and environ["REQUEST_METHOD"] == "POST":
            self.calls.reset()
            start_response("204 No Content", [])
            return []
        virtual_host(environ)
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer

    def publish(self) -> None:
        """Write .lab/ssh_config and .lab/known_hosts for the hosts that run now."""
        if self._linux is None:
            return
        with self._publishing:
            entries = [
                Entry(
                    name=next((str(tag["value"]) for tag in instance.get_tags() if tag["key"] == "Name"), ""),
                    instance_id=instance.id,
                    private_address=instance.private_ip,
                    public_address=instance.public_ip,
                    host_key=self._linux.host_keys[instance.id],
                )
                for instance in self._backends[ACCOUNT_ID][REGION].all_instances()
                if instance.state in ("pending", "running") and instance.id in self._linux.host_keys
            ]
            write_for_user(self._paths.known_hosts, render_known_hosts(entries))
            write_for_user(self._paths.ssh_config, render_ssh_config(entries, self._paths))

    def _after(self, action: str) -> None:
        if action in HOST_ACTIONS:
            self.publish()

    def _metadata_server(self, instance_id: str) -> MetadataServer:
        return MetadataServer(lambda: self._instances.metadata(instance_id))


def virtual_host(environ: dict[str, Any]) -> None:
    """Turn a bucket in the host name (bucket.aws.lab) into one in the path, as moto is told to expect it."""
    host = environ.get("HTTP_HOST", "").split(":")[0]
    if host.endswith(f".{API_HOST_NAME}"):
        bucket = host.removesuffix(f".{API_HOST_NAME}")
        for name in ("PATH_INFO", "RAW_URI", "REQUEST_URI"):
            if name in environ:
                environ[name] = f"/{bucket}{environ[name]}"


def serve(paths: Paths, settings: Settings, addresses: list[tuple[str, int]], has_hosts: bool) -> None:
    """Run until SIGTERM. A line ``ready`` on standard output says that all addresses answer."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    set_environment(paths)
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    api = Api(paths, settings, has_hosts)
    servers = [
        make_server(host, port, api, threaded=True, request_handler=MotoRequestHandler)  # type: ignore[arg-type]
        for host, port in addresses
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", *(server.port for server in servers), flush=True)
    threading.Event().wait()
