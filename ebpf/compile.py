# SPDX-License-Identifier: Apache-2.0
"""Compiles a program with BCC and exits: the only module that imports bcc.

A child process of the loader, because LLVM would cost a daemon more than 100 MB. Prints one JSON object: on success
the compiled module (ebpf/bytecode.py), otherwise ``{"error": cause, "text": details}`` with exit status 1.

Kernel headers are not needed: BCC is given a small tree made of the UAPI headers of linux-libc-dev, the same on every
host, whatever kernel runs.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import platform
import re
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from ebpf import libbpf, source
from ebpf.bytecode import Module, OwnMap, map_references

COMPILER_NICENESS = 10
_UAPI = Path("/usr/include")

_KCONFIG = """#define CONFIG_BPF_SYSCALL 1
#define CONFIG_64BIT 1
#define __LINUX_BPF_H__ /* BCC includes its own copy of linux/bpf.h */
#define KERNEL_VERSION(a,b,c) (((a)<<16)+((b)<<8)+((c)>255?255:(c)))
"""
_TYPES = """#ifndef RAINLB_TYPES_H
#define RAINLB_TYPES_H
#include <uapi/linux/types.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef _Bool bool;
#define true 1
#define false 0
typedef __kernel_size_t size_t;
typedef __kernel_ssize_t ssize_t;
typedef int pid_t;
typedef unsigned long uintptr_t;
typedef __u8 uint8_t; typedef __u16 uint16_t; typedef __u32 uint32_t; typedef __u64 uint64_t;
typedef __s8 int8_t; typedef __s16 int16_t; typedef __s32 int32_t; typedef __s64 int64_t;
#ifndef NULL
#define NULL ((void*)0)
#endif
#undef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
"""
_SOCKET = "struct sockaddr { unsigned short sa_family; char sa_data[14]; };\n"


def _kernel_version_code(release: str) -> int:
    numbers = [int(n) for n in re.findall(r"\d+", release)[:3]] + [0, 0, 0]
    return numbers[0] * 65536 + numbers[1] * 256 + min(numbers[2], 255)


def write_header_tree(directory: Path) -> None:
    """The "kernel source" for BCC: links to the UAPI headers and the few internal ones that BCC includes."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    asm = next((path for path in (_UAPI / multiarch / "asm", _UAPI / "asm") if path.is_dir()), None)
    if asm is None or not (_UAPI / "linux/if_ether.h").exists():
        raise FileNotFoundError("UAPI headers are missing: install the package linux-libc-dev")
    include = directory / "include"
    links = {"linux": _UAPI / "linux", "asm-generic": _UAPI / "asm-generic", "asm": asm}
    (include / "uapi").mkdir(parents=True)
    for name, target in links.items():
        (include / "uapi" / name).symlink_to(target)
    files = {
        "linux/kconfig.h": _KCONFIG,
        "linux/version.h": f"#define LINUX_VERSION_CODE {_kernel_version_code(platform.release())}\n",
        "linux/types.h": _TYPES,
        "linux/log2.h": "",
        "asm/page.h": "#define PAGE_SIZE 4096\n",
        "sys/socket.h": _SOCKET,
    }
    for name, text in files.items():
        path = include / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def _map_names(module: Any) -> dict[int, str]:
    from bcc.libbcc import lib

    # BCC's Python does not declare these two; as ints their pointers would be cut.
    lib.bpf_num_tables.argtypes, lib.bpf_num_tables.restype = [ctypes.c_void_p], ctypes.c_size_t
    lib.bpf_table_name.argtypes, lib.bpf_table_name.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_char_p
    handle = module.module
    names = [lib.bpf_table_name(handle, index) for index in range(lib.bpf_num_tables(handle))]
    return {lib.bpf_table_fd(handle, name): name.decode() for name in names}


def _own_map(fd: int) -> OwnMap:
    info = libbpf.map_info(fd)
    return OwnMap(info.type, info.key_size, info.value_size, info.max_entries, info.flags)


def _compile(text: str, maps_directory: Path) -> Module:
    from bcc import BPF

    module: Any = BPF(text=text, cflags=["-Wno-macro-redefined", "-Wno-unused-function", *source.flags()])
    names = _map_names(module)
    programs, references = {}, {}
    for name in source.program_names(text):
        instructions = module.dump_func(name)
        programs[name] = base64.b64encode(instructions).decode()
        references[name] = map_references(instructions, names)
    own = {name: _own_map(fd) for fd, name in names.items() if not (maps_directory / name).exists()}
    return Module(programs, references, own)


def compile_source(name: str, maps_directory: Path) -> Module:
    """Compiles ``name`` against the pinned maps of a node; the kernel sees nothing of it yet."""
    with tempfile.TemporaryDirectory(prefix="rainlb-headers-") as headers:
        write_header_tree(Path(headers))
        os.environ["BCC_KERNEL_SOURCE"] = headers
        return _compile(source.source(name, maps_directory), maps_directory)


def main() -> int:
    """The child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="xdp_lb.c")
    parser.add_argument("--maps", type=Path, required=True)
    options = parser.parse_args()
    # A gateway may be forwarding beside this: the compiler takes what is left.
    os.nice(COMPILER_NICENESS)
    try:
        module = compile_source(options.source, options.maps)
    except ImportError as error:
        print(json.dumps({"error": "bcc-missing", "text": str(error)}))
        return 1
    except OSError as error:
        print(json.dumps({"error": "environment", "text": str(error)}))
        return 1
    except Exception as error:
        # BCC raises bare Exception for what it cannot compile; the details are on stderr.
        print(json.dumps({"error": "refused", "text": str(error)}))
        return 1
    print(module.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
