"""The lab's command line: ``python -m lab up|down|status``; ``serve`` is what ``up`` starts in the background."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from lab import lifecycle
from lab.config import CHECKOUT, LOOPBACK, Paths, Settings
from lab.environment import set_environment
from lab.machine import LabError, extend_path
from lab.pool import mount_pool


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main_parser = argparse.ArgumentParser(prog="python -m lab", description="An AWS in one machine")
    commands = main_parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="start the lab")
    up.add_argument("--hosts", type=int, default=4, help="GPU hosts to launch, in two zones by turns (4)")
    up.add_argument(
        "--archives",
        type=_folder,
        default=os.environ.get("IMAGENET_ARCHIVES"),
        help="folder of archives to serve (IMAGENET_ARCHIVES, else the sample beside the checkout, else synthetic)",
    )
    commands.add_parser("down", help="stop the lab and remove all that it made")
    commands.add_parser("status", help="say whether the lab runs, and which instances")

    serve = commands.add_parser("serve", help="the server alone, until SIGTERM")
    serve.add_argument("--listen", type=_address, action="append", metavar="ADDRESS:PORT", help="repeatable")
    serve.add_argument("--api-only", action="store_true", help="no hosts and no volumes: needs neither root nor Linux")
    serve.add_argument("--pool-device", metavar="DEVICE", help="loop device with the pool's XFS; else without clones")
    serve.add_argument("--directory", type=Path, default=CHECKOUT, help="checkout, or any folder with --api-only")

    for command in (up, serve):
        command.add_argument("--delay", type=float, default=0.0, help="seconds that a change of state takes (0)")
        command.add_argument("--throttle-rate", type=float, default=0.0, help="EC2 calls a second; 0 is no limit (0)")
        command.add_argument("--throttle-burst", type=int, default=50, help="EC2 calls before the limit bites (50)")
        command.add_argument(
            "--lazy-mib-s",
            type=float,
            default=0.0,
            help="MiB/s of blocks that are read for the first time on a restored volume, one by one; 0 is at once (0)",
        )
        command.add_argument(
            "--initialization-quota-mib-s", type=int, default=5000, help="sum of VolumeInitializationRate (5000)"
        )
        command.add_argument(
            "--fast-restore-hour-seconds",
            type=float,
            default=3600.0,
            help="seconds of what fast snapshot restore counts in hours (3600)",
        )
    return main_parser


def become_root(arguments: list[str]) -> None:
    """Continue as root, with sudo if needed; ``arguments`` are those of this program."""
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise LabError("The lab needs root for namespaces and loop devices: run it as root, or install sudo")
    # Without -B root's compiled files would lie in the user's checkout.
    os.execvp("sudo", ["sudo", sys.executable, "-B", "-m", "lab", *arguments])  # noqa: S606 - no shell is the point


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    options = parser().parse_args(arguments)
    extend_path()
    os.chdir(CHECKOUT)
    if options.command == "serve":
        _serve(options)
        return 0
    if not sys.platform.startswith("linux"):
        raise LabError("The lab needs Linux: namespaces, loop devices and overlay mounts")
    if options.command == "up" and options.archives:
        # Said again as an argument, for sudo clears the environment.
        arguments = [*arguments, "--archives", str(options.archives)]
    if options.command != "status":
        become_root(arguments)
    paths = Paths()
    if options.command == "up":
        sample = paths.sample_archives if paths.sample_archives.is_dir() else None
        lifecycle.up(paths, options.hosts, _settings(options), options.archives or sample)
    elif options.command == "down":
        lifecycle.down(paths)
    return 0 if options.command != "status" or lifecycle.status(paths) else 1


def _serve(options: argparse.Namespace) -> None:
    paths = Paths(options.directory.resolve())
    set_environment(paths)
    if not options.api_only:
        mount_pool(paths, options.pool_device)
    from lab.server import serve  # noqa: PLC0415 - it imports moto, which has to find its environment

    serve(paths, _settings(options), options.listen or [(LOOPBACK, 0)], has_hosts=not options.api_only)


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        delay_seconds=options.delay,
        throttle_rate=options.throttle_rate,
        throttle_burst=options.throttle_burst,
        lazy_mib_s=options.lazy_mib_s,
        initialization_quota_mib_s=options.initialization_quota_mib_s,
        fast_restore_hour_seconds=options.fast_restore_hour_seconds,
    )


def _folder(text: str) -> Path:
    return Path(text).resolve()  # before the lab goes to its checkout


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(f"lab: {error}")
