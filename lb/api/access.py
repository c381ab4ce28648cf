# SPDX-License-Identifier: Apache-2.0
"""Who is asking, and what they may do.

Three roles, each containing the one before: read, operate (drain, move, capture), configure (apply, detach). On the
Unix socket the kernel says who the peer is (SO_PEERCRED, SO_PEERGROUPS); on the TLS listener a bearer token does.
"""

import errno
import grp
import hashlib
import hmac
import os
import pwd
import socket
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.api.problems import ApiProblem
from lb.api.settings import Access, SettingsError
from lb.api.shapes import Role

# Not in Python's socket module; include/uapi/asm-generic/socket.h, since Linux 4.13.
SO_PEERGROUPS = 59
# The most Python's getsockopt takes: 256 groups.
PEER_GROUPS_BYTES = 1024
TOKENS_MAX = 4096
RANK: dict[Role, int] = {"read": 0, "operate": 1, "configure": 2}


@dataclass(frozen=True)
class Peer:
    """The process at the other end of a Unix socket, as the kernel vouches for it."""

    pid: int
    uid: int
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Identity:
    """An authenticated caller. who and origin go into events and the audit log."""

    who: str
    origin: str
    role: Role

    def as_caller(self) -> dict[str, str]:
        return {"who": self.who, "origin": self.origin, "role": self.role}


def peer_of(connection: socket.socket) -> Peer:
    """Credentials of a connected Unix socket's peer, taken when it connected."""
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(pid, uid, (gid, *_peer_groups(connection, uid, gid)))


def _peer_groups(connection: socket.socket, uid: int, gid: int) -> tuple[int, ...]:
    try:
        packed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, PEER_GROUPS_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        # More groups than fit: ask the user database, as the login that gave the process its groups did.
        return tuple(os.getgrouplist(user_name(uid), gid))
    return struct.unpack(f"{len(packed) // 4}I", packed)


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _group_id(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def role_of(peer: Peer, rules: Sequence[Access], socket_group: str) -> Role:
    """The highest role any rule gives; root configures; whoever may open the socket reads at least."""
    if peer.uid == 0:
        return "configure"
    name = user_name(peer.uid)
    roles: list[Role] = ["read"]
    roles += [rule.role for rule in rules if rule.user == name or (rule.group and _group_id(rule.group) in peer.groups)]
    if not any(rule.group == socket_group for rule in rules) and _group_id(socket_group) in peer.groups:
        roles.append("operate")
    return max(roles, key=RANK.__getitem__)


def identify_peer(peer: Peer, rules: Sequence[Access], socket_group: str) -> Identity:
    return Identity(user_name(peer.uid), f"local pid {peer.pid}", role_of(peer, rules, socket_group))


@dataclass(frozen=True)
class Token:
    role: Role
    name: str
    digest: bytes


def load_tokens(path: Path) -> list[Token]:
    """Tokens from lines of `role:name:sha256hex`; '#' starts a comment. Raises SettingsError, also for loose modes."""
    try:
        mode = path.stat().st_mode
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        raise SettingsError(f"{path}: mode {stat.S_IMODE(mode):04o} lets others in: chmod 0600 {path}")
    return [_parse_token(path, number, line) for number, line in enumerate(lines, 1) if line.split("#")[0].strip()][
        :TOKENS_MAX
    ]


def _parse_token(path: Path, number: int, line: str) -> Token:
    role, _, rest = line.split("#")[0].strip().partition(":")
    name, _, digest = rest.partition(":")
    if role not in RANK or not name or len(digest) != 64:
        raise SettingsError(f"{path}:{number}: expected role:name:sha256hex with a role of {', '.join(RANK)}")
    try:
        return Token(role, name, bytes.fromhex(digest))
    except ValueError as error:
        raise SettingsError(f"{path}:{number}: the digest is not hexadecimal") from error


def identify_token(authorization: str, tokens: Sequence[Token], origin: str) -> Identity:
    """The caller behind an Authorization header. Raises ApiProblem(unauthenticated)."""
    scheme, _, secret = authorization.partition(" ")
    digest = hashlib.sha256(secret.strip().encode()).digest()
    # Every token is compared, so that the time taken tells nothing of which one nearly matched.
    matching = [token for token in tokens if hmac.compare_digest(token.digest, digest)]
    if scheme.lower() != "bearer" or not matching:
        raise ApiProblem("unauthenticated", "no valid token", remedy="send 'Authorization: Bearer TOKEN'")
    return Identity(matching[0].name, origin, matching[0].role)


def require(identity: Identity, needed: Role) -> None:
    """Raises ApiProblem(denied) if identity's role is below needed."""
    if RANK[identity.role] < RANK[needed]:
        raise ApiProblem(
            "denied",
            f"{identity.who} has the role '{identity.role}', this needs '{needed}'",
            remedy=f'add {{ user = "{identity.who}", role = "{needed}" }} to [api] access in the node file',
        )
