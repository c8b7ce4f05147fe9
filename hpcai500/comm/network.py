"""Over which of a machine's networks the ranks talk: the user's choice, told to every library in its own variable.

A site names the interface once (``network_interface`` in site.toml, or HPCAI500_NETWORK_INTERFACE). Without a choice
the libraries choose by themselves, but for Gloo, whose choice is often wrong: it takes the address to which the host's
own name resolves, and on Debian that is 127.0.1.1.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import MutableMapping
from pathlib import Path

from hpcai500.errors import UnknownNameError

INTERFACE_VARIABLE = "HPCAI500_NETWORK_INTERFACE"
# How each library is told the interface. {name} is the interface, {device} the InfiniBand device behind it, such as
# mlx5_0:1, or the interface where there is none.
VARIABLES = {
    "GLOO_SOCKET_IFNAME": "{name}",  # torch.distributed on processors
    "NCCL_SOCKET_IFNAME": "={name}",  # without "=" NCCL takes every interface that begins so
    "HOROVOD_GLOO_IFACE": "{name}",  # Horovod without MPI
    "OMPI_MCA_btl_tcp_if_include": "{name}",  # Open MPI, and Horovod over it
    "PMIX_MCA_ptl_tcp_if_include": "{name}",  # ... how its ranks find the daemon of their node
    "PRTE_MCA_prte_if_include": "{name}",  # ... and how mpirun finds its daemons
    "UCX_NET_DEVICES": "{device}",  # UCX, which Open MPI takes where there is InfiniBand
    "FI_TCP_IFACE": "{name}",  # MPICH's libfabric
}
# Set whatever the network. Open MPI 5 looks for fabrics for one-sided messages, which nobody here sends, and sleeps a
# second meanwhile: MPI starts in 0.2 s instead of 1.2 s without. Two-sided messages use fabrics as before (mtl/ofi).
DEFAULTS = {"OMPI_MCA_btl": "^ofi"}
_SIOCGIFADDR = 0x8915  # netdevice(7)


def network_variables(interface: str, *, sysfs: Path = Path("/sys")) -> dict[str, str]:
    """The variables by which all libraries use this interface.

    Raises:
        UnknownNameError: this machine has no such interface.
    """
    known = [name for _, name in socket.if_nameindex()]
    if interface not in known:
        raise UnknownNameError(f"network interface of {socket.gethostname()}", interface, known)
    device = infiniband_device(interface, sysfs) or interface
    return {variable: form.format(name=interface, device=device) for variable, form in VARIABLES.items()}


def infiniband_device(interface: str, sysfs: Path) -> str | None:
    """Device and port behind an interface, such as ``mlx5_0:1``; None if it is Ethernet's or virtual."""
    folder = sysfs / "class/net" / interface
    devices = sorted((folder / "device/infiniband").glob("*"))
    if not devices:
        return None
    try:
        port = int((folder / "dev_port").read_text(encoding="ascii")) + 1
    except (OSError, ValueError):
        port = 1
    return f"{devices[0].name}:{port}"


def use_chosen_network(environ: MutableMapping[str, str]) -> None:
    """Set DEFAULTS, and the variables of the interface that HPCAI500_NETWORK_INTERFACE names; those already set stay.

    Raises:
        UnknownNameError: this machine has no such interface.
    """
    interface = environ.get(INTERFACE_VARIABLE)
    variables = network_variables(interface) if interface else {}
    for variable, value in (DEFAULTS | variables).items():
        environ.setdefault(variable, value)


def interface_towards(host: str) -> str | None:
    """The interface by which this machine reaches another; None if the name does not resolve or nothing leads there."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing: UDP
            address = probe.getsockname()[0]
    except OSError:
        return None
    return next((name for _, name in socket.if_nameindex() if address_of(name) == address), None)


def address_of(interface: str) -> str | None:
    """The IPv4 address of an interface; None if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", os.fsencode(interface[:15])))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
