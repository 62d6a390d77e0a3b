"""What the process that opens strangers' files must not have: a network, core dumps, a life after its parent's.

Imported before bpy, while the process has one thread: a user namespace cannot be entered with more.
"""

import contextlib
import ctypes
import os
import resource
import signal

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h

libc = ctypes.CDLL(None)


def confine():
    """Returns whether the network is gone. Where the system allows no namespace it stays, and `doctor` says so."""
    alone = libc.unshare(CLONE_NEWNET) == 0 or _as_oneself_elsewhere()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash on a large object would write gigabytes
    libc.prctl(
        PR_SET_PDEATHSIG, signal.SIGKILL
    )  # after unshare, which clears it; a killed Ray worker leaves no Blender
    return alone


def _as_oneself_elsewhere():
    """A network namespace for somebody who is not root takes a user namespace, in which we stay who we are."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # without a map files would only seem to be nobody's
        for name, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
            with open(f"/proc/self/{name}", "w") as settings:
                settings.write(text)
    return True
