"""A process that has imported SGLang and forks servers: they answer in seconds instead of a minute.

Nine tenths of a server's start on a CPU are imports, made anew by each of its three processes. A forked server runs the
same `sglang.launch_server` with the same arguments and environment; what it skips is that, and how a start of its own
hands its children their arguments. The tests that break the worker start theirs as users do (`faults`).
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

# What a server's processes import. Not the worker of DAS: its module is imported when the engine asks for it.
MODULES = [
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.llama",
]


class Warm:
    """The process, from the side of the tests. It and its servers end when they do, also when they are killed."""

    def __init__(self, environment):
        """`environment` is the engine's: what libraries read when they are loaded cannot differ between servers."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                env=os.environ | environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what goes wrong is said on stderr
                start_new_session=True,
            )
        if self._socket.recv(16) != b"ready":
            raise RuntimeError(f"{command} ended with status {self._process.wait()}")
        atexit.register(self._end)

    def _end(self):
        self._socket.close()
        self._process.wait()

    def start(self, command, environment, log):
        """Fork a server; `command` is as for a process of its own, `log` the open file its output goes to."""
        python, option, module, *arguments = command
        assert (python, option) == (sys.executable, "-m"), command
        ours, theirs = socket.socketpair()
        request = {"module": module, "arguments": arguments, "environment": dict(environment), "directory": os.getcwd()}
        with theirs:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [theirs.fileno(), log.fileno()])
        return Forked(ours)


class Forked:
    """A forked server process, used like a `subprocess.Popen`."""

    def __init__(self, connection):
        self._messages = connection.makefile("r")
        self._connection = connection
        self._status = None
        self.pid = int(self._messages.readline())

    def poll(self):
        """The exit status, or None while it runs."""
        if self._status is None and self._ended():
            self.wait()
        return self._status

    def wait(self):
        if self._status is None:
            self._status = int(self._messages.readline())
            self._messages.close()
            self._connection.close()
        return self._status

    def terminate(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)

    def _ended(self):
        self._connection.setblocking(False)
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self._connection.setblocking(True)


@cache
def warm_process(**environment):
    """The process for servers with this environment, started when first asked for."""
    return Warm(environment)


def _serve(requests):
    """Fork a server for each request, until the tests are gone."""
    import gc
    import importlib

    import setproctitle
    from sglang.srt.plugins import load_plugins

    load_plugins()
    for module in MODULES:
        importlib.import_module(module)
    setproctitle.getproctitle()  # finds where a title goes by the environment, which a server replaces
    gc.freeze()  # a collection in a child would copy every page it looks at
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the servers
    requests.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
        if not message:
            return
        if os.fork() == 0:
            requests.close()
            _attend(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _attend(request, connection, log):
    """Fork the server and tell its process id and exit status; if there is nobody to be told, end it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(connection)
        os.setpgid(0, 0)
        _become(request, log)
    os.setpgid(pid, pid)  # both do it: neither has to wait for the other
    os.close(log)
    os.write(connection, f"{pid}\n".encode())
    readable, _, _ = select.select([connection, os.pidfd_open(pid)], [], [])
    if connection in readable:  # the tests write nothing: they have been killed
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(connection, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(request, log):
    """Run the server in this process, as `python -m` would, to its end and that of the process."""
    import multiprocessing
    import random
    import runpy

    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()  # ports and names are drawn from it, and other servers have the same state
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_, **__: None  # SGLang sets it to "spawn"
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


if __name__ == "__main__":
    sys.path.remove(str(Path(__file__).parent))  # put there by Python for scripts; a server does not have it
    _serve(socket.socket(fileno=int(sys.argv[1])))
