"""Three containers, two official Python clients, and everything that happens to containers. Nothing acknowledged may be lost.

    python smoke.py path/to/quorate IMAGE IMAGE_WITH_NFT FOLDER_FOR_WHAT_THE_CLIENTS_SAW

From nothing: `up`, ready within 15 s, at most 200 MB of idle memory in all. Then one client on the host, through published ports, and one in
the group's network send and receive while the leader's container is stopped in order, is killed, dies and is restarted by the engine, is paused, is
disconnected from the network, and is cut off from the other nodes by a packet filter while clients still reach it. Then `down` and `up`: what
was stored and not received is all there. Then one volume is deleted: the node comes back empty, as a learner, and takes its old place. At
last two volumes are deleted, and the group refuses with its runbook. The last word has check_history.py, which shares nothing with this file.

The client inside is a program of this machine run in the network namespace of a container in the group's network (`nsenter`): the same
addresses, the same routes, the same packets as in a container, and no image with a Python that would have to be pulled or built. Needs root.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from containers import HOST, INSIDE, NODES, OUTSIDE, PROJECT, SUBNET, Failed, Group, run, until

READY_SECONDS_MAX = 15
MEMORY_MAX = 200 * 1000 * 1000
IMAGE_MAX = 25 * 1000 * 1000
PAUSE_SECONDS = 4  # how long a leader is away: longer than an election, shorter than a client's patience
KEPT = 150

TOPIC = "interop-kill"  # kill_leader.py's, whose sender and receiver the clients are


class Client:
    """client.py as a child, where `prefix` puts it."""

    def __init__(self, name, endpoints, saw, prefix=()):
        self.name, self.saw = name, saw
        program = str(pathlib.Path(__file__).resolve().parent / "client.py")
        command = [*prefix, sys.executable, program, name, endpoints, saw]
        print("$", " ".join(command), flush=True)
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, word):
        try:
            self.child.stdin.write(word + "\n")
            self.child.stdin.flush()
            line = self.child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"the client {self.name} has ended with {self.child.wait()}")
        return json.loads(line)

    def end(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()


class Clients:
    """One on the host and one inside. They end with the block, whatever happens in it."""

    def __init__(self, group, folder, part):
        saw = {name: os.path.join(folder, f"{part}-{name}.jsonl.gz") for name in ("host", "inside")}
        self.both = [
            Client(f"{part}-host", OUTSIDE, saw["host"]),
            Client(f"{part}-inside", INSIDE, saw["inside"], group.inside()),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for client in self.both:
            client.end()

    def wait_more(self, what, seconds=40):
        """Waits until both have had another fifty sends acknowledged and received something more."""
        before = [client.say("report") for client in self.both]

        def is_more(client, before):
            now = client.say("report")
            return len(now["acked"]) >= len(before["acked"]) + 50 and len(now["seen"]) > len(before["seen"])

        for client, reported in zip(self.both, before):
            until(f"{client.name} sends and receives {what}", seconds, lambda: is_more(client, reported), every=0.2)

    def drain(self, but=frozenset()):
        """No more sends; all that was acknowledged is received by one of the two."""
        acked = {key for client in self.both for key in client.say("quiet")["acked"]} | but

        def is_drained():
            seen = {key for client in self.both for key in client.say("report")["seen"]}
            return acked <= seen

        try:
            until("everything acknowledged is received", 60, is_drained, every=0.5)
        except Failed as failed:
            print(failed, flush=True)  # the verdict counts what is missing
        for client in self.both:
            told = client.say("stop")
            print(f"{client.name}: {len(told['errors'])} sends failed into the application, {told['broken'] or 'no'} broken calls")
            for error in sorted(set(told["errors"]))[:5]:
                print(f"    {error}", flush=True)
        return len(acked)


# What happens to the leader's container.


def stop(group, number):
    """SIGTERM and the grace period, as an upgrade does it."""
    begun = time.monotonic()
    run("docker", "stop", "-t", "30", group.container(number))
    seconds, code = time.monotonic() - begun, group.inspect(number, "{{.State.ExitCode}}")
    print(f"    it ended with {code} after {seconds:.2f} s", flush=True)
    if code != "0":
        raise Failed(f"broker-{number} ended with {code} when it was told to stop")
    elsewhere(group, number)
    run("docker", "start", group.container(number))


def kill(group, number):
    """SIGKILL by the engine, and started again by hand: the engine restarts nothing that was killed by its own command."""
    run("docker", "kill", "-s", "KILL", group.container(number))
    elsewhere(group, number)
    run("docker", "start", group.container(number))


def crash(group, number):
    """The process dies by itself; the engine's restart policy brings it back."""
    before = group.pid(number)
    os.kill(before, signal.SIGKILL)
    elsewhere(group, number)
    until("the engine restarts the container", 30, lambda: group.pid(number) not in (0, before))


def pause(group, number):
    run("docker", "pause", group.container(number))
    elsewhere(group, number)
    time.sleep(PAUSE_SECONDS)  # the fault itself, not a wait for something
    run("docker", "unpause", group.container(number))


def disconnect(group, number):
    network, container = f"{PROJECT}_quorate", group.container(number)
    run("docker", "network", "disconnect", network, container)
    elsewhere(group, number)
    time.sleep(PAUSE_SECONDS)
    alias = ("--alias", f"broker-{number}")
    run("docker", "network", "connect", "--ip", f"{SUBNET}.{10 + number}", *alias, network, container)


def cut(group, number):
    """Peers reach each other by port 9870, clients by others, so a leader may be alone and have clients."""
    peers = "; ".join(f"add rule inet faults out tcp {way} 9870 drop" for way in ("sport", "dport"))
    chain = "add chain inet faults out { type filter hook output priority 0; }"
    group.filter_packets(number, f"add table inet faults; {chain}; {peers}")
    elsewhere(group, number)
    time.sleep(PAUSE_SECONDS)
    group.filter_packets(number, "delete table inet faults")


def elsewhere(group, number):
    def look():
        leader = group.leader()
        return leader if leader not in (None, number) else None

    begun = time.monotonic()
    leader = until(f"another node than {number} leads", 30, look, every=0.05)
    print(f"    node {leader} leads, seen after {time.monotonic() - begun:.2f} s", flush=True)


def faults(group, folder):
    """All faults on whoever leads, with both clients at work. Returns how many sends were acknowledged."""
    with Clients(group, folder, "faults") as clients:
        clients.wait_more("at the start")
        for fault in (stop, kill, crash, pause, disconnect, cut):
            leader = until("a node leads", 30, group.leader)
            print(f"{fault.__name__} broker-{leader}, which leads", flush=True)
            fault(group, leader)
            seconds = group.wait_ready(f"broker-{leader} is back", 60)
            print(f"    all three are ready {seconds:.2f} s after that", flush=True)
            clients.wait_more(f"after {fault.__name__}")
        return clients.drain()


def keep(group, folder):
    """Stores messages that nobody reads yet. Returns their keys, and what a checker must know of them."""
    keys = [f"kept-{number:04}" for number in range(KEPT)]
    saw = os.path.join(folder, "kept.jsonl")
    with open(saw, "w", encoding="utf-8") as file:
        for key in keys:
            invoked = time.monotonic()
            sent = json.loads(group.quorate("message", "send", TOPIC, key.ljust(256, "."), "--key", key, "-o", "json"))
            line = {"key": key, "invoked": invoked, "returned": time.monotonic(), "ok": True, "topic": TOPIC}
            file.write(json.dumps({**line, "queue": 0, "offset": sent["queue_offset"]}) + "\n")
    return frozenset(keys)


def wipe(group, number):
    """One node loses its volume."""
    run("docker", "rm", "-f", group.container(number))
    run("docker", "volume", "rm", f"{PROJECT}_broker-{number}")
    seconds = group.up()
    joined = [line for other in NODES for line in group.logs(other).splitlines() if "node joins as a learner" in line]
    if not joined:
        raise Failed(f"broker-{number} came back with an empty volume, and no leader says that it took it in as a learner")
    print(f"broker-{number} lost its volume, joined as a learner and has its old place back after {seconds:.2f} s", flush=True)


def check_image(image):
    size, user = run("docker", "image", "inspect", "-f", "{{.Size}} {{.Config.User}}", image).split()
    print(f"image {image}: {int(size) / 1e6:.1f} MB, user {user}", flush=True)
    if int(size) > IMAGE_MAX:
        raise Failed(f"the image has {size} bytes, allowed are {IMAGE_MAX}")
    if user != "10001:10001":
        raise Failed(f"the image runs as {user}")


def check_containers(group):
    """What the base file promises an SRE, as the engine sees it."""
    form = "{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.CapAdd}} {{.HostConfig.SecurityOpt}}"
    for number in NODES:
        found = group.inspect(number, form)
        if found != "true [ALL] [] [no-new-privileges:true]":
            raise Failed(f"broker-{number} runs with {found}")
        bindings = json.loads(group.inspect(number, "{{json .HostConfig.PortBindings}}"))
        strangers = [one for some in bindings.values() for one in some if one["HostIp"] != HOST]
        if strangers:
            raise Failed(f"broker-{number} publishes ports beyond {HOST}: {strangers}")


def check_routes(group):
    """Brokers and name servers alike give to each side the addresses of that side."""
    program = [sys.executable, str(pathlib.Path(__file__).resolve().parent / "route.py")]
    inside = group.inside()
    for number in NODES:
        askings = [
            ([], f"{HOST}:{8080 + number}", OUTSIDE),
            ([], f"{HOST}:{9875 + number}", OUTSIDE),
            (inside, f"{SUBNET}.{10 + number}:8081", INSIDE),
            (inside, f"{SUBNET}.{10 + number}:9876", INSIDE),
        ]
        for prefix, endpoint, expected in askings:

            def is_given():
                return sorted(run(*prefix, *program, endpoint, TOPIC, check=False).split()) == expected.split(";")

            until(f"{endpoint} gives {expected}", 15, is_given)
    print("each side is given its own addresses, by brokers and by name servers", flush=True)


def two_wiped(group):
    """Two nodes lose their volumes. Nobody can know what was acknowledged, and nobody pretends to."""
    for number in NODES[1:]:
        run("docker", "rm", "-f", group.container(number))
        run("docker", "volume", "rm", f"{PROJECT}_broker-{number}")
    group.compose("up", "-d", "--no-build")
    named = "docs/OPERATIONS.md"
    until("a wiped node refuses and names the runbook", 60, lambda: any(named in group.logs(n) for n in NODES[1:]))
    taken = group.quorate("message", "send", TOPIC, "nobody may take this", check=False)
    if taken:
        raise Failed(f"two of three nodes lost their volumes, and somebody takes messages: {taken}")
    print("two volumes deleted: refused, with the runbook", flush=True)


def check_memory(group):
    counted, resident = group.memory()
    text = ", ".join(f"{used / 1e6:.1f}" for used in counted)
    print(f"idle memory: {sum(counted) / 1e6:.1f} MB ({text}); resident sets {sum(resident) / 1e6:.1f} MB", flush=True)
    if max(sum(counted), sum(resident)) > MEMORY_MAX:
        raise Failed(f"the idle group takes more than {MEMORY_MAX} bytes of memory")


def main():
    binary, image, chaos_image, folder = sys.argv[1:]
    os.makedirs(folder, exist_ok=True)
    check_image(image)
    with Group(binary, image, chaos_image) as group:
        seconds = group.up()
        print(f"up to ready: {seconds:.2f} s", flush=True)
        if seconds > READY_SECONDS_MAX:
            raise Failed(f"it took {seconds:.2f} s from nothing to ready, allowed are {READY_SECONDS_MAX}")
        check_containers(group)
        check_memory(group)
        print(group.quorate("cluster", "status"), flush=True)
        print(group.quorate("doctor"), flush=True)
        print(group.quorate("doctor", endpoints=INSIDE, prefix=group.inside()), flush=True)
        for words in (("cluster", "status"), ("doctor",), ("health", "--safe-to-stop")):
            run("docker", "exec", group.container(1), "/quorate", *words)  # as the README has them
        group.quorate("topic", "create", TOPIC, "--queues", "1")
        check_routes(group)
        acked = faults(group, folder)

        kept = keep(group, folder)
        group.compose("down")
        print(f"down, up, ready again after {group.up():.2f} s", flush=True)
        wipe(group, until("a node leads", 30, group.leader))
        with Clients(group, folder, "after") as clients:
            clients.wait_more("after a volume was lost")
            acked += clients.drain(but=kept)
        print(f"{acked} acknowledged in all", flush=True)
        group.quorate("cluster", "status")
        two_wiped(group)
    print("PASS: now judge what the clients saw")


if __name__ == "__main__":
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAIL: {failed}")
