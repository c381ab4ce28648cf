# SPDX-License-Identifier: Apache-2.0
"""The command line: all commands, the global options, and one way to end with an error."""

import sys
from typing import Annotated

import typer

from tools.lbctl import change, keys, live, local, look, session, support
from tools.lbctl.client import ApiError
from tools.lbctl.exits import MEANING, OF_CODE, Exit

EXIT_TEXT = "Exit codes: " + "; ".join(f"{code.value} {text}" for code, text in MEANING.items()) + "."

app = typer.Typer(
    name="lbctl",
    help="Look at and operate a rainlb gateway and its cluster.",
    epilog=EXIT_TEXT,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    socket: Annotated[
        str | None, typer.Option(help="Unix socket of the API (LBCTL_SOCKET).", show_default="/run/lb/api.sock")
    ] = None,
    url: Annotated[str | None, typer.Option(help="https://HOST:PORT of a gateway's TLS listener (LBCTL_URL).")] = None,
    token_file: Annotated[str | None, typer.Option(help="File with the token for --url (LBCTL_TOKEN_FILE).")] = None,
    ca_file: Annotated[str | None, typer.Option(help="Certificate authority for --url.")] = None,
) -> None:
    """Look at and operate a rainlb gateway and its cluster."""
    session.choose(socket, url, token_file, ca_file)


LOOK = (look.status, look.nodes, look.vips, look.services, look.backends, look.conns, look.counters, look.where)
LOOK_ON = (look.events, live.watch, live.top, look.config, look.metrics)
CHANGE = (change.drain, change.undrain, change.weight, change.apply)
TROUBLE = (support.doctor, support.capture, support.report, change.detach, local.page)

for command in (*LOOK, *LOOK_ON, *CHANGE, *TROUBLE):
    app.command()(command)
app.add_typer(change.vip, name="vip")
app.add_typer(change.node, name="node")
app.add_typer(local.token, name="token")
app.add_typer(keys.key, name="key")


def main() -> None:
    """Entry point; see tools.lbctl.exits for the exit codes."""
    try:
        app()
    except ApiError as error:
        _complain(error)
        sys.exit(OF_CODE.get(error.code, Exit.FAILED))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # the reader (head, less) has seen enough
        sys.stderr.close()
        sys.exit(Exit.OK)


def _complain(error: ApiError) -> None:
    print(f"lbctl: {error.message}", file=sys.stderr)
    if error.field:
        print(f"  field: {error.field}", file=sys.stderr)
    if error.remedy:
        print(f"  {error.remedy}", file=sys.stderr)


if __name__ == "__main__":
    main()
