# SPDX-License-Identifier: Apache-2.0
"""What is found out about the host."""

from tests.unit.cluster_namespaces import pair

ASK = "from ebpf.probe import driver_of; print(driver_of('wire'), driver_of('lo'), driver_of('nosuch'))"


def test_drivers_are_those_of_the_network_namespace_one_is_in() -> None:
    with pair() as hosts:
        assert hosts.python(hosts.left, ASK).split() == ["veth", "virtual", "virtual"]
