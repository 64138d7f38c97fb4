"""The lab's command line: ``python -m lab up|down|status``; ``serve`` is what ``up`` starts in the background."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from lab.config import CHECKOUT, LOOPBACK, Paths, Settings
from lab.machine import LabError, extend_path


def parser() -> argparse.ArgumentParser:
    """The command line's form."""
    main_parser = argparse.ArgumentParser(prog="python -m lab", description="An AWS in one machine")
    commands = main_parser.add_subparsers(dest="command", required=True)

    up = commands.add_parser("up", help="start the lab")
    up.add_argument("--hosts", type=int, default=4, help="GPU hosts to launch, in two zones by turns (4)")
    up.add_argument(
        "--archives",
        type=Path,
        default=os.environ.get("IMAGENET_ARCHIVES"),
        help="folder of archives to serve (IMAGENET_ARCHIVES; else the sample beside the checkout, else synthetic ones)",
    )
    commands.add_parser("down", help="stop the lab and remove all that it made")
    commands.add_parser("status", help="say whether the lab runs, and which instances")

    serve = commands.add_parser("serve", help="the server alone, until SIGTERM")
    serve.add_argument("--listen", action="append", default=[], metavar="ADDRESS:PORT", help="repeatable; port 0 is any")
    serve.add_argument("--api-only", action="store_true", help="no hosts and no volumes: needs neither root nor Linux")
    serve.add_argument("--directory", type=Path, default=CHECKOUT, help="checkout, or any folder with --api-only")

    for command in (up, serve):
        command.add_argument("--delay", type=float, default=0.0, help="seconds that a change of state takes (0)")
        command.add_argument("--throttle-rate", type=float, default=0.0, help="EC2 calls a second; 0 is no limit (0)")
        command.add_argument("--throttle-burst", type=int, default=50, help="EC2 calls before the limit bites (50)")
    return main_parser


def become_root(arguments: list[str]) -> None:
    """Go on as root: by sudo where the user is not."""
    if os.geteuid() == 0:
        return
    if not shutil.which("sudo"):
        raise LabError("The lab needs root for namespaces and loop devices: run this as root, or install sudo")
    # Without -B root's compiled files would lie in the user's checkout.
    os.execvp("sudo", ["sudo", sys.executable, "-B", "-m", "lab", *arguments])


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status."""
    options = parser().parse_args(arguments)
    paths = Paths()
    extend_path()
    os.chdir(paths.checkout)
    if options.command == "serve":
        from lab.server import serve

        serve(
            Paths(options.directory.resolve()),
            Settings(options.delay, options.throttle_rate, options.throttle_burst),
            [_address(text) for text in options.listen] or [(LOOPBACK, 0)],
            has_hosts=not options.api_only,
        )
        return 0
    if not sys.platform.startswith("linux"):
        raise LabError("The lab needs Linux: namespaces, loop devices and overlay mounts")
    if options.command == "up" and options.archives and "--archives" not in arguments:
        arguments = [*arguments, "--archives", str(options.archives.resolve())]  # sudo clears the environment
    become_root(arguments)
    from lab import lifecycle

    if options.command == "up":
        settings = Settings(options.delay, options.throttle_rate, options.throttle_burst)
        lifecycle.up(paths, options.hosts, settings, options.archives)
    elif options.command == "down":
        lifecycle.down(paths)
    else:
        return 0 if lifecycle.status(paths) else 1
    return 0


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        sys.exit(f"lab: {error}")
