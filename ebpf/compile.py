# SPDX-License-Identifier: Apache-2.0
"""Compiles the packet path with BCC, has the kernel verify it, pins it, and exits: the only module that imports bcc.

A child process of the loader, because LLVM would cost a daemon more than 100 MB. Prints one JSON object: on success
``{"programs": [...], "seconds": s}``, otherwise ``{"error": cause, "text": details}`` with exit status 1.

Kernel headers are not needed: BCC is given a small tree made of the UAPI headers of linux-libc-dev, the same on every
host, whatever kernel runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

from ebpf import layout, libbpf

SOURCE_DIRECTORY = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "(\w+\.h)"$')
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
_CLOCK_MONOTONIC_COARSE = 6  # linux/time.h; the time module does not name it
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


def assemble(name: str, seen: set[str] | None = None) -> str:
    """One source text: BCC rewrites map calls in the main file only, so our own headers are put in their place."""
    seen = set() if seen is None else seen
    seen.add(name)
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((SOURCE_DIRECTORY / name).read_text().splitlines(), 1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append(line)
        elif include[1] not in seen:
            lines.append(assemble(include[1], seen))
            lines.append(f'#line {number + 1} "{name}"')
    return "\n".join(lines)


def source(name: str, maps_directory: Path) -> str:
    """The whole text of a program: pin path, source, layout assertions."""
    text = assemble(name)
    assertions = layout.static_assertions() if '#line 1 "layout.h"' in text else ""
    return f'#define PIN_DIRECTORY "{maps_directory}/"\n{text}\n{assertions}'


def jiffies_per_second() -> int:
    """CONFIG_HZ of the running kernel: the coarse clock advances once a tick."""
    return round(1 / time.clock_getres(_CLOCK_MONOTONIC_COARSE))


def program_names(text: str) -> list[str]:
    """The XDP programs of a source, entry first: every function marked STEP(name)."""
    return re.findall(r"^STEP\((\w+)\)", text, re.MULTILINE)


def _load(text: str, programs: Path) -> list[str]:
    from bcc import BPF

    os.environ.setdefault("BCC_KERNEL_SOURCE", "")
    module: Any = BPF(
        text=text,
        cflags=[
            "-Wno-macro-redefined",
            "-Wno-unused-function",
            f"-DCONFIG_HZ={jiffies_per_second()}",
            f"-DCPU_COUNT={libbpf.cpu_count_possible()}",
        ],
    )
    names = program_names(text)
    steps = module["steps"] if len(names) > 1 else None
    for index, name in enumerate(names):
        function = module.load_func(name, BPF.XDP)
        if steps is not None:
            key, value = steps.Key(index), steps.Leaf(function.fd)
            libbpf.update(steps.map_fd, _address(key), _address(value))
        libbpf.object_pin(function.fd, programs / name)
    if steps is not None:
        # Tail calls end when the last reference to their table goes: the pin is that reference.
        libbpf.object_pin(steps.map_fd, programs / "steps")
    return names


def _address(value: Any) -> int:
    import ctypes

    return ctypes.addressof(value)


def compile_and_pin(name: str, maps_directory: Path, programs: Path) -> list[str]:
    """Compiles ``name``, loads each of its programs and pins them in ``programs``; returns their names."""
    with tempfile.TemporaryDirectory(prefix="rainlb-headers-") as headers:
        write_header_tree(Path(headers))
        os.environ["BCC_KERNEL_SOURCE"] = headers
        return _load(source(name, maps_directory), programs)


def main() -> int:
    """The child process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", default="xdp_lb.c")
    parser.add_argument("--maps", type=Path, required=True)
    parser.add_argument("--programs", type=Path, required=True)
    options = parser.parse_args()
    begin = time.monotonic()
    try:
        names = compile_and_pin(options.source, options.maps, options.programs)
    except ImportError as error:
        print(json.dumps({"error": "bcc-missing", "text": str(error)}))
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        print(json.dumps({"error": "environment", "text": str(error)}))
        return 1
    except Exception as error:
        # BCC raises bare Exception for what it cannot compile or the kernel refuses; the details are on stderr.
        print(json.dumps({"error": "refused", "text": str(error)}))
        return 1
    print(json.dumps({"programs": names, "seconds": round(time.monotonic() - begin, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
