"""The group of deploy/compose.yaml for the smoke beside this file: real containers, handled by the engine's own commands.

It runs under a project name, a subnet and a loopback address of its own, so that a group that somebody runs beside it stays untouched.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "interop" / "python"))

from group import Failed, until  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROJECT, SUBNET, HOST = "quorate-smoke", "172.28.91", "127.0.91.1"
NODES = (1, 2, 3)
OUTSIDE = ";".join(f"{HOST}:{8080 + number}" for number in NODES)
INSIDE = ";".join(f"{SUBNET}.{10 + number}:8081" for number in NODES)


def run(*command, check=True, timeout=120, **more):
    """Runs a command and returns what it printed. Fails if the command does."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, **more)
    if check and done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def compose_command():
    """`docker compose` where the engine's client has it, else docker-compose 1.29."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise Failed("neither docker compose nor docker-compose is there")


class Group:
    """Use as `with Group(binary, image) as group:`; containers, network and volumes are gone after the block."""

    def __init__(self, binary, image, chaos_image):
        self.binary = os.path.abspath(binary)
        files = [str(ROOT / "deploy" / name) for name in ("compose.yaml", "compose.chaos.yaml")]
        self.words = [*compose_command(), "-p", PROJECT, "-f", files[0], "-f", files[1]]
        self.environment = {**os.environ, "QUORATE_IMAGE": image, "QUORATE_SUBNET": SUBNET}
        # The machine's disk may be nearly full of other things, and still has room for this.
        self.environment.update(QUORATE_RETENTION_DISK_WARN_PERCENT="97", QUORATE_RETENTION_DISK_FULL_PERCENT="99")
        self.environment.update(QUORATE_HOST=HOST, QUORATE_HTTP_HOST=HOST, QUORATE_CHAOS_IMAGE=chaos_image)

    def compose(self, *words):
        return run(*self.words, *words, env=self.environment, timeout=180)

    def __enter__(self):
        self.compose("down", "-v", "--remove-orphans")
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            for number in NODES:
                print(f"--- the last of what broker-{number} said", flush=True)
                print(self.logs(number, "--tail", "25"), flush=True)
        self.compose("down", "-v", "--remove-orphans")

    # What is asked.

    def logs(self, number, *words):
        done = subprocess.run(["docker", "logs", *words, self.container(number)], capture_output=True, text=True)
        return done.stdout + done.stderr

    def container(self, number):
        names = run("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}", *label(number))
        return names.strip() or f"no container of {number}"

    def inspect(self, number, form):
        return run("docker", "inspect", "-f", form, self.container(number)).strip()

    def pid(self, number):
        return int(self.inspect(number, "{{.State.Pid}}"))

    def quorate(self, *words, endpoints=OUTSIDE, check=True, prefix=()):
        return run(*prefix, self.binary, *words, "--endpoints", endpoints, check=check, timeout=30)

    def inside(self):
        """Words that run a command in the group's network: a program of this machine in a network namespace of a container there."""
        pid = run("docker", "inspect", "-f", "{{.State.Pid}}", self.container("inside")).strip()
        return ["nsenter", "-t", pid, "-n"]

    def nodes(self):
        """The state of each node as the group tells it, or an empty list while nobody answers."""
        try:
            return json.loads(self.quorate("cluster", "status", "-o", "json", check=False))["nodes"]
        except (ValueError, subprocess.TimeoutExpired):
            return []

    def leader(self):
        """The number of the node that leads now, or None."""
        leaders = [node for node in self.nodes() if node["reachable"] and node["role"] == "leader"]
        return max(leaders, key=lambda node: node["term"], default={"number": None})["number"]

    def is_whole(self):
        """All nodes are there, one leads, the others follow, and nobody is far behind."""
        nodes = self.nodes()
        roles = sorted(node["role"] for node in nodes)
        is_near = all(node["lag"] < 50 and node["last_index"] - node["applied_index"] < 50 for node in nodes)
        return roles == ["follower", "follower", "leader"] and all(node["reachable"] for node in nodes) and is_near

    def is_healthy(self):
        """The engine's own word, from the health check in the image."""
        return all(self.health(number) == "healthy" for number in NODES)

    def health(self, number):
        return self.inspect(number, "{{if .State.Health}}{{.State.Health.Status}}{{end}}")

    def is_ready(self):
        return self.is_healthy() and self.is_whole()

    def wait_ready(self, what, seconds=60):
        begun = time.monotonic()
        until(what, seconds, self.is_ready, every=0.1)
        return time.monotonic() - begun

    def memory(self):
        """Bytes that the engine counts for each node, and the resident set that each node reports of itself."""
        form = "{{.MemUsage}}"
        stats = [run("docker", "stats", "--no-stream", "--format", form, self.container(number)) for number in NODES]
        return [in_bytes(text.split("/")[0]) for text in stats], [node["resident_bytes"] for node in self.nodes()]

    # What is done to it.

    def up(self, *services):
        """Starts what is not running, and says how long it took until all of it was ready."""
        begun = time.monotonic()
        self.compose("up", "-d", "--no-build", *services)
        self.wait_ready("the group is ready", 60)
        return time.monotonic() - begun


    def filter_packets(self, number, rules):
        """Runs nft in the node's network namespace, with the capability that only this container has."""
        self.compose("run", "--rm", "--no-deps", "-T", f"packets-{number}", "nft", rules)


def label(number):
    service = number if isinstance(number, str) else f"broker-{number}"
    return ["--filter", f"label=com.docker.compose.service={service}"]


def in_bytes(text):
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)):
        if text.strip().endswith(unit):
            return round(float(text.strip().removesuffix(unit)) * size)
    raise Failed(f"{text!r} is not a size")
