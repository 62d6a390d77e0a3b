"""Takes from the process that opens strangers' files: the network, other files, other programs, root's privileges,
core dumps, a life after its parent's.

Imported before bpy, while the process has one thread: a user namespace cannot be entered with more, and Landlock binds
only the thread that asks for it and those that it starts later.
"""

import contextlib
import ctypes
import glob
import os
import resource
import signal
import struct
import sys

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38  # linux/prctl.h
CAPABILITY_V3, CAP_DAC_OVERRIDE = 0x20080522, 1  # linux/capability.h
FILE_BYTES = 2**30  # no file that rendering writes comes near

# linux/landlock.h: what a version of its interface can refuse, (first version, rights)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
FILES = ((1, 0x1FFF), (2, 1 << 13), (3, TRUNCATE), (5, IOCTL))
TCP = ((4, 3),)  # bind and connect, of the network that a process has
SCOPES = ((6, 3),)  # abstract sockets of others, signals to others
ON_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL  # the rest makes sense for folders alone
READ, USE = READ_FILE | READ_DIR, READ_FILE | READ_DIR | WRITE_FILE | IOCTL
WRITE = 0xFFFF & ~(EXECUTE | IOCTL | 1 << 6 | 1 << 11)  # all but running programs and making devices

# libraries, fonts, drivers and their settings, and what libraries ask the kernel
SYSTEM = """/usr /lib /lib32 /lib64 /opt/rocm* /opt/intel /opt/amdgpu* /nix/store /run/opengl-driver
    /etc/ld.so.cache /etc/ld.so.preload /etc/localtime /etc/fonts /etc/drirc /etc/glvnd /etc/egl /etc/vulkan
    /etc/OpenCL /etc/nvidia /etc/amd /etc/alternatives
    /sys/devices /sys/bus /sys/class /sys/dev /sys/module /sys/kernel/mm /sys/fs/cgroup
    /proc/self /proc/cpuinfo /proc/meminfo /proc/stat /proc/version /proc/filesystems /proc/devices /proc/modules
    /proc/driver /proc/sys/vm /proc/sys/kernel""".split()
DEVICES = "/dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/nvidia* /dev/dri /dev/kfd /dev/dxg".split()

libc = ctypes.CDLL(None, use_errno=True)


def confine(readable=(), writable=()):
    """Give up what the kernel lets us. Returns what is left: {"network": bool, "tcp": bool, "files": bool}, which `doctor` tells.

    A network without TCP is one that the system gives no namespace for, and that Landlock takes TCP from, but not UDP.
    readable, writable: folders that stay open besides Python's own, the system's libraries and the GPU.
    """
    _wake_nvidia()
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, the kernel takes this process first
    network = libc.unshare(CLONE_NEWNET) != 0 and not _unshare_as_same_user()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash on a large object would write gigabytes
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    most = FILE_BYTES if hard == resource.RLIM_INFINITY else min(FILE_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    landlock = _only_these_files(readable, writable)
    _drop_privileges()
    # last, since new namespaces and credentials clear it; a killed Ray worker leaves no Blender
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return {"network": network, "tcp": network and landlock < TCP[0][0], "files": landlock == 0}


def _unshare_as_same_user():
    """Enter a network namespace without being root: within a user namespace in which we stay who we are. False if refused."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # without a map files would only seem to be nobody's
        for name, text in (("setgroups", "deny"), ("gid_map", f"{group} {group} 1"), ("uid_map", f"{user} {user} 1")):
            with open(f"/proc/self/{name}", "w") as settings:
                settings.write(text)
    return True


def _only_these_files(readable, writable):
    """Restrict this process by Landlock. Returns its version, 0 where it does not hold (before Linux 5.13; left out by some).

    Without Landlock nothing changes. It does not refuse to look up names, nor to change modes and times of files of one's own.
    """
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return 0
    files, tcp, scopes = (sum(rights for first, rights in table if first <= version) for table in (FILES, TCP, SCOPES))
    ruleset = libc.syscall(CREATE_RULESET, struct.pack("=QQQ", files, tcp, scopes), ctypes.c_size_t(24), 0)
    if ruleset < 0:
        return 0
    python = [sys.prefix, sys.base_prefix, os.path.dirname(os.path.abspath(__file__)), *sys.path]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    system, devices = ([path for name in names for path in glob.glob(name)] for names in (SYSTEM, DEVICES))
    allowed = ((READ, [*system, *python, *libraries, *readable]), (USE, devices), (WRITE, writable))
    for rights, paths in allowed:
        for path in filter(os.path.isabs, paths):
            _allow(ruleset, path, rights & files)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return version if done else 0


def _allow(ruleset, path, rights):
    """Grant `rights` (bits of Landlock) to `path` and all below. A path that is missing, or closed to us anyway, gets no rule."""
    with contextlib.suppress(OSError):
        # never closed: /proc forgets a folder that nobody holds, and with it the rule
        held = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= ON_A_FILE
        libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, held), 0)


def _drop_privileges():
    """Drop all capabilities; root, here or in the namespace, keeps one: to open others' files, as far as Landlock lets it."""
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    ours = 1 << CAP_DAC_OVERRIDE if os.geteuid() == 0 else 0
    libc.capset(struct.pack("=Ii", CAPABILITY_V3, 0), struct.pack("=6I", ours, ours, 0, 0, 0, 0))


def _wake_nvidia():
    """Load CUDA's module and make its device file, as its first user after a boot has to, which is impossible once confined."""
    if os.path.exists("/dev/nvidiactl") and not os.path.exists("/dev/nvidia-uvm"):
        os.spawnlp(os.P_WAIT, "nvidia-modprobe", "nvidia-modprobe", "-u", "-c=0")
