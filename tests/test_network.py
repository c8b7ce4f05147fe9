"""The network interface: one choice for all libraries, and the way towards another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcai500.comm.network import (
    DEFAULTS,
    VARIABLES,
    address_of,
    infiniband_device,
    interface_towards,
    network_variables,
    use_chosen_network,
)
from hpcai500.errors import UnknownNameError


def test_every_library_is_told_the_chosen_interface() -> None:
    environ = {"HPCAI500_NETWORK_INTERFACE": "lo"}
    use_chosen_network(environ)
    told = {variable: value for variable, value in environ.items() if variable in VARIABLES}
    assert set(told) == set(VARIABLES)
    assert told.pop("NCCL_SOCKET_IFNAME") == "=lo"
    assert set(told.values()) == {"lo"}


def test_what_a_user_set_for_one_library_stays() -> None:
    environ = {"HPCAI500_NETWORK_INTERFACE": "lo", "UCX_NET_DEVICES": "mlx5_1:1"}
    use_chosen_network(environ)
    assert environ["UCX_NET_DEVICES"] == "mlx5_1:1"
    assert environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_without_a_choice_only_the_defaults_are_set() -> None:
    environ: dict[str, str] = {}
    use_chosen_network(environ)
    assert environ == DEFAULTS
    environ = {"OMPI_MCA_btl": "self,tcp"}
    use_chosen_network(environ)
    assert environ == {"OMPI_MCA_btl": "self,tcp"}


def test_an_unknown_interface_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown network interface of \S+ 'ib7'.* known: .*\blo\b"):
        use_chosen_network({"HPCAI500_NETWORK_INTERFACE": "ib7"})


def test_ucx_is_told_the_infiniband_device_behind_an_interface(tmp_path: Path) -> None:
    interface = tmp_path / "class/net/lo"
    (interface / "device/infiniband/mlx5_0").mkdir(parents=True)
    assert infiniband_device("lo", tmp_path) == "mlx5_0:1"
    (interface / "dev_port").write_text("1\n")
    variables = network_variables("lo", sysfs=tmp_path)
    assert variables["UCX_NET_DEVICES"] == "mlx5_0:2"
    assert variables["GLOO_SOCKET_IFNAME"] == "lo"
    assert infiniband_device("eth9", tmp_path) is None


def test_the_interface_towards_a_machine_is_that_of_the_way_there() -> None:
    assert address_of("lo") == "127.0.0.1"
    assert address_of("no-such-one") is None
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no-such-host.invalid") is None
