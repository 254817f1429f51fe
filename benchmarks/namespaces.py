"""Several hosts simulated on one machine, by network namespaces on a private bridge; needs root and ``ip``."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

PREFIX, NETWORK = "heptane-h", "10.77.0"


def why_not() -> str:
    """The reason why namespaces are not available; empty if they are."""
    if os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need ip (Debian: iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"{PREFIX}-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", f"{PREFIX}-try"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"ip netns add: {tried.stderr.strip()}"


def address(host: int) -> str:
    """The address of a host, by its number from 0."""
    return f"{NETWORK}.{host + 1}"


@contextlib.contextmanager
def network(hosts: int, megabits: int | None = None) -> Iterator[None]:
    """Create ``hosts`` namespaces on one bridge, each with limited bandwidth."""
    bridge = f"{PREFIX}br"
    _remove(hosts)
    try:
        call(f"ip link add {bridge} type bridge")
        call(f"ip link set {bridge} up")
        for host in range(hosts):
            name = f"{PREFIX}{host}"
            call(f"ip netns add {name}")
            call(f"ip link add {name} type veth peer name eth0 netns {name}")
            call(f"ip link set {name} master {bridge} up")
            call(f"ip -n {name} addr add {address(host)}/24 dev eth0")
            call(f"ip -n {name} link set eth0 up")
            call(f"ip -n {name} link set lo up")
            if megabits:
                call(f"tc -n {name} qdisc add dev eth0 root tbf rate {megabits}mbit burst 256kb latency 200ms")
        yield
    finally:
        _remove(hosts)


def start(host: int, command: Sequence[str], **settings: Any) -> subprocess.Popen[Any]:
    """Start ``command`` on a host, as leader of its own process group."""
    return subprocess.Popen(["ip", "netns", "exec", f"{PREFIX}{host}", *command], start_new_session=True, **settings)


def cut(host: int) -> None:
    """Disconnect a host: its packets are dropped silently."""
    call(f"ip link set {PREFIX}{host} down")


def kill(host: int) -> None:
    """Kill all processes on a host."""
    found = subprocess.run(["ip", "netns", "pids", f"{PREFIX}{host}"], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def call(command: str) -> None:
    """Run a command, and raise if it fails."""
    subprocess.run(command.split(), check=True)


def _remove(hosts: int) -> None:
    for host in range(hosts):
        kill(host)
        subprocess.run(["ip", "netns", "del", f"{PREFIX}{host}"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", f"{PREFIX}br"], check=False, capture_output=True)
