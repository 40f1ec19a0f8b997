#!/usr/bin/python3
"""The client of responsive.sh: asks guests that compute without a pause. Runs on gamma, whose python3 has few modules.

usage: responsive.py ROUNDS PINGS SIDE=ADDRESS=CONSOLE_FILE...
Each line that it prints is "SIDE LOAD KIND VALUE": LOAD idle or spin, KIND ping_ms (-1: no answer), agent_ms (a TCP
connection's round trip with a shell in the guest), console_ms (from asking to the line in the file), clock (guest's
time over ours).
"""
import re
import socket
import subprocess
import sys
import time

AGENT_PORT, INTERVAL_S, LIMIT_S = 7100, 0.2, 60


def ask(address, *words):
    with socket.create_connection((address, AGENT_PORT), LIMIT_S) as agent:
        agent.sendall((" ".join(map(str, words)) + "\n").encode())
        answer = agent.makefile().readline().split()
    if answer[:1] != ["ok"]:
        raise RuntimeError(f"the agent at {address} answers '{' '.join(answer)}' to '{words}'")
    return int(answer[1])


def console_ms(address, path, number):
    begun = time.monotonic()
    ask(address, "console", number)
    while time.monotonic() < begun + LIMIT_S:
        with open(path, encoding="utf-8", errors="replace") as console:
            if f"agent says {number}." in console.read():
                return (time.monotonic() - begun) * 1e3
        time.sleep(0.005)
    raise RuntimeError(f"what was said on the console of {address} is not in {path}")


def clock(address):
    """The guest's time, and ours in the middle of the question."""
    before = time.monotonic()
    guest_ms = ask(address, "uptime", 1)
    return guest_ms / 1e3, (before + time.monotonic()) / 2


def ping(address, count):
    done = subprocess.run(["ping", "-n", "-i", str(INTERVAL_S), "-c", str(count), "-W", "5", address],
                          stdout=subprocess.PIPE, text=True, timeout=count * INTERVAL_S + LIMIT_S, check=False)
    times = [float(ms) for ms in re.findall(r" time=([0-9.]+) ms", done.stdout)]
    return times + [-1] * (count - len(times))


def main():
    rounds, pings = int(sys.argv[1]), int(sys.argv[2])
    sides = [item.split("=") for item in sys.argv[3:]]
    number = 0
    for round_ in range(rounds):
        for side, address, console in sides if round_ % 2 == 0 else reversed(sides):
            for load in ("idle", "spin"):
                if load == "spin":
                    ask(address, "spin", int(pings * INTERVAL_S) + 30)
                begun_guest, begun = clock(address)
                for ms in ping(address, pings):
                    print(side, load, "ping_ms", ms)
                for _ in range(3):
                    number += 1
                    before = time.monotonic()
                    ask(address, "uptime", 1)
                    print(side, load, "agent_ms", (time.monotonic() - before) * 1e3)
                    print(side, load, "console_ms", console_ms(address, console, number))
                ended_guest, ended = clock(address)
                print(side, load, "clock", (ended_guest - begun_guest) / (ended - begun), flush=True)
            ask(address, "quiet", 1)


main()
