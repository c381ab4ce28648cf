# SPDX-License-Identifier: Apache-2.0
"""What runs in a lab: web servers and echo servers on the backends, the daemon on the gateways."""

import os
import random
import sys
from hashlib import sha256
from pathlib import Path

from netlab import bird
from netlab.topology import (
    CROSS_FAMILY_HTTP_PORT,
    FAMILIES,
    HTTP_PORT,
    LOCAL_HTTP_PORT,
    Node,
    Topology,
)

LAB_ROOT = Path(__file__).resolve().parents[1]
PROJECT_ROOT = LAB_ROOT.parent
# Where the interpreter's own scripts are: lbd and lbctl of this installation.
SCRIPTS = Path(sys.executable).parent
CONTENT_BLOCK = 1 << 20

NGINX_TEMPLATE = """\
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {own}/nginx.pid;
error_log {own}/nginx-error.log;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  sendfile on;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  client_body_temp_path {own}/body;
  proxy_temp_path {own}/unused;
  fastcgi_temp_path {own}/unused;
  uwsgi_temp_path {own}/unused;
  scgi_temp_path {own}/unused;
  server {{
    {listen}
    add_header X-Backend {name} always;
    location / {{ return 200 "{name}\\n"; }}
    location /file/ {{ alias {content}/; }}
    location /upload/ {{
      root {own};
      client_max_body_size 0;
      dav_methods PUT;
      create_full_put_path on;
    }}
  }}
}}
"""


def environment() -> dict[str, str]:
    """So that the lab's own programs find their modules, and lbctl and lbd are found by name."""
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return {"PATH": f"{SCRIPTS}:{path}", "PYTHONPATH": f"{LAB_ROOT}:{PROJECT_ROOT}"}


def whole_environment(environment: dict[str, str]) -> dict[str, str]:
    """These variables over this process's own, which a child has no use for pytest's of."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return own | environment


def gateway_environment(directory: Path, node: str) -> dict[str, str]:
    """Makes `lbctl` speak to this gateway's daemon, as on a host where there is only one."""
    return {**environment(), "LBCTL_SOCKET": str(directory / node / "run" / "api.sock")}


def http_ports(node: Node) -> list[int]:
    return [LOCAL_HTTP_PORT] if node.role == "gateway" else [HTTP_PORT, CROSS_FAMILY_HTTP_PORT]


def nginx_command(directory: Path, node: Node) -> list[str]:
    """Writes the configuration of a node's web server; the command that runs it in the foreground."""
    own = directory / node.name
    for part in ("body", "upload", "unused"):
        (own / part).mkdir(parents=True, exist_ok=True)
        # The worker gives up root; what it writes to must be its own.
        (own / part).chmod(0o777)
    listen = " ".join(f"listen {port} backlog=8192; listen [::]:{port} backlog=8192;" for port in http_ports(node))
    text = NGINX_TEMPLATE.format(own=own, name=node.name, listen=listen, content=directory / "content")
    path = own / "nginx.conf"
    path.write_text(text)
    return ["nginx", "-c", str(path), "-e", str(own / "nginx-error.log")]


def endpoint_command(node: Node) -> list[str]:
    """Echo and push on every address the node is asked at."""
    addresses = [i.segment.address(i.host, family) for i in node.interfaces for family in FAMILIES]
    addresses += [address.partition("/")[0] for address in node.loopback]
    options = [word for address in addresses for word in ("--address", address)]
    return [sys.executable, "-m", "netlab.traffic.endpoint", "--name", node.name, *options]


def daemon_command(directory: Path, node: Node) -> list[str]:
    return [str(SCRIPTS / "lbd"), "--config", str(directory / node.name / "node.toml")]


def removal_command(directory: Path, node: Node) -> list[str]:
    """Takes out of a gateway's kernel whatever a daemon has put there."""
    return [*daemon_command(directory, node), "--remove"]


def commands(directory: Path, topology: Topology) -> dict[str, tuple[Node, list[str]]]:
    """ "node/service" → what to run there, the gateways' daemon excepted."""
    wanted: dict[str, tuple[Node, list[str]]] = {}
    gateways_serve = any(service.forward == "local" for service in topology.services)
    for node in topology.nodes:
        if node.role == "backend" or (node.role == "gateway" and gateways_serve):
            wanted[f"{node.name}/nginx"] = (node, nginx_command(directory, node))
        if node.role == "backend":
            wanted[f"{node.name}/endpoint"] = (node, endpoint_command(node))
        if node.routing_as:
            wanted[f"{node.name}/bird"] = (node, bird.command(directory, topology, node))
    return wanted


def make_content(directory: Path, name: str, size: int) -> str:
    """A file every backend serves below /file/, different in every block; its SHA-256 in hex.

    The same name and size give the same content in every lab; a file that is there already is kept.
    """
    content = directory / "content"
    content.mkdir(exist_ok=True)
    path = content / name
    digest = sha256()
    if path.exists() and path.stat().st_size == size:
        digest.update(path.read_bytes())
        return digest.hexdigest()
    generator = random.Random(f"{name}/{size}")
    with path.open("wb") as output:
        for start in range(0, size, CONTENT_BLOCK):
            block = generator.randbytes(min(CONTENT_BLOCK, size - start))
            digest.update(block)
            output.write(block)
    return digest.hexdigest()
