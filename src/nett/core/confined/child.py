"""The other side of the wall. Run by path, as a program of its own, with the standard library alone; see ``parent``.

It reads what to do from its standard input, puts up the barriers that the system allows, says which, and runs the
program two processes down: the first of its namespace, whose end is the end of all others in there, and below it one
under the limits. The program's last act is a word that only the parent knows; leaving early is not passing.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

_USER, _MOUNTS, _NETWORK, _PROCESSES, _IPC = 0x10000000, 0x20000, 0x40000000, 0x20000000, 0x8000000
_SETATTR, _HERE, _RECURSIVE = 442, -100, 0x8000  # mount_setattr(2), AT_FDCWD, AT_RECURSIVE
_PRIVATE, _REC, _BIND, _DEATH, _NO_NEW = 1 << 18, 0x4000, 4096, 1, 38
# Calls that a program has no need of: (clone, which threads may use; clone3, for which there is clone; all others).
_CALLS = {
    "x86_64": (
        0xC000003E,
        56,
        435,
        (57, 58, 59, 322, 41, 53, 101, 310, 311, 425, 321, 272, 308, 165, 166, 442, 155, 250, 62, 424),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        (221, 281, 198, 199, 117, 270, 271, 425, 280, 97, 268, 40, 39, 442, 41, 219, 129, 424),
    ),
}  # fork vfork execve execveat socket socketpair ptrace process_vm_* io_uring_setup bpf unshare setns mounts pivot_root keyctl kill pidfd_send_signal
_REFUSED = ("socket.", "subprocess.", "ctypes.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
            "pty.", "shutil.", "winreg.", "ftplib.", "smtplib.", "http.client.", "urllib.")  # fmt: skip
_WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "os.chflags", "os.setxattr", "os.removexattr")  # fmt: skip


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("spread", ctypes.c_uint64),
        ("fd", ctypes.c_uint64),
    )


def _namespaces(libc: ctypes.CDLL, folder: bytes) -> list[str]:
    """Own users, network, processes and mounts, everything but the folder read-only; what the system allows of it."""
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_USER | _MOUNTS | _NETWORK | _PROCESSES | _IPC) != 0:
        return []
    for name, text in (("setgroups", "deny"), ("uid_map", f"65534 {user} 1"), ("gid_map", f"65534 {group} 1")):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError:
            pass
    barriers = ["network", "processes"]
    closed, opened = _Attributes(1, 0, 0, 0), _Attributes(0, 1, 0, 0)
    size = ctypes.sizeof(closed)
    done = (
        libc.mount(None, b"/", None, _REC | _PRIVATE, None) == 0
        and libc.mount(folder, folder, None, _BIND, None) == 0
        and libc.syscall(_SETATTR, _HERE, b"/", _RECURSIVE, ctypes.byref(closed), size) == 0
        and libc.syscall(_SETATTR, _HERE, folder, 0, ctypes.byref(opened), size) == 0
    )
    os.chdir(folder)  # what is mounted there now
    return barriers + ["files"] * done


def _limit(given: dict[str, object]) -> None:
    seconds, memory = int(str(given["seconds"])), int(str(given["memory"]))
    for kind, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, int(str(given["file"]))),
        (resource.RLIMIT_NPROC, int(str(given["processes"]))),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def _calls(libc: ctypes.CDLL) -> bool:
    """The kernel refuses new processes, other programs and sockets (seccomp); whether it does."""
    if platform.machine() not in _CALLS:
        return False
    machine, clone, clone3, refused = _CALLS[platform.machine()]
    load, equal, has, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM, ENOSYS
    left = len(refused)
    lines = [
        (load, 0, 0, 4),
        (equal, 0, left + 6, machine),
        (load, 0, 0, 0),
        (0x35, left + 4, 0, 0x40000000),  # calls of another ABI
        (equal, 0, 1, clone3),
        (give, 0, 0, unknown),
        (equal, left + 2, 0, clone),
        *((equal, left - i, 0, number) for i, number in enumerate(refused)),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
        (load, 0, 0, 16),
        (has, 0, 1, 0x10000),  # CLONE_THREAD
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code)))
    return bool(libc.prctl(22, 2, ctypes.byref(filters), 0, 0) == 0)


def _hooks(folder: str) -> None:
    """Python's own events: no network, no other programs, no writing elsewhere. Stops accidents."""

    def outside(path: object) -> bool:
        if isinstance(path, int):
            return False
        whole = os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]
        return whole != "/dev/null" and whole != folder and not whole.startswith(folder + os.sep)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "import" and str(arguments[0]).partition(".")[0] in ("ctypes", "_ctypes", "socket", "_socket"):
            raise PermissionError(f"import {arguments[0]} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            )
            if (writes or (isinstance(mode, str) and set(mode) & set("wax+"))) and outside(path):
                raise PermissionError("writing outside of its own folder is not allowed here")
        if event.startswith(_WRITING) and any(outside(a) for a in arguments if isinstance(a, str | bytes)):
            raise PermissionError(f"{event} outside of its own folder is not allowed here")

    sys.addaudithook(look)


def _program(given: dict[str, object], barriers: list[str], libc: ctypes.CDLL, say: int) -> None:
    """Run it, and say how it ended."""
    nonce, source, folder, without = (
        str(given.pop("nonce")),
        str(given["program"]),
        str(given["folder"]),
        given["without"],
    )
    _limit(given)
    if "calls" not in str(without) and sys.platform.startswith("linux") and _calls(libc):
        barriers.append("calls")
    os.write(say, (" ".join(barriers) + "\n").encode())
    if "hooks" not in str(without):
        _hooks(folder)
    try:
        exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        text = " ".join(str(error).split())[:300] if not isinstance(error, MemoryError) else ""
        os.write(say, f"error {type(error).__name__}\n{text}\n".encode(errors="replace"))
        os._exit(1)
    os.write(say, f"{nonce}\n".encode())
    os._exit(0)


def main() -> None:
    given = json.loads(sys.stdin.buffer.read())
    say = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)
    os.closerange(max(say, null) + 1, 256)
    os.close(null)
    libc = ctypes.CDLL(None, use_errno=True)
    barriers = ["limits"] + ["hooks"] * ("hooks" not in given["without"])
    if given["nobody"] is not None:  # limits on processes do not hold for the superuser
        os.setgroups([])
        os.setresgid(given["nobody"], given["nobody"], given["nobody"])
        os.setresuid(given["nobody"], given["nobody"], given["nobody"])
        libc.prctl(4, 1, 0, 0, 0)  # dumpable again, so that its own files in /proc are its own
        barriers.append("user")
    linux = sys.platform.startswith("linux")
    if linux:
        libc.prctl(_NO_NEW, 1, 0, 0, 0)
        if "namespaces" not in given["without"]:
            barriers += _namespaces(libc, os.fsencode(given["folder"]))
    first = os.fork()
    if first == 0:
        if linux:
            libc.prctl(_DEATH, signal.SIGKILL, 0, 0, 0)
        below = os.fork()
        if below == 0:
            _program(given, barriers, libc, say)
        _, status = os.waitpid(below, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            os.write(say, b"time\n")
        os._exit(0)
    os.waitpid(first, 0)
    os._exit(0)


if __name__ == "__main__":
    main()
