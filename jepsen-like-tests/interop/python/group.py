"""A three-node group for the tests beside this file: `quorate dev --no-demo` as a child, seen only from outside.

Used by send_receive.py and kill_leader.py. It asks for the state of the group with `quorate cluster status` and kills by process id;
it knows nothing of how the group works inside.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time


class Failed(Exception):
    """A requirement does not hold. The text says which and with what numbers."""


def free_ports():
    """The first of three neighbouring ports that nobody uses now."""
    for port in range(28081, 29081, 10):
        try:
            for one in range(port, port + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", one))
            return port
        except OSError:
            continue
    raise Failed("no three free neighbouring ports between 28081 and 29081")


def until(what, seconds, look, every=0.1):
    """Asks `look` until it answers something true, and returns that. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(every)


class Group:
    """Three nodes. Use as `with Group(binary) as group:`; they end with the block, whatever happens in it."""

    def __init__(self, binary):
        self.binary = os.path.abspath(binary)
        self.folder = tempfile.TemporaryDirectory(prefix="quorate-interop-")
        self.log = os.path.join(self.folder.name, "dev.log")
        self.child = None
        self.endpoints = []

    def __enter__(self):
        command = [self.binary, "dev", "--no-demo", "--port", str(free_ports())]
        command += ["--data", os.path.join(self.folder.name, "data")]
        print("$", " ".join(command), flush=True)
        with open(self.log, "wb") as log:
            # A session of its own, so that a Ctrl-C reaches the tests first and they end the group in order.
            self.child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
            )
        try:
            self.endpoints = until("the group is ready", 60, self._ready_line)
        except BaseException:
            self.stop()
            raise
        print("ready:", ";".join(self.endpoints), flush=True)
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            print(f"--- the last of what the group said ({self.log})", flush=True)
            print("\n".join(self._output().splitlines()[-40:]), flush=True)
        self.stop()

    def _output(self):
        with open(self.log, errors="replace") as log:
            return log.read()

    def _ready_line(self):
        for line in self._output().splitlines():
            if line.startswith("ready endpoints="):
                return line.split("=", 1)[1].strip().split(";")
        if self.child.poll() is not None:
            raise Failed(f"quorate dev ended with {self.child.returncode}:\n{self._output()}")
        return None

    def stop(self):
        """Ends the group as a user does, with Ctrl-C, and only if that fails by force."""
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            try:
                self.child.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.child.pid, signal.SIGKILL)
                self.child.wait()
        self.folder.cleanup()

    def run(self, *words):
        """Runs a command of the product against the group and returns what it printed. Fails if the command does."""
        command = [self.binary, *words, "--endpoints", ";".join(self.endpoints)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def nodes(self):
        """The state of each node as the group tells it, or an empty list while nobody answers."""
        try:
            return json.loads(self.run("cluster", "status", "-o", "json"))["nodes"]
        except (Failed, subprocess.TimeoutExpired):
            return []

    def leader(self):
        """The node that leads now, or None."""
        leaders = [node for node in self.nodes() if node["reachable"] and node["role"] == "leader"]
        return max(leaders, key=lambda node: node["term"], default=None)


def main():
    """`python group.py path/to/quorate -- command …`: runs the command with the endpoints of a fresh group as its last argument."""
    binary, dashes, *command = sys.argv[1:]
    if dashes != "--" or not command:
        sys.exit(main.__doc__)
    with Group(binary) as group:
        command.append(";".join(group.endpoints))
        print("$", " ".join(command), flush=True)
        # The Python client writes its log below HOME; a test leaves nothing there.
        code = subprocess.run(command, timeout=300, env={**os.environ, "HOME": group.folder.name}).returncode
        if code != 0:
            raise Failed(f"{command[0]} ended with {code}")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
