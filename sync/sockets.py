# SPDX-License-Identifier: Apache-2.0
"""UDP sockets for the transport, one a link, with segmentation and receive offload where the kernel has them.

A burst leaves with one call (UDP_SEGMENT) and arrives in one piece (UDP_GRO), so sendmmsg and recvmmsg would have
nothing left to collect: what remains is a token and an acknowledgement to different peers, for which they save
nothing measurable.

Datagrams carry "don't fragment", and what ICMP says about the path's MTU is not believed (IP_PMTUDISC_PROBE): anyone
can forge it. The transport finds out by itself when large datagrams do not get through.
"""

import errno
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Callable
from typing import Final

from sync.memory import keep_freed_memory
from sync.transport import DATAGRAM_MIN, Transmit
from sync.transport.wire import BURST_LENGTH_MAX, Buffer

SocketAddress = tuple[str, int] | tuple[str, int, int, int]
Sink = Callable[[int, SocketAddress, memoryview, int], None]

READ_MAX: Final = 64  # datagrams (or bursts) taken from one link before the others get their turn
ERRORS_MAX: Final = 16  # ICMP errors taken at once
BUFFER_BYTES: Final = 8 * 1024 * 1024
PORT_DEFAULT: Final = 7400
UDP_HEADER: Final = 8

# Linux's <linux/udp.h>, <linux/in.h>, <linux/in6.h>, <asm/socket.h>; Python 3.11 does not name them.
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
_IP_MTU_DISCOVER: Final = 10
_IP_RECVERR: Final = 11
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_IPV6_RECVERR: Final = 25
_PMTUDISC_PROBE: Final = 3
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

_TRUNCATED: Final = int(socket.MSG_TRUNC)  # a plain number: the enum's operators are slow
_SEGMENT_SIZE: Final = struct.Struct("=H")
_GRO_SIZE: Final = struct.Struct("=i")
_GRO_SPACE: Final = socket.CMSG_SPACE(_GRO_SIZE.size)
_ERROR_SPACE: Final = 512


class AddressError(ValueError):
    """An address that cannot be understood; the text says what is expected."""


def parse_address(text: str) -> SocketAddress:
    """The socket address of "10.0.0.1:7400", "[2001:db8::1]:7400" or "[fe80::1%eth0]:7400"; without port, 7400."""
    host, port = text, str(PORT_DEFAULT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else (port if not rest else "")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port)
        ipaddress.ip_address(host)
        if not 1 <= number <= 65535:
            raise ValueError
        found = socket.getaddrinfo(host, number, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST)[0][4]
    except (ValueError, OSError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise AddressError(
            f"address {text!r} is not understood{reason}; write 10.0.0.1:7400, [2001:db8::1]:7400 or, "
            "for link-local ones, [fe80::1%eth0]:7400"
        ) from None
    return (str(found[0]), int(found[1])) if len(found) == 2 else (str(found[0]), int(found[1]), 0, int(found[3]))


def family_of(address: SocketAddress) -> socket.AddressFamily:
    return socket.AF_INET if len(address) == 2 else socket.AF_INET6


def datagram_max(local: SocketAddress, peer: SocketAddress) -> int:
    """Bytes of the largest datagram that leaves towards the peer unfragmented, by the MTU of the route."""
    v4 = len(local) == 2
    with socket.socket(family_of(local), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((local[0], 0, *local[2:]))
            probe.connect(peer)
            mtu = probe.getsockopt(socket.IPPROTO_IP if v4 else socket.IPPROTO_IPV6, _IP_MTU if v4 else _IPV6_MTU)
        except OSError:
            mtu = 1500  # no route yet; the transport cuts smaller if this turns out too much
    room = mtu - (20 if v4 else 40) - UDP_HEADER
    return max(DATAGRAM_MIN, min(room, BURST_LENGTH_MAX))


# What the kernel makes of ICMP errors (icmp(7), icmp6_err_convert).
ICMP_ERRORS: Final = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENOPROTOOPT, errno.EPROTO,
     errno.EACCES, errno.ENONET, errno.EOPNOTSUPP}
)  # fmt: skip


class UdpLink:
    """One bound UDP socket. `counts` has what was sent, received, shed and refused, by name."""

    def __init__(self, index: int, local: SocketAddress, *, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.index = index
        self.local = local
        self.counts: Counter[str] = Counter()
        self.icmp_pending = False  # an error has come from the network: see `refused`
        self._v4 = len(local) == 2
        self._socket = socket.socket(family_of(local), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self.segmentation, self.receive_offload = self._set_options(buffer_bytes)
            self._socket.bind(local)
        except OSError as error:
            self._socket.close()
            raise OSError(
                error.errno,
                f"cannot listen on {local[0]} port {local[1]}: {error.strerror}; is the address on an "
                "interface of this host, and the port free?",
            ) from None
        self._buffer = bytearray(65536)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    @property
    def buffer_bytes(self) -> tuple[int, int]:
        """(receive, send) buffer bytes granted by the kernel."""
        granted = self._socket.getsockopt
        return granted(socket.SOL_SOCKET, socket.SO_RCVBUF), granted(socket.SOL_SOCKET, socket.SO_SNDBUF)

    def send(self, address: SocketAddress, data: Buffer, segment_size: int) -> None:
        """Send one datagram, or a burst. What the kernel does not take is counted and lost, as on any network."""
        try:
            self._send(address, data, segment_size)
        except OSError as error:
            if error.errno not in ICMP_ERRORS:
                self._on_send_error(error, address, data, segment_size)
            else:
                self._send_after_all(address, data, segment_size)

    def _send(self, address: SocketAddress, data: Buffer, segment_size: int) -> None:
        if segment_size == 0 or len(data) <= segment_size:
            self._socket.sendto(data, address)
        elif self.segmentation:
            control = (socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT_SIZE.pack(segment_size))
            self._socket.sendmsg((data,), (control,), 0, address)
        else:
            self._send_split(address, data, segment_size)

    def _send_after_all(self, address: SocketAddress, data: Buffer, segment_size: int) -> None:
        """The kernel reports an ICMP error about an earlier datagram at the next call, whoever that is for: what goes
        to a living peer must not be lost because another one is dead."""
        self.icmp_pending = True
        self.counts["send_again"] += 1
        try:
            self._send(address, data, segment_size)
        except OSError as error:
            self._on_send_error(error, address, data, segment_size)

    def read(self, sink: Sink, limit: int = READ_MAX) -> int:
        """Give what has arrived, up to `limit` datagrams or bursts, to `sink(link, source, data, segment_size)`; how
        many they were."""
        receive, buffer, view, index = self._socket.recvmsg_into, [self._buffer], self._view, self.index
        for count in range(limit):
            try:
                length, control, flags, source = receive(buffer, _GRO_SPACE)
            except BlockingIOError:
                return count
            except OSError as error:
                self.icmp_pending = True
                self.counts["receive_" + errno.errorcode.get(error.errno or 0, "error").lower()] += 1
                continue
            if flags & _TRUNCATED:
                self.counts["truncated"] += 1
                continue
            segment_size = _GRO_SIZE.unpack(control[0][2])[0] if control else 0
            sink(index, source, view[:length], segment_size)
        return limit

    def refused(self) -> list[SocketAddress]:
        """The addresses at which, according to ICMP errors that have come, nobody listens."""
        self.icmp_pending = False
        addresses: list[SocketAddress] = []
        for _ in range(ERRORS_MAX):
            try:
                _, _, _, address = self._socket.recvmsg(0, _ERROR_SPACE, socket.MSG_ERRQUEUE)
            except OSError:
                break
            self.counts["icmp_errors"] += 1
            addresses.append(address)
        return addresses

    def _set_options(self, buffer_bytes: int) -> tuple[bool, bool]:
        option = self._socket.setsockopt
        if self._v4:
            option(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            option(socket.IPPROTO_IP, _IP_RECVERR, 1)
        else:
            option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            option(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            option(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
        for forced, plain in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                option(socket.SOL_SOCKET, forced, buffer_bytes)
            except PermissionError:
                option(socket.SOL_SOCKET, plain, buffer_bytes)
        return self._try_option(_UDP_SEGMENT, 0), self._try_option(_UDP_GRO, 1)

    def _try_option(self, name: int, value: int) -> bool:
        try:
            self._socket.setsockopt(socket.IPPROTO_UDP, name, value)
        except OSError:
            return False
        return True

    def _send_split(self, address: SocketAddress, data: Buffer, segment_size: int) -> None:
        view = memoryview(data)
        for at in range(0, len(view), segment_size):
            self._socket.sendto(view[at : at + segment_size], address)

    def _on_send_error(self, error: OSError, address: SocketAddress, data: Buffer, segment_size: int) -> None:
        code = error.errno or 0
        burst = 0 < segment_size < len(data)
        if burst and self.segmentation and code in (errno.EIO, errno.EINVAL, errno.EOPNOTSUPP):
            # The device cannot fill in checksums of a burst (kernels before 6.11): cut it here from now on.
            self.segmentation = False
            self.send(address, data, segment_size)
            return
        self.icmp_pending = True
        self.counts["send_" + errno.errorcode.get(code, "error").lower()] += 1


class Sockets:
    """All links of a node, in the order of their index. Makes the process ready for bulk traffic: see `sync.memory`."""

    def __init__(self, locals_: list[SocketAddress], *, buffer_bytes: int = BUFFER_BYTES) -> None:
        keep_freed_memory()
        self.links: list[UdpLink] = []
        try:
            for index, local in enumerate(locals_):
                self.links.append(UdpLink(index, local, buffer_bytes=buffer_bytes))
        except OSError:
            self.close()
            raise

    def transmit(self, effect: Transmit) -> None:
        """Carry out a Transmit effect; its address is a socket address."""
        self.links[effect.link].send(effect.address, effect.data, effect.segment_size)  # type: ignore[arg-type]

    def close(self) -> None:
        for link in self.links:
            link.close()
