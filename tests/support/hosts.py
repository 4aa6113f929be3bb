"""Two hosts on one machine: network namespaces with their own host names, joined by a cable that can be cut."""

import ctypes
import os
import socket
import subprocess
from pathlib import Path

from accel_restore.distributed import heartbeat as ranks

DEVICE = "veth0"  # on both sides
ADDRESSES = ("10.77.0.1", "10.77.0.2")
# From the kernel's headers: CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWNET; MS_REC | MS_PRIVATE.
_NEW_MOUNTS, _NEW_UTS, _NEW_NET = 0x00020000, 0x04000000, 0x40000000
_PRIVATE = 0x4000 | 0x40000


class TwoHosts:
    """Two network namespaces with a shared file system. They need root and iproute2.

    Raises: OSError or subprocess.CalledProcessError if they cannot be created.
    """

    def __init__(self) -> None:
        self.names = [f"host{letter}-{os.getpid()}" for letter in "AB"]
        try:
            for name in self.names:
                _ip("netns", "add", name)
            first, second = self.names
            _ip("link", "add", DEVICE, "netns", first, "type", "veth", "peer", "name", DEVICE, "netns", second)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", DEVICE)
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", DEVICE, "up")
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Cut the cable: packets are lost, and neither side is informed."""
        _ip("-n", self.names[0], "link", "set", DEVICE, "down")

    def restore(self) -> None:
        _ip("-n", self.names[0], "link", "set", DEVICE, "up")

    def command(self, host: int) -> list[str]:
        """Return the prefix that runs a command on a host."""
        name = self.names[host]
        return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh"]

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def part() -> None:
    """Tell machines apart by host name. They share one kernel, so ranks would otherwise count as neighbours."""
    ranks._machine = socket.gethostname


def hide(folder: str) -> None:
    """Mount an empty folder over `folder` in this process, as on hosts without a shared file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    private = libc.unshare(_NEW_MOUNTS) or libc.mount(None, b"/", None, _PRIVATE, None)
    if private or libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), f"cannot hide {folder}")


def enter(names: list[str]) -> None:
    """Move this process to the host of its rank; it must have only one thread. The ranks meet on rank 0's host."""
    name, libc = names[int(os.environ["RANK"])], ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{name}").open(encoding="utf-8") as namespace:
        failed = libc.setns(namespace.fileno(), _NEW_NET) or libc.unshare(_NEW_UTS)
    if failed:
        raise OSError(ctypes.get_errno(), f"cannot enter {name}")
    socket.sethostname(name)
    part()
    os.environ.update(LOCAL_RANK="0", MASTER_ADDR=ADDRESSES[0], GLOO_SOCKET_IFNAME=DEVICE)
