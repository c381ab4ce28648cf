# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (tables: one case a line)
"""Configuration files: what is accepted, and how a fault is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.configuration import schema, validate
from lb.configuration.gateway_addresses import ring_addresses
from lb.configuration.model import EMPTY, Backend, ClusterConfig, Service, Vip
from lb.configuration.node import ConfigError, NodeConfig, split_address
from lb.configuration.plain import digest, from_plain, pack, to_plain, unpack
from lb.configuration.schema import Invalid, parse

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"

GOOD = """
[[vip]]
address = "10.0.1.100/24"
segment = "outside"

[[service]]
name = "web"
address = "10.0.1.100"
port = 80
protocol = "tcp"
forward = "nat"

[[service.backend]]
name = "b1"
address = "10.0.2.11"
port = 8080
"""

NODE = """
cluster = "demo"
[node]
name = "gw1"
id = 1
[[interface]]
name = "eth0"
segment = "outside"
"""


def faults(text: str, kind: schema.Kind = "cluster") -> list[str]:
    with pytest.raises(Invalid) as raised:
        parse(kind, text, "f.toml")
    return [problem.text for problem in raised.value.problems]


def test_good_file_becomes_values() -> None:
    config = parse("cluster", GOOD, "f.toml")
    assert config == ClusterConfig(
        vips=(Vip("10.0.1.100/24", "outside"),),
        services=(Service("web", "10.0.1.100", "tcp", "nat", 80, backends=(Backend("b1", "10.0.2.11", 8080),)),),
    )


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_examples_of_the_documentation_are_valid(name: str) -> None:
    parse("cluster" if name.startswith("services") else "node", (EXAMPLES / name).read_text(), name)


def test_a_vip_announced_as_a_route_needs_no_segment() -> None:
    text = GOOD.replace('/24"\nsegment = "outside"', '/32"\nannounce = "route"')
    assert parse("cluster", text, "f.toml").routed_vips == (Vip("10.0.1.100/32", announce="route"),)


# A sentence, what replaces what in the good file, and the message.
CLUSTER_FAULTS = [
    ("misspelt key", 'segment = "outside"', 'segmnt = "outside"', 'f.toml:4: vip[0].segmnt = "outside": unknown key (did you mean segment?)'),
    ("the daemon's own field", "port = 8080", "id = 7", "f.toml:16: service[0].backend[0].id = 7: unknown key; allowed: name, address, "),
    ("unknown table", "[[vip]]", "[[vips]]", "f.toml:2: vips = "),
    ("missing field", 'protocol = "tcp"', "", "f.toml:6: service[0].protocol: is missing"),
    ("unknown word", '"nat"', '"snat"', 'f.toml:11: service[0].forward = "snat": is unknown; allowed: dsr, tunnel, nat, local'),
    ("port too large", "port = 80\n", "port = 65536\n", "f.toml:9: service[0].port = 65536: is out of range; allowed: at most 65535"),
    ("text for a number", "port = 80\n", 'port = "80"\n', 'f.toml:9: service[0].port = "80": has the wrong type; allowed: int'),
    ("truth for a number", "port = 80\n", "port = true\n", "f.toml:9: service[0].port = true: has the wrong type; allowed: int"),
    ("no address", '"10.0.2.11"', '"10.0.2"', 'f.toml:15: service[0].backend[0].address = "10.0.2": is not usable; allowed: an IPv4'),
    ("VIP without prefix", '"10.0.1.100/24"', '"10.0.1.100"', "f.toml:3: vip[0].address"),
    ("bad name", '"web"', '"the web"', 'f.toml:7: service[0].name = "the web": is not usable; allowed: 1 to 64 letters'),
    ("service without VIP", 'address = "10.0.1.100"\n', 'address = "10.0.1.101"\n', "is no VIP of this file; allowed: the address of a [[vip]] (there are: 10.0.1.100)"),
    ("network as VIP", '"10.0.1.100/24"', '"10.0.1.0/24"', "is the address of its network or of all hosts"),
    ("multicast VIP", '"10.0.1.100/24"', '"224.0.0.9/24"', "cannot be shared by gateways"),
    ("dsr translating ports", '"nat"', '"dsr"', 'service[0].backend[0].port = 8080: dsr cannot change the port; allowed: 0 or 80, or forward = "nat"'),
    ("nat between families", '"10.0.2.11"', '"2001:db8::1"', "nat cannot change the IP version"),
    ("any port translated", "port = 80\n", 'port = "any"\n', "the service takes any port and keeps it"),
    ("local with backends", '"nat"', '"local"', "a local service is served by the gateways; allowed: no backend"),
    ("backend that is a VIP", '"10.0.2.11"', '"10.0.1.100"', "is a VIP"),
    ("no segment", 'segment = "outside"', "", 'vip[0].segment: is needed; allowed: the name of a segment, or announce = "route"'),
    ("route with a segment", "/24", '/32"\nannounce = "route', 'vip[0].segment = "outside": has no meaning for a VIP that every gateway in service holds; allowed: no segment, or announce = "arp"'),
    ("route with a network", '/24"\nsegment = "outside"', '/24"\nannounce = "route"', 'vip[0].address = "10.0.1.100/24": is announced as a route and has a network; allowed: 10.0.1.100/32'),
    ("route with a place", '/24"\nsegment = "outside"', '/32"\nannounce = "route"\npin = "gw1"', 'vip[0].pin = "gw1": has no meaning'),
    ("not TOML", 'name = "web"', "name = web", "f.toml:7: syntax: Invalid value"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "message"), [row[1:] for row in CLUSTER_FAULTS], ids=[row[0] for row in CLUSTER_FAULTS]
)
def test_fault_is_told_with_place_value_and_allowed(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert any(message in text for text in faults(GOOD.replace(old, new, 1))), faults(GOOD.replace(old, new, 1))


REPEATED = [
    (
        "service names",
        GOOD + GOOD[GOOD.index("[[service]]") :],
        'service[1].name = "web": already used by service number 1',
    ),
    (
        "endpoints",
        GOOD + GOOD[GOOD.index("[[service]]") :].replace('"web"', '"web2"'),
        'service[1].port = "tcp 10.0.1.100 port 80": already used by service number 1',
    ),
    ("VIPs", GOOD + GOOD[: GOOD.index("[[service]]")], 'vip[1].address = "10.0.1.100": already used by vip number 1'),
    (
        "backends",
        GOOD + GOOD[GOOD.index("[[service.backend]]") :],
        'service[0].backend[1].name = "b1": already used by backend number 1',
    ),
]


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in REPEATED], ids=[row[0] for row in REPEATED])
def test_nothing_is_defined_twice(text: str, message: str) -> None:
    assert any(message in fault for fault in faults(text))


RING = """
[ring]
listen = ["10.0.1.1:7400", "[fd00:1::1]:7400"]
key_file = "/etc/rainlb/ring.key"
[ring.peers]
gw2 = { id = 2, addresses = ["10.0.1.2", "fd00:1::2"] }
"""


def test_a_gateways_own_address_is_no_vip() -> None:
    known = ring_addresses(parse("node", NODE + RING, "n.toml"))
    assert known == {
        "10.0.1.1": "gateway gw1 (in the ring)",
        "fd00:1::1": "gateway gw1 (in the ring)",
        "10.0.1.2": "gateway gw2 (in the ring)",
        "fd00:1::2": "gateway gw2 (in the ring)",
    }
    parse("cluster", GOOD, "f.toml", gateway_addresses=known)
    for address, name in (("10.0.1.2/24", "gw2"), ("fd00:1:0::1/64", "gw1")):
        wrong = GOOD + f'\n[[vip]]\naddress = "{address}"\nsegment = "outside"\n'
        with pytest.raises(ConfigError) as raised:
            validate.cluster_config(wrong, "f.toml", gateway_addresses=known)
        (problem,) = raised.value.problems
        assert problem["text"].startswith("f.toml:19: vip[1].address = ")
        assert f"is the own address of gateway {name} (in the ring), which nobody would reach" in problem["text"]
        assert "allowed: an address that no gateway has" in problem["text"]
    assert ring_addresses(parse("node", NODE, "n.toml")) == {}


def test_all_faults_are_told_at_once() -> None:
    assert len(faults(GOOD.replace("port = 80\n", "port = -1\n").replace('"tcp"', '"sctp"'))) == 2


HEALTH_FAULTS = [
    ('kind = "script"', "service[0].health.command = []: is empty; allowed: script needs command"),
    ('kind = "http"\npath = "x"', "is not absolute"),
    ('kind = "tcp"\ntimeout_ms = 9000', "is longer than the interval; allowed: at most 2000"),
]


@pytest.mark.parametrize(("health", "message"), HEALTH_FAULTS)
def test_health_checks_are_checked(health: str, message: str) -> None:
    text = GOOD.replace("[[service.backend]]", f"[service.health]\n{health}\n[[service.backend]]")
    assert any(message in fault for fault in faults(text))


NODE_FAULTS = [
    ("node number", NODE.replace("id = 1", "id = 256"), "node.id = 256: is out of range; allowed: at most 255"),
    ("interface twice", NODE + '[[interface]]\nname = "eth0"\nsegment = "x"\n', "already used by interface number 1"),
    (
        "peer with own number",
        NODE + '[ring]\nlisten = ["10.0.0.1"]\nkey_file = "k"\n[ring.peers]\ngw2 = {id = 1, addresses = ["10.0.0.2"]}\n',
        "ring.peers.gw2.id = 1: is the number of gw1",
    ),
    (
        "unknown key of a peer",
        NODE + '[ring]\nlisten = ["10.0.0.1"]\nkey_file = "k"\n[ring.peers.gw2]\nid = 2\nadresses = ["10.0.0.2"]\n',
        "f.toml:14: ring.peers.gw2.adresses",
    ),
    (
        "conntrack without a ring",
        NODE + "[conntrack]\nreplicate = true\n",
        "conntrack.replicate = true: has nobody to replicate to; allowed: false, or a [ring] with peers",
    ),
    ("ring address", NODE + '[ring]\nlisten = ["gw1.example"]\nkey_file = "k"\n', "is no ring address"),
    ("resource", NODE + '[[resource]]\nname = "r"\nkind = "arp"\naddress = "10.0.0.1"\n', "arp needs interface"),
    ("no interface", NODE[: NODE.index("[[interface]]")], "f.toml: interface: is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), [row[1:] for row in NODE_FAULTS], ids=[row[0] for row in NODE_FAULTS])
def test_node_file_faults(text: str, message: str) -> None:
    assert any(message in fault for fault in faults(text, "node")), faults(text, "node")


def outcome(text: str, form: Literal["toml", "json"]) -> object:
    """The configuration, or the list of its faults."""
    try:
        return parse("cluster", text, "f.toml", form=form)
    except Invalid as error:
        return error.problems


@given(st.text(max_size=200))
def test_no_text_breaks_the_validator(text: str) -> None:
    assert outcome(text, "toml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["vip", "service", "backend", "address", "port", "health", "x"]), inner, max_size=4
            )
        ),
        max_leaves=12,
    )
)
def test_no_document_breaks_the_validator(document: object) -> None:
    assert outcome(json.dumps(document), "json")


def test_addresses_get_one_spelling() -> None:
    text = GOOD.replace("10.0.1.100", "2001:DB8:0::100").replace("/24", "/64").replace("10.0.2.11", "2001:db8::0:11")
    config = parse("cluster", text, "f.toml")
    assert config.services[0].address == "2001:db8::100" == config.vips[0].host
    assert config.services[0].backends[0].address == "2001:db8::11"


def test_child_gives_values_and_faults() -> None:
    assert validate.cluster_config(GOOD, "f.toml") == parse("cluster", GOOD, "f.toml")
    node = validate.node_config(NODE, "n.toml")
    assert isinstance(node, NodeConfig)
    assert node.interfaces[0].segment == "outside"
    with pytest.raises(ConfigError, match=r"n\.toml:4: node\.nme"):
        validate.node_config(NODE.replace("name", "nme", 1), "n.toml")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        validate.read_file(tmp_path / "absent.toml")
    (tmp_path / "latin1").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not UTF-8"):
        validate.read_file(tmp_path / "latin1")


def test_values_survive_the_way_over_the_wire() -> None:
    config = parse("cluster", (EXAMPLES / "services.toml").read_text(), "services.toml")
    assert unpack(pack(config)) == config
    assert digest(config) == digest(unpack(pack(config))) != digest(replace(config, version=9))


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x81\xa4vips\x01", b"\xc1", b"\x81\xa8services\x91\x80"])
def test_bytes_that_are_no_configuration(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data)


def test_neighbouring_versions_understand_each_other() -> None:
    plain = to_plain(EMPTY)
    plain["from_the_future"] = 1
    del plain["timeouts"]
    assert from_plain(ClusterConfig, plain) == EMPTY


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.1", ("10.0.0.1", 7400)), ("10.0.0.1:9", ("10.0.0.1", 9)), ("::1", ("::1", 7400)), ("[::1]:9", ("::1", 9)), ("[::1]", ("::1", 7400))],
)  # fmt: skip
def test_ring_addresses(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address
