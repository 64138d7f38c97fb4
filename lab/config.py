"""What is fixed about the lab: addresses, names, credentials and the paths of one checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent

REGION = "us-east-1"
ZONES = ("us-east-1a", "us-east-1b")
ACCOUNT_ID = "123456789012"  # moto's own default account
OTHER_ACCOUNT_ID = "222222222222"
OTHER_ACCOUNT_BUCKET = "imagenet-ops-taken"  # for the tests of a bucket that somebody else owns

# Fixed and public on purpose, and of another form than AWS's own keys: they open nothing but the lab on loopback.
CONTROLLER_ACCESS_KEY = "LABCONTROLLER"
CONTROLLER_SECRET_KEY = "not-a-secret-it-opens-only-the-lab"  # noqa: S105 - it says so itself

API_PORT = 14566
ORIGIN_PORT = 14580
LOOPBACK = "127.0.0.1"

# The top address of the default VPC's range: AWS's six default subnets end at 172.31.95.255, so that the lab does not
# collide with a machine that is itself an EC2 instance in a default VPC.
BRIDGE = "labbr0"
BRIDGE_ADDRESS = "172.31.255.254"
VPC_PREFIX_BITS = 16
# RFC 2544's benchmarking range: routed nowhere, so a leaked packet reaches nobody.
PUBLIC_NETWORK = "198.18.0.0/15"
METADATA_ADDRESS = "169.254.169.254"

API_HOST_NAME = "aws.lab"
ORIGIN_HOST_NAME = "origin.lab"

SSH_USER = "ec2-user"
KEY_PAIR = "lab"
GPU_INSTANCE_TYPE = "g5.xlarge"

# The account and the naming of Debian's official images, so that the same filters find an AMI here and on AWS.
IMAGE_ID = "ami-0de6b12b00c0ffee1"
IMAGE_OWNER_ID = "136693071363"
IMAGE_NAME = "debian-12-amd64-20250814-2204"
ROOT_DEVICE = "/dev/xvda"

# One lab per machine: this file names the checkout whose lab runs, or ran until it crashed.
MARKER = Path("/run/imagenet-ops-lab.json")


@dataclass(frozen=True)
class Paths:
    """Where one checkout's lab keeps what it makes; everything lies in ``<checkout>/.lab`` and is ignored by git."""

    checkout: Path = CHECKOUT

    @property
    def directory(self) -> Path:
        """Everything that the lab makes lies below this."""
        return self.checkout / ".lab"

    @property
    def state(self) -> Path:
        """What other programs want to know of the running lab, as JSON."""
        return self.directory / "state.json"

    @property
    def log(self) -> Path:
        """Where the server logs."""
        return self.directory / "lab.log"

    @property
    def origin_log(self) -> Path:
        """Where the origin server logs."""
        return self.directory / "origin.log"

    @property
    def origin_config(self) -> Path:
        """Settings of the origin server, its password too."""
        return self.directory / "origin.json"

    @property
    def ssh_config(self) -> Path:
        """SSH settings of the hosts that run now."""
        return self.directory / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        """True keys of the hosts that run now."""
        return self.directory / "known_hosts"

    @property
    def private_key(self) -> Path:
        """The key that opens every host launched with key pair ``lab``."""
        return self.directory / "id_ed25519"

    @property
    def public_key(self) -> Path:
        """Public half of it."""
        return self.directory / "id_ed25519.pub"

    @property
    def images(self) -> Path:
        """The one AMI, in the form that moto reads."""
        return self.directory / "images.json"

    @property
    def pool_image(self) -> Path:
        """The sparse file that holds the pool."""
        return self.directory / "pool.xfs"

    @property
    def pool(self) -> Path:
        """Where the server mounts the pool, in a mount namespace of its own."""
        return self.directory / "pool"

    @property
    def lazy(self) -> Path:
        """Where the server shows volumes whose blocks arrive when they are read, in the same namespace."""
        return self.directory / "lazy"

    @property
    def temporary(self) -> Path:
        """Where moto keeps the bodies of S3 objects, as unlinked files."""
        return self.directory / "tmp"

    @property
    def sample_archives(self) -> Path:
        """Archives of real photographs that lie beside some checkouts."""
        return self.checkout.parent / "shared" / "imagenet-sample"

    @property
    def inventory_archives(self) -> Path:
        """The inventory file that tells the playbooks of the lab's archives."""
        return self.checkout / "inventories" / "lab" / "group_vars" / "all" / "archives.yml"


@dataclass(frozen=True)
class Settings:
    """What a user can choose about a lab.

    ``delay_seconds`` is how long a state transition takes (pending, creating, attaching, ...); 0 means at once.
    ``throttle_rate`` is API calls per second that refill the bucket of ``throttle_burst`` calls; 0 means no throttling.
    ``lazy_mib_s`` is how fast the blocks of a volume from a snapshot come when they are read for the first time, one
    after the other; 0 means that all are there at once. ``initialization_quota_mib_s`` bounds the sum of
    VolumeInitializationRate, and ``fast_restore_hour_seconds`` is what fast snapshot restore takes for an hour.
    """

    delay_seconds: float = 0.0
    throttle_rate: float = 0.0
    throttle_burst: int = 50
    lazy_mib_s: float = 0.0
    initialization_quota_mib_s: int = 5000
    fast_restore_hour_seconds: float = 3600.0
