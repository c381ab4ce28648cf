# SPDX-License-Identifier: Apache-2.0
"""docs/api.md, from the API's own description."""

from typing import Any

from lb.api.problems import STATUS_OF_CODE
from lb.api.routes import description

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `python -m tools.reference`; change lb/api/routes.py or shapes.py, not this file. -->
# HTTP API

JSON over HTTP on the Unix socket `<run_dir>/api.sock` (mode 0660, group `lb`), served by the process `lb-api`. It
joins what lbd knows with what it reads itself from the packet path's maps, and goes on answering from the maps while
lbd is away. The machine-readable description is at `/openapi.json`; `lbctl` and the page use nothing else.

```sh
curl --unix-socket /run/lb/api.sock http://lb/v1/status
curl --unix-socket /run/lb/api.sock -N http://lb/v1/stream
curl --unix-socket /run/lb/api.sock http://lb/metrics
```

## Who may do what

Three roles, each containing the one before: `read`, `operate` (drain, move, where, capture), `configure` (apply,
detach). On the socket the kernel tells who asks: root configures, the socket's group operates, and `[api]` in the node
file says otherwise:

```toml
[api]
group = "lb"                                  # may open the socket
access = [
  { user = "deploy", role = "configure" },
  { group = "monitoring", role = "read" },
]
listen = "192.0.2.1:8443"                     # off unless set; needs the three files
certificate_file = "/etc/rainlb/api.pem"
private_key_file = "/etc/rainlb/api.key"
tokens_file = "/etc/rainlb/tokens"            # lbctl token new /etc/rainlb/tokens --name NAME --role ROLE
allow_origins = ["https://gw1.other.example:8443"]  # pages of other clusters that may watch this one
```

Every change, and every refused one, is a line in `<state_dir>/audit.jsonl`: who, from where, what, with which outcome.

## Prometheus

`/metrics` on the TLS listener, with a token of the role `read`; one job per cluster:

```yaml
scrape_configs:
  - job_name: my-cluster
    scheme: https
    authorization: {credentials_file: /etc/prometheus/rainlb.token}
    static_configs: [{targets: ["gw1.example:8443", "gw2.example:8443", "gw3.example:8443"]}]
rule_files: [rainlb.rules.yml]   # docs/alerts/rainlb.rules.yml
```

The dashboard is `docs/grafana/rainlb.json`.

## Changing the configuration

`GET /v1/config` gives the version as ETag; `PUT /v1/config` must name it in `If-Match`. If somebody else was faster the
answer is 412 `version_mismatch` and nothing is changed. `POST /v1/config/diff` tells what would change.

## Live stream

`GET /v1/stream` sends server-sent events. `status`, `nodes`, `vips`, `services`, `backends` and `counters` carry the
whole state of their kind, at first and whenever it changes (at most about once a second, at once after an event);
`event` is an entry of the event journal; `link` says whether lbd answers; `lost` says how many events a client that
reads too slowly has missed.

## Errors

Every answer that is no success is `{"code", "message", "field"?, "remedy"?}`. `code` is for programs:

| code | HTTP status |
|---|---|
"""


def api_markdown() -> str:
    """The whole of docs/api.md."""
    described = description()
    parts = [HEAD.rstrip()]
    parts += [f"| `{code}` | {status.value} |" for code, status in STATUS_OF_CODE.items()]
    parts.append("\n## Calls\n")
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation_markdown(method, path, operation))
    parts.append("## Answers and bodies\n")
    parts += [_schema_markdown(name, schema) for name, schema in sorted(described["components"]["schemas"].items())]
    return "\n".join(parts).rstrip() + "\n"


def _operation_markdown(method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [f"### {method.upper()} {path}\n", f"{operation['summary']}. {operation['description']}\n"]
    rows = [
        f"| `{each['name']}` | {each['in']} | {_type(each['schema'])} | {_text(each)} |"
        for each in operation["parameters"]
    ]
    if rows:
        lines += ["| parameter | in | type | |\n|---|---|---|---|", *rows, ""]
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines.append("Body: " + ", ".join(f"`{media}` {_type(each['schema'])}" for media, each in body.items()) + ".")
    for media, each in operation["responses"]["200"]["content"].items():
        lines.append(f"Answer: `{media}` {_type(each['schema'])}.\n")
    return "\n".join(lines)


def _text(thing: dict[str, Any]) -> str:
    text = thing.get("description") or thing["schema"].get("description", "")
    default = thing["schema"].get("default")
    return text if default is None else f"{text} Default: `{default}`.".strip()


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema or "const" in schema:
        return " \\| ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(each) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type", "anything"))


def _schema_markdown(name: str, schema: dict[str, Any]) -> str:
    lines = [f"### {name}\n"]
    if schema.get("description"):
        lines.append(schema["description"] + "\n")
    needed = set(schema.get("required", []))
    rows = [
        f"| `{field}`{'' if field in needed else ' (optional)'} | {_type(each)} | {each.get('description', '')} |"
        for field, each in schema.get("properties", {}).items()
    ]
    return "\n".join([*lines, "| field | type | |\n|---|---|---|", *rows, ""])
