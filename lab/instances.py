"""EC2 instances: every one that moto makes boots as a host of the lab, with AWS's states and defaults."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from ipaddress import IPv4Network
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends, elastic_network_interfaces
from moto.ec2.models.instances import Instance, InstanceState
from moto.ec2.responses.instances import InstanceResponse
from moto.sts.models import sts_backends

from lab import launch_templates
from lab.authorization import PARTITION
from lab.blockstore import check_create_volume
from lab.config import ACCOUNT_ID, PUBLIC_NETWORK, REGION, ROOT_DEVICE
from lab.dataplane import DataPlane, Launch
from lab.metadata import Metadata
from lab.network import Address
from lab.patching import replace_property, wrap
from lab.rules import ApiError, ClientTokens

log = logging.getLogger("lab")
# Two boots at a time per core is what keeps both busy; more only makes the first ones late.
PARALLEL_BOOTS = 4
ROOT_VOLUME_GIB = 8
CREDENTIALS_SECONDS = 6 * 3600
PENDING = InstanceState("pending", 0)
SHUTTING_DOWN = InstanceState("shutting-down", 32)
STOPPING = InstanceState("stopping", 64)


class Instances:
    """The patches of EC2 instances. ``changed`` is called when a host was started or stopped."""

    def __init__(
        self, plane: DataPlane, delay_seconds: float, lock: threading.RLock, changed: Callable[[], None]
    ) -> None:
        self._plane = plane
        self._delay_seconds = delay_seconds
        self._lock = lock
        self._changed = changed
        self._tokens = ClientTokens()
        self._boots = ThreadPoolExecutor(PARALLEL_BOOTS, thread_name_prefix="boot")
        # From .1.1 on, for an address that ends in 0 looks like a network to many an eye.
        self._public_addresses = (str(address) for address in itertools.islice(IPv4Network(PUBLIC_NETWORK), 257, None))

    def install(self) -> None:
        """Change moto."""
        # moto's classes take attributes that they do not declare.
        Instance.lab_ending = False  # type: ignore[attr-defined]
        replace_property(Instance, "_state", self._state)
        addresses = self._public_addresses
        # The name is one that moto's module imports and does not export.
        elastic_network_interfaces.random_public_ip = lambda: next(addresses)  # type: ignore[attr-defined]
        wrap(Instance, "setup_defaults")(lambda _, instance: _add_root_volume(instance))
        self._install_launch()
        self._install_ends()

    def _state(self, instance: Any) -> InstanceState:
        """Return the state of ``instance``: the interim one until its time is over and its host has booted."""
        state: InstanceState = instance.__dict__["lab__state"]
        interim, since, work = instance.__dict__.get("lab_transition", (None, 0.0, None))
        if interim is None or (time.monotonic() - since >= self._delay_seconds and (work is None or work.done())):
            return state
        return InstanceState(interim.name, interim.code)

    def _begin(self, instance: Any, interim: InstanceState, work: Future[None] | None = None) -> None:
        instance.__dict__["lab_transition"] = (interim, time.monotonic(), work)

    def _install_launch(self) -> None:
        @wrap(InstanceResponse, "run_instances")
        def answer(original: Any, response: Any) -> ActionResult:
            parameters = response.params
            request = copy.deepcopy({name: value for name, value in parameters.items() if name != "ClientToken"})
            token = parameters.get("ClientToken")
            with self._lock:
                reservation = self._tokens.find("RunInstances", token, request)
                if reservation is None:
                    launch_templates.resolve(response.ec2_backend, parameters)
                    self._prepare(response.ec2_backend, parameters)
                    reservation = original(response).result
                    _finish_volumes(response.ec2_backend, parameters, reservation.instances)
                    self._tokens.remember("RunInstances", token, request, reservation)
                    _associate_profile(response.ec2_backend, parameters, reservation.instances)
                    boots = [self._boot(instance) for instance in reservation.instances]
                elif all(instance.state == "terminated" for instance in reservation.instances):
                    raise ApiError(
                        "IdempotentInstanceTerminated",
                        "The client token you have provided is associated with an instance that has been terminated.",
                    )
                else:
                    boots = []
            if not self._delay_seconds:
                for boot in boots:
                    boot.result()
            return ActionResult(reservation)

    def _prepare(self, backend: Any, parameters: Any) -> None:
        """Fill in what EC2 would, and refuse what it would refuse."""
        key_name = parameters.get("KeyName")
        if key_name is not None and key_name not in backend.key_pairs:
            raise ApiError("InvalidKeyPair.NotFound", f"The key pair '{key_name}' does not exist")
        # moto launches MinCount, EC2 as many as it can up to MaxCount.
        parameters["MinCount"] = parameters["MaxCount"]
        interfaces = parameters.get("NetworkInterfaces", [])
        named = [part for part in (parameters, *interfaces) if part.get("SubnetId") or part.get("NetworkInterfaceId")]
        if not named:
            zone = parameters.get("Placement", {}).get("AvailabilityZone") or f"{backend.region_name}a"
            subnet = backend.get_default_subnets().get(zone)
            if subnet is None:
                raise ApiError("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
            (interfaces[0] if interfaces else parameters)["SubnetId"] = subnet.id
        mappings = parameters.get("BlockDeviceMappings")
        if mappings:
            _complete_root(mappings)
            _complete_others(backend, parameters, mappings)

    def _boot(self, instance: Any) -> Future[None]:
        key_pair = instance.ec2_backend.key_pairs.get(instance.key_name)
        launch = Launch(
            instance_id=instance.id,
            name=instance.private_dns_name.split(".")[0],
            address=address_of(instance),
            public_key=key_pair.public_key if key_pair else "",
            user_data=script_of(instance.user_data),
        )

        def boot() -> None:
            try:
                self._plane.launch(launch)
            except Exception:
                log.exception("instance %s failed to boot", instance.id)
                instance.__dict__["lab__state"] = InstanceState(PENDING.name, PENDING.code)
                # From another thread, for `terminate` waits for this one.
                threading.Thread(target=instance.terminate).start()
            self._changed()

        work = self._boots.submit(boot)
        self._begin(instance, PENDING, work)
        return work

    def _install_ends(self) -> None:
        @wrap(Instance, "terminate")
        def terminate(original: Any, instance: Any) -> InstanceState:
            with self._lock:
                previous = self._settle(instance)
                if not instance.lab_ending:
                    instance.lab_ending = True
                    self._plane.terminate(instance.id)
                    original(instance)
                    self._begin(instance, SHUTTING_DOWN)
            self._changed()
            return previous

        @wrap(Instance, "stop")
        def stop(original: Any, instance: Any) -> InstanceState:
            with self._lock:
                previous = self._settle(instance)
                self._plane.stop(instance.id)
                original(instance)
                self._begin(instance, STOPPING)
            self._changed()
            return previous

        @wrap(Instance, "start")
        def start(original: Any, instance: Any) -> InstanceState:
            with self._lock:
                previous = self._settle(instance)
                original(instance)
                self._plane.start(instance.id, address_of(instance))
                self._begin(instance, PENDING)
            self._changed()
            return previous

        @wrap(Instance, "reboot")
        def reboot(original: Any, instance: Any) -> None:
            with self._lock:
                self._settle(instance)
                original(instance)
                self._plane.stop(instance.id)
                self._plane.start(instance.id, address_of(instance))

    def _settle(self, instance: Any) -> InstanceState:
        """Wait until the host of ``instance`` has booted or failed; return the state that it was in, to be left now."""
        previous = self._state(instance)
        _, _, work = instance.__dict__.pop("lab_transition", (None, 0.0, None))
        if work is not None:
            wait([work])
        return InstanceState(previous.name, previous.code)

    def metadata(self, instance_id: str) -> Metadata:
        """Return what the metadata service serves the host of ``instance_id`` now."""
        backend = ec2_backends[ACCOUNT_ID][REGION]
        instance = backend.get_instance(instance_id)
        options = instance.metadata_options
        return Metadata(
            values={**_facts(instance), **_role_facts(backend, instance), **_tag_facts(instance)},
            enabled=options.http_endpoint != "disabled",
            token_required=options.http_tokens == "required",
        )


def address_of(instance: Any) -> Address:
    """Return where an instance is reached now."""
    return Address(instance.private_ip, instance.public_ip, instance.nics[0].mac_address)


def script_of(user_data: Any) -> bytes | None:
    """Return the script that a host runs at its first boot; other forms of user data are left alone."""
    if not user_data:
        return None
    script = base64.b64decode(user_data.as_bytes())
    return script if script.startswith(b"#!") else None


def _complete_root(mappings: list[dict[str, Any]]) -> None:
    """Give the root volume what the AMI says of it where the request says nothing; without mappings moto adds it."""
    root = next((mapping for mapping in mappings if mapping["DeviceName"] == ROOT_DEVICE), None)
    if root is None:
        root = {"DeviceName": ROOT_DEVICE}
        mappings.insert(0, root)
    root["Ebs"] = {
        "DeleteOnTermination": True,
        "VolumeSize": ROOT_VOLUME_GIB,
        "VolumeType": "gp3",
        **root.get("Ebs", {}),
    }


def _complete_others(backend: Any, parameters: Any, mappings: list[dict[str, Any]]) -> None:
    """Give the volumes beside the root's what a snapshot says of them; raise ApiError where EC2 would not make one."""
    interfaces = parameters.get("NetworkInterfaces", [])
    subnet_id = next(part["SubnetId"] for part in (parameters, *interfaces) if part.get("SubnetId"))
    zone = backend.get_subnet(subnet_id).availability_zone
    for mapping in mappings:
        ebs = mapping.get("Ebs")
        if not ebs or mapping["DeviceName"] == ROOT_DEVICE:
            continue
        ebs["VolumeType"] = ebs.get("VolumeType") or "gp2"
        ebs["VolumeSize"] = check_create_volume(
            backend, {**ebs, "Size": ebs.get("VolumeSize"), "AvailabilityZone": zone}
        )
        # Other than AttachVolume, RunInstances deletes a volume with its instance unless the request says otherwise.
        ebs.setdefault("DeleteOnTermination", True)


def _finish_volumes(backend: Any, parameters: Any, instances: list[Any]) -> None:
    """Give the volumes of ``instances`` what moto leaves out of a launch's mappings."""
    wanted = {mapping["DeviceName"]: mapping.get("Ebs") or {} for mapping in parameters.get("BlockDeviceMappings", [])}
    for instance in instances:
        for device_name, attachment in instance.get_block_device_mapping:
            ebs, volume = wanted.get(device_name, {}), backend.volumes[attachment.volume_id]
            volume.iops = ebs.get("Iops") or volume.iops
            volume.throughput = ebs.get("Throughput") or volume.throughput
            volume.volume_initialization_rate = ebs.get("VolumeInitializationRate")


def _add_root_volume(instance: Any) -> None:
    instance.add_block_device(ROOT_VOLUME_GIB, ROOT_DEVICE, None, False, True, None, "gp3")


def _associate_profile(backend: Any, parameters: Any, instances: list[Any]) -> None:
    """Give the profile to the instances after the first, which moto forgets."""
    profile = parameters.get("IamInstanceProfile")
    for instance in instances[1:] if profile else []:
        backend.associate_iam_instance_profile(
            instance_id=instance.id,
            iam_instance_profile_name=profile.get("Name"),
            iam_instance_profile_arn=profile.get("Arn"),
        )


def _facts(instance: Any) -> dict[str, str]:
    zone = str(instance.availability_zone)
    document = {
        "accountId": ACCOUNT_ID,
        "architecture": instance.architecture,
        "availabilityZone": zone,
        "imageId": instance.image_id,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "pendingTime": instance.launch_time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": instance.private_ip,
        "region": instance.region_name,
        "version": "2017-09-30",
    }
    facts = {
        "dynamic/instance-identity/document": json.dumps(document, indent=2),
        "meta-data/ami-id": instance.image_id,
        "meta-data/hostname": instance.private_dns_name,
        "meta-data/instance-id": instance.id,
        "meta-data/instance-life-cycle": "on-demand",
        "meta-data/instance-type": instance.instance_type,
        "meta-data/local-hostname": instance.private_dns_name,
        "meta-data/local-ipv4": instance.private_ip,
        "meta-data/mac": instance.nics[0].mac_address,
        "meta-data/placement/availability-zone": zone,
        "meta-data/placement/region": instance.region_name,
        "meta-data/services/domain": "amazonaws.com",
        "meta-data/services/partition": PARTITION,
    }
    if instance.public_ip:
        facts["meta-data/public-ipv4"] = instance.public_ip
        facts["meta-data/public-hostname"] = instance.public_dns_name
    if instance.user_data:
        facts["user-data"] = base64.b64decode(instance.user_data.as_bytes()).decode(errors="replace")
    return facts


def _tag_facts(instance: Any) -> dict[str, str]:
    if instance.metadata_options.instance_metadata_tags != "enabled":
        return {}
    return {f"meta-data/tags/instance/{tag['key']}": str(tag["value"]) for tag in instance.get_tags()}


def _role_facts(backend: Any, instance: Any) -> dict[str, str]:
    association = backend.iam_instance_profile_associations.get(instance.id)
    if association is None:
        return {}
    profile = association.iam_instance_profile
    now = dt.datetime.now(dt.UTC)
    info = {
        "Code": "Success",
        "LastUpdated": _stamp(now),
        "InstanceProfileArn": profile.arn,
        "InstanceProfileId": profile.id,
    }
    facts = {"meta-data/iam/info": json.dumps(info, indent=2)}
    for role in profile.roles:
        facts[f"meta-data/iam/security-credentials/{role.name}"] = json.dumps(_credentials(instance, role), indent=2)
    return facts


def _credentials(instance: Any, role: Any) -> dict[str, str]:
    """Return the role's credentials for ``instance``, the same ones until they are due for renewal."""
    now = dt.datetime.now(dt.UTC)
    session: Any = instance.__dict__.get("lab_session")
    if session is None or session.role_arn != role.arn or session.lab_renewal < now:
        session = sts_backends[ACCOUNT_ID][PARTITION].assume_role(
            region_name=REGION,
            role_session_name=instance.id,
            role_arn=role.arn,
            policy="",
            duration=CREDENTIALS_SECONDS,
            external_id="",
        )
        session.lab_since = now
        session.lab_renewal = now + dt.timedelta(seconds=CREDENTIALS_SECONDS / 2)
        instance.__dict__["lab_session"] = session
    return {
        "Code": "Success",
        "LastUpdated": _stamp(session.lab_since),
        "Type": "AWS-HMAC",
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": session.secret_access_key,
        "Token": session.session_token,
        "Expiration": _stamp(session.lab_since + dt.timedelta(seconds=CREDENTIALS_SECONDS)),
    }


def _stamp(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
