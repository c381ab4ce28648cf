# SPDX-License-Identifier: Apache-2.0
"""Many messages of a netlink socket with one system call."""

import ctypes
import errno
import os
import socket

import numpy as np
import numpy.typing as npt

# struct mmsghdr and struct iovec of a 64-bit machine.
_MESSAGE = np.dtype(
    {
        "names": ["vector", "vector_length", "flags", "length"],
        "formats": ["u8", "u8", "i4", "u4"],
        "offsets": [16, 24, 48, 56],
        "itemsize": 64,
    }
)
_VECTOR = np.dtype([("base", "u8"), ("length", "u8")])
# Whoever reads a message by 64-bit words may read beyond its end.
_MARGIN_BYTES = 8
_LIBC = ctypes.CDLL(None, use_errno=True)


class Mailbox:
    """Up to `count` messages at a time, `size` bytes of each: the rest of a longer one is lost (and it is left out)."""

    def __init__(self, opened: socket.socket, count: int, size: int) -> None:
        self._socket = opened
        self.count = count
        self.size = size
        self.buffer = np.zeros(count * size + _MARGIN_BYTES, np.uint8)
        self._vectors = np.zeros(count, _VECTOR)
        self._messages = np.zeros(count, _MESSAGE)
        numbers = np.arange(count, dtype=np.uint64)
        self._starts = np.arange(count, dtype=np.intp) * size
        self._vectors["base"] = np.uint64(self.buffer.ctypes.data) + numbers * np.uint64(size)
        self._vectors["length"] = size
        self._messages["vector"] = np.uint64(self._vectors.ctypes.data) + numbers * np.uint64(_VECTOR.itemsize)
        self._messages["vector_length"] = 1

    def receive(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], int]:
        """What is there: where in `buffer` each whole message begins, how long it is, and how many there were.

        Does not wait. Raises OSError, ENOBUFS once for each time the socket's own buffer was full.
        """
        count = _LIBC.recvmmsg(
            self._socket.fileno(), ctypes.c_void_p(self._messages.ctypes.data), self.count, socket.MSG_DONTWAIT, None
        )
        if count < 0:
            number = ctypes.get_errno()
            if number not in (errno.EAGAIN, errno.EINTR):
                raise OSError(number, os.strerror(number))
            count = 0
        arrived = self._messages[:count]
        whole = (arrived["flags"] & int(socket.MSG_TRUNC)) == 0
        return self._starts[:count][whole], arrived["length"][whole].astype(np.intp), count
