#!/usr/bin/python3
"""Runs ftbench's workloads as their users do, tiny, and holds what they write against the schema and the page against
an HTML parser. The two guests are real redis-servers; their ftvmm is played by what serves known metrics.

usage: test_results.py FTBENCH SCHEMA
Exit status 77: python3-jsonschema or redis-server is missing.
"""
import html.parser
import http.server
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import xml.etree.ElementTree

FTBENCH, SCHEMA = os.path.abspath(sys.argv[1]), sys.argv[2]
LIMIT_S = 60
VOID = {"meta", "br", "hr", "img", "link", "input"}
# What the players of ftvmm claim: mean us of each step, and how much of each counter belongs to a request.
STEPS_US = {"input_wait": 3, "request_guest": 20, "request_exit": 2, "request_append": 1.5, "output_hold": 4,
            "output_pass": 0.5, "output_send": 1}

try:
    import jsonschema
except ImportError:
    print("python3-jsonschema is not installed (scripts/setup installs it)")
    sys.exit(77)
if shutil.which("redis-server") is None:
    print("redis-server is not installed (scripts/setup installs it)")
    sys.exit(77)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Vmm(threading.Thread):
    """Serves metrics as ftvmm does; they grow with each look: so many requests have been served meanwhile."""

    def __init__(self, protected, requests_a_look):
        super().__init__(daemon=True)
        looks = [0]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                looks[0] += 1
                n = looks[0] * requests_a_look
                role = "primary" if protected else "alone"
                rows = [f'ftvmm_info{{vm="x",role="{role}",state="running"}} 1', f"ftvmm_protected {int(protected)}",
                        f"ftvmm_net_received_bytes_total {n * 1024}", f"ftvmm_net_transmitted_bytes_total {n * 256}",
                        f"ftvmm_positions_total {n * 9}", f'ftvmm_exits_total{{kind="io"}} {n * 7}']
                if protected:
                    rows += [f"ftvmm_log_records_total {n * 4}", f"ftvmm_log_bytes_total {n * 512}",
                             f"ftvmm_log_writes_total {n * 3}", f"ftvmm_ack_latency_seconds_count {n}",
                             f"ftvmm_ack_latency_seconds_sum {n * 2.5e-6:.12g}"]
                for step, us in STEPS_US.items():
                    rows += [f"ftvmm_{step}_seconds_sum {n * us * 1e-6:.12g}", f"ftvmm_{step}_seconds_count {n}"]
                body = ("\n".join(rows) + "\n").encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.start()

    def run(self):
        self.server.serve_forever()


class Agent(threading.Thread):
    """Does what it is asked, as the agent in a guest does: at once."""

    def __init__(self):
        super().__init__(daemon=True)
        self.asked, self.prepared = [], []
        agent = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                name, amount = self.rfile.readline().decode().split()
                if name == "prepare":
                    agent.prepared.append(amount)
                    self.wfile.write(b"error no disk\n" if amount == "pgbench" else b"ok 1\n")
                    return
                agent.asked.append((name, int(amount)))
                answer = "error no such program" if name == "python" else f"ok {int(amount) * 10}"
                if name != "sqlite":
                    self.wfile.write((answer + "\n").encode())

        self.server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.start()

    def run(self):
        self.server.serve_forever()


class Pages(threading.Thread):
    """Serves what wrk asks for; /missing is not there."""

    def __init__(self):
        super().__init__(daemon=True)

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send_response(200 if self.path == "/small" else 404)
                self.send_header("Content-Length", "1024")
                self.end_headers()
                self.wfile.write(b"x" * 1024)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *about: None  # wrk ends its connections as it likes
        self.port = self.server.server_address[1]
        self.start()

    def run(self):
        self.server.serve_forever()


class Page(html.parser.HTMLParser):
    """Every element closed in its order, nothing from elsewhere, no script."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.words, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "object", "img", "link", "base"):
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            if name in ("src", "href", "srcset") or name.startswith("on") or "url(" in (value or ""):
                self.wrong.append(f"{tag} {name}={value}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes another element")

    def handle_data(self, data):
        self.words.append(data)


class Results(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = tempfile.mkdtemp(prefix="ftbench-results-")
        with open(SCHEMA, encoding="utf-8") as file:
            schema = json.load(file)
        jsonschema.Draft202012Validator.check_schema(schema)
        cls.validator = jsonschema.Draft202012Validator(schema)
        cls.ports = [free_port(), free_port(), free_port()]
        cls.redis = [subprocess.Popen(["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "",
                                       "--dir", cls.dir], stdout=subprocess.DEVNULL) for port in cls.ports]
        cls.vmms = [Vmm(True, 100), Vmm(False, 100)]
        cls.agents = [Agent(), Agent()]
        until = time.monotonic() + LIMIT_S
        for port in cls.ports:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.05)
        cls.made, cls.servers = {}, []

    @classmethod
    def tearDownClass(cls):
        for process in cls.redis + cls.servers:
            process.kill()
            process.wait()
        for player in cls.vmms + cls.agents:
            player.server.shutdown()
            player.server.server_close()
        shutil.rmtree(cls.dir)

    def path(self, name):
        return os.path.join(self.dir, name)

    def ftbench(self, *args, status=0, env=None):
        done = subprocess.run([FTBENCH, *map(str, args)], capture_output=True, text=True, timeout=LIMIT_S, check=False,
                              env=env)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done

    def targets(self, ports=None):
        return [f"--{side}=127.0.0.1:{port},metrics={vmm.address}"
                for side, port, vmm in zip(("protected", "unprotected"), ports or self.ports, self.vmms)]

    def result(self, name, *args):
        """Runs a workload once for all tests, and holds its JSON against the schema."""
        if name not in self.made:
            path = self.path(name + ".json")
            words = 2 if args[0] == "net" else 1 # before the options
            self.ftbench(*args[:words], "--json", path, *args[words:])
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            self.validator.validate(result)
            self.made[name] = path, result
        return self.made[name]

    def channel(self):
        return self.result("channel", "channel", "ring", "--rounds", 2, "--samples", 200, "--run-ms", 2, "--ring", 1)

    def counter(self):
        return self.result("counter", "counter", "--host", "127.0.0.1", "--port", self.ports[0], "--seconds", 1.5,
                           "--patience", 5)

    def guest(self):
        return self.result("guest", "guest", *self.targets(), f"--other=127.0.0.1:{self.ports[2]}", "--rounds", 3,
                           "--requests", 300, "--warmup", 20, "--idle-ms", 10)

    def sim(self):
        return self.result("sim", "sim", "--from", self.channel()[0], "--from", self.guest()[0], "--requests", 5000,
                           "--write-us", 1, "--links", "25,400")

    def overhead(self):
        # both sides' redis is the same one here: the figures are those of one and the same server
        return self.result("overhead", "overhead", *self.targets([agent.port for agent in self.agents]), "--rounds", 2,
                           "--redis-port", self.ports[0], "--run", "redis=500,redis_pipelined=2000,openssl=1,compile=3")

    def net_forward(self):
        return self.result("net_forward", "net", "forward", "--rounds", 1, "--run-ms", 20, "--warmup-ms", 10,
                           "--sizes", "64,1000")

    def net_guest(self):
        if shutil.which("iperf3") is None:
            self.skipTest("iperf3 is not installed (scripts/setup installs it)")
        ports = [guest.port for guest in self.iperfs()]
        return self.result("net_guest", "net", "guest", *self.targets(ports), f"--other=127.0.0.1:{ports[2]}",
                           "--rounds", 2, "--seconds", 1, "--warmup", 0)

    def iperfs(self):
        """Two real servers, as they run in the two guests."""
        if not self.servers:
            for port in (free_port(), free_port(), free_port()):
                server = subprocess.Popen(["iperf3", "-s", "--forceflush", "-B", "127.0.0.1", "-p", str(port)],
                                          stdout=subprocess.PIPE, text=True)
                server.port = port
                self.servers.append(server)
                for line in server.stdout: # a probe's connection would be a test to it
                    if "listening" in line:
                        break
                threading.Thread(target=server.stdout.read, daemon=True).start()
        return self.servers

    def script(self, *lines):
        """Makes failovers that nobody notices."""
        path = self.path(f"script{len(os.listdir(self.dir))}")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(("#!/bin/sh", "out=$1 seed=$2 run=$3", *lines, "")))
        os.chmod(path, 0o700)
        return path

    def failover(self):
        script = self.script(
            "echo said >&2",
            "printf '{\"failover\": {\"detected_us\": %d, \"live_us\": %d, \"resent_frames\": %d}, '"
            " $((1000 * run)) $((1500 * run)) $run >\"$out/result.json\"",
            "printf '\"counter\": {\"lost\": 0, \"duplicated\": 0, \"longest_gap_ms\": %d}}' $((2 * run))"
            " >>\"$out/result.json\"", "echo $seed >>\"$out/../seeds\"")
        return self.result("failover", "failover", "--runs", 5, "--seed", 9, "--out", self.path("runs"), "--", script,
                           "{out}", "{seed}", "{run}")

    def values(self, result, name):
        found = [metric for metric in result["metrics"] if metric["name"] == name]
        self.assertEqual(len(found), 1, f"{name} in {[metric['name'] for metric in result['metrics']]}")
        return found[0]["values"]

    def test_every_workload_writes_by_the_schema(self):
        for make in (self.channel, self.counter, self.guest, self.sim, self.failover):
            _, result = make()
            for series in result["latency_ns"]:
                points = series["curve"]
                self.assertGreater(len(points), 1)
                self.assertEqual(points, sorted(points), "percentiles and latencies only rise")
                self.assertLessEqual(points[-1][1], series["max"])

    def test_the_schema_refuses_what_is_no_result(self):
        _, result = self.channel()
        for spoil in (lambda r: r.pop("metrics"), lambda r: r.update(format="ftbench channel 1"),
                      lambda r: r.pop("link"), lambda r: r["metrics"][0].pop("values"),
                      lambda r: r["latency_ns"][0].update(role="best"), lambda r: r.update(model=True)):
            copy = json.loads(json.dumps(result))
            spoil(copy)
            with self.assertRaises(jsonschema.ValidationError):
                self.validator.validate(copy)

    def test_every_workload_has_help_and_refuses_unknown_options(self):
        for words in (("counter",), ("history",), ("channel",), ("guest",), ("net", "forward"), ("net", "guest"),
                      ("overhead",), ("failover",), ("determinism",), ("sim",), ("compare",), ("report",)):
            said = self.ftbench(*words, "--help").stdout
            self.assertTrue(said.startswith("usage: ftbench " + " ".join(words)), said)
            self.assertIn("\nexit status: 0 ", said)
            self.assertTrue(all(len(line) <= 120 for line in said.splitlines()), said)
            self.assertEqual(self.ftbench(*words, "-h").stdout, said)
            self.assertIn("--no-such", self.ftbench(*words, "--no-such", status=2).stderr)

    def test_guest_tells_steps_and_counts_from_the_metrics(self):
        _, result = self.guest()
        for side, steps in {
            "protected": {"input_wait": 3, "guest": 20, "exit": 2, "append": 1.5, "release": 4 - 1.5, "send": 1},
            "unprotected": {"input_wait": 3, "guest": 20, "exit": 2, "release": 0.5, "send": 1},
        }.items():
            series = next(series for series in result["latency_ns"] if series["name"] == side)
            self.assertGreaterEqual(series["samples"], 900)
            for step, us in steps.items():
                for value in self.values(result, f"step_us.{side}.{step}"):
                    self.assertAlmostEqual(value, us, places=3)
            self.assertEqual(len(self.values(result, f"step_us.{side}.outside")), 3)
            # each look claims a hundred requests, of which the client has made three hundred
            for value in self.values(result, f"exits_per_request.{side}"):
                self.assertAlmostEqual(value, 9 * 100 / 300, places=6)
        for value in self.values(result, "log_bytes_per_request.protected"):
            self.assertAlmostEqual(value, 512 * 100 / 300, places=6)
        self.assertNotIn("log_bytes_per_request.unprotected", [metric["name"] for metric in result["metrics"]])
        self.assertNotIn("step_us.unprotected.append", [metric["name"] for metric in result["metrics"]])
        ratio, ours, theirs = (self.values(result, name) for name in
                               ("protected_to_unprotected.p50", "protected_ns.p50", "unprotected_ns.p50"))
        for a, b, c in zip(ratio, ours, theirs):
            self.assertAlmostEqual(a, b / c, places=6)

    def test_guest_is_held_against_another_vmm_and_the_goals(self):
        _, result = self.guest()
        for side in ("protected", "unprotected"):
            for ratio, ours, theirs in zip(self.values(result, f"throughput_{side}_to_other"),
                                           self.values(result, f"requests_per_s.{side}"),
                                           self.values(result, "requests_per_s.other")):
                self.assertAlmostEqual(ratio, ours / theirs, places=6)
        acks, holds = (self.values(result, name) for name in ("ack_us", "hold_us"))
        self.assertEqual(self.values(result, "hold_to_ack"), [hold / ack for hold, ack in zip(holds, acks)])
        for share, ours, theirs, ack in zip(self.values(result, "round_trip_to_goal"),
                                            self.values(result, "protected_ns.p50"),
                                            self.values(result, "unprotected_ns.p50"), acks):
            self.assertAlmostEqual(share, ours / (1.25 * theirs + 1000 * ack), places=6)
        self.assertEqual([goal["metric"] for goal in result["goals"]], ["hold_to_ack", "round_trip_to_goal"])
        self.assertIn("no metrics", self.ftbench("guest", *self.targets(), "--other=127.0.0.1,metrics=127.0.0.1:1",
                                                 status=2).stderr)

    def test_guest_refuses_what_is_no_pair_of_guests(self):
        swapped = [f"--{side}=127.0.0.1:{port},metrics={vmm.address}"
                   for side, port, vmm in zip(("protected", "unprotected"), self.ports, reversed(self.vmms))]
        self.assertIn("is not", self.ftbench("guest", *swapped, "--rounds", 1, status=1).stderr)
        nobody = f"--protected=127.0.0.1:{free_port()}"
        self.assertIn("cannot be asked", self.ftbench("guest", nobody, self.targets()[1], status=1).stderr)
        other = f"--protected=127.0.0.1:{self.ports[0]},metrics=127.0.0.1:{self.ports[0]}"
        self.assertIn("no metrics", self.ftbench("guest", other, self.targets()[1], status=1).stderr)
        for wrong in ("127.0.0.1,metric=1:2", "127.0.0.1:0", "127.0.0.1:70000", "", "127.0.0.1,metrics=nowhere"):
            self.ftbench("guest", "--protected", wrong, self.targets()[1], status=2)
        self.assertIn("missing", self.ftbench("guest", self.targets()[0], status=2).stderr)

    def test_overhead_holds_one_guest_against_the_other(self):
        _, result = self.overhead()
        self.assertEqual([agent.asked.count(("compile", 3)) for agent in self.agents], [2, 2])
        for name in ("redis_requests", "redis_pipelined_requests", "openssl_bytes", "compile_files"):
            program = name.rsplit("_", 1)[0]
            ours, theirs = (self.values(result, f"{name}_per_second.{side}") for side in ("protected", "unprotected"))
            for ratio, a, b in zip(self.values(result, f"protected_to_unprotected.{program}"), ours, theirs):
                self.assertAlmostEqual(ratio, a / b, places=6)
            for log, records in zip(self.values(result, f"log_mbit_per_second.{program}.protected"),
                                    self.values(result, f"log_records_per_second.{program}.protected")):
                self.assertAlmostEqual(log / records, 512 / 4 * 8e-6, places=9)
        for agent in self.agents:
            self.assertIn("compile", agent.prepared)
        refused = self.targets([agent.port for agent in self.agents])
        self.assertIn("no such program", self.ftbench("overhead", *refused, "--run", "python=1", "--rounds", 1,
                                                      status=1).stderr)
        self.assertIn("without an answer", self.ftbench("overhead", *refused, "--run", "sqlite", "--rounds", 1,
                                                        status=1).stderr)
        self.assertIn("no agent", self.ftbench("overhead", *self.targets([free_port(), free_port()]), "--run", "sqlite",
                                               status=1).stderr)
        self.assertIn("nobody answers", self.ftbench("overhead", *refused, "--run", "redis", "--redis-port",
                                                     free_port(), status=1).stderr)
        self.assertIn("pgbench is not measured: no disk", self.ftbench("overhead", *refused, "--run", "pgbench",
                                                                       status=1).stderr)
        for wrong in ("solitaire", "redis=0", "", "redis,,sqlite"):
            self.ftbench("overhead", *refused, "--run", wrong, status=2)

    def test_overhead_keeps_what_was_measured_when_one_program_fails(self):
        path = self.path("rest.json")
        self.ftbench("overhead", *self.targets([agent.port for agent in self.agents]), "--rounds", 2, "--json", path,
                     "--run", "python=1,openssl=3,pgbench", status=1)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        self.validator.validate(result)
        self.assertEqual(len(self.values(result, "protected_to_unprotected.openssl")), 2)
        self.assertNotIn("protected_to_unprotected.python", [metric["name"] for metric in result["metrics"]])
        self.assertIn("python failed in round 1", result["notes"])
        self.assertIn("pgbench is not measured: no disk", result["notes"])

    def test_overhead_that_is_stopped_keeps_what_was_measured(self):
        path = self.path("stopped.json")
        run = subprocess.Popen([FTBENCH, "overhead", *self.targets([agent.port for agent in self.agents]), "--rounds",
                                "64", "--json", path, "--run", "openssl=3"], stderr=subprocess.PIPE, text=True)
        for line in run.stderr:
            if "round 3 of" in line:
                break
        run.send_signal(signal.SIGTERM)
        said = run.communicate(timeout=LIMIT_S)
        self.assertEqual(run.returncode, 1, said)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        self.validator.validate(result)
        self.assertGreaterEqual(len(self.values(result, "protected_to_unprotected.openssl")), 2)
        self.assertIn("stopped in round", result["notes"])

    @unittest.skipIf(shutil.which("wrk") is None, "wrk is not installed (scripts/setup installs it)")
    def test_overhead_drives_nginx_with_wrk(self):
        pages, guests = Pages(), self.targets([agent.port for agent in self.agents])
        run = ["overhead", *guests, "--rounds", 1, "--http-port", pages.port, "--run"]
        _, result = self.result("nginx", *run, "nginx=1")
        for side in ("protected", "unprotected"):
            self.assertGreater(min(self.values(result, f"nginx_requests_per_second.{side}")), 1)
        self.assertIn("Non-2xx", self.ftbench(*run, "nginx_large=1", status=1).stderr)
        pages.server.shutdown()
        pages.server.server_close()
        self.assertIn("nobody answers", self.ftbench(*run, "nginx=1", status=1).stderr)
        elsewhere = dict(os.environ, PATH=self.dir)
        self.assertIn("wrk does not start", self.ftbench(*run, "nginx=1", status=1, env=elsewhere).stderr)

    def test_overhead_ends_what_does_not_end(self):
        pages, guests = Pages(), self.targets([agent.port for agent in self.agents])
        wrk, pid = self.path("slow/wrk"), self.path("slow/pid")
        os.mkdir(self.path("slow"))
        with open(wrk, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\n[ $1 != --version ] || exit 1\necho $$ >{pid}\nexec sleep 50\n")
        os.chmod(wrk, 0o700)
        slow = dict(os.environ, PATH=f"{self.path('slow')}:{os.environ['PATH']}")
        self.assertIn("not done within --limit", self.ftbench(
            "overhead", *guests, "--rounds", 1, "--http-port", pages.port, "--limit", 0.5, "--run", "nginx=1", status=1,
            env=slow).stderr)
        pages.server.shutdown()
        pages.server.server_close()
        with open(pid, encoding="utf-8") as file, self.assertRaises(ProcessLookupError):
            os.kill(int(file.read()), 0)

    def test_net_forward_holds_dpdk_net_against_testpmd(self):
        _, result = self.net_forward()
        self.assertEqual(result["settings"]["frame_bytes"], [64, 1000])
        for size in ("64B", "1000B"):
            for ours in ("port", "net"):
                wall, cpu = (self.values(result, f"{clock}.{size}.{ours}")[0]
                             for clock in ("frames_per_s", "cpu_frames_per_s"))
                self.assertTrue(0 < wall < 1.05 * cpu, (wall, cpu))  # no thread runs for longer than it takes
        goal, = result["goals"]
        if shutil.which("dpdk-testpmd") is None:
            self.assertIn("dpdk-dev", result["notes"])
            self.assertIsNone(goal["met"])
            return
        for ours in ("port", "net"):
            ratio, above, below = (self.values(result, name)[0] for name in (
                f"{ours}_to_testpmd.64B", f"cpu_frames_per_s.64B.{ours}", "cpu_frames_per_s.64B.testpmd"))
            self.assertAlmostEqual(ratio, above / below, places=6)
        self.assertEqual(goal["metric"], "port_to_testpmd.64B")
        self.assertIsInstance(goal["met"], bool)

    def test_net_forward_refuses_what_it_cannot_do(self):
        for wrong in (("--sizes", "59"), ("--sizes", "1515"), ("--sizes", ""), ("--rounds", 0), ("--cpu", "x"),
                      ("more",)):
            self.ftbench("net", "forward", *wrong, status=2)
        self.assertIn("CPU 1023", self.ftbench("net", "forward", "--cpu", 1023, "--rounds", 1, "--no-testpmd",
                                               status=1).stderr)
        self.assertIn("'sideways'", self.ftbench("net", "sideways", status=2).stderr)
        self.ftbench("net", status=2)

    def test_net_guest_tells_throughput_both_ways_and_the_log(self):
        _, result = self.net_guest()
        for way, moved in (("receive", 1024), ("transmit", 256)):
            ours, theirs = (self.values(result, f"mbit_per_s.{way}.{side}") for side in ("protected", "unprotected"))
            for ratio, a, b in zip(self.values(result, f"protected_to_unprotected.{way}"), ours, theirs):
                self.assertAlmostEqual(ratio, a / b, places=6)
                self.assertGreater(min(a, b), 1)
            for log, records in zip(self.values(result, f"log_mbit_per_second.{way}.protected"),
                                    self.values(result, f"log_records_per_second.{way}.protected")):
                self.assertAlmostEqual(log / records, 512 / 4 * 8e-6, places=9)
            for share in self.values(result, f"log_bytes_per_byte.{way}.protected"):
                self.assertAlmostEqual(share, 512 / moved, places=9)
        self.assertNotIn("log_mbit_per_second.receive.unprotected", [metric["name"] for metric in result["metrics"]])

    def test_net_guest_says_that_iperf3_is_missing(self):
        elsewhere = dict(os.environ, PATH=self.dir)
        self.assertIn("package iperf3", self.ftbench("net", "guest", *self.targets(), status=1, env=elsewhere).stderr)

    def test_net_guest_says_what_does_not_answer(self):
        if shutil.which("iperf3") is None:
            self.skipTest("iperf3 is not installed (scripts/setup installs it)")
        nobody = self.targets([free_port(), free_port()])
        self.assertIn("`iperf3 -s` run there?", self.ftbench("net", "guest", *nobody, "--rounds", 1, status=1).stderr)
        # a redis-server does not speak iperf3
        self.assertIn("iperf3 with the", self.ftbench("net", "guest", *self.targets(), "--rounds", 1, "--limit", 5,
                                                      status=1).stderr)
        self.assertIn("missing", self.ftbench("net", "guest", self.targets()[0], status=2).stderr)
        self.ftbench("net", "guest", *self.targets(), "--seconds", 0, status=2)

    def test_failover_tells_the_distribution_of_each_step(self):
        _, result = self.failover()
        self.assertEqual(self.values(result, "step_ms.detected"), [1, 2, 3, 4, 5])
        self.assertEqual(self.values(result, "step_ms.live"), [1.5, 3, 4.5, 6, 7.5])
        self.assertEqual(self.values(result, "step_ms.live_less_detected"), [0.5, 1, 1.5, 2, 2.5])
        self.assertEqual(self.values(result, "step_ms.client_gap"), [2, 4, 6, 8, 10])
        self.assertEqual(self.values(result, "resent_frames"), [1, 2, 3, 4, 5])
        self.assertEqual(result["failed_runs"], 0)
        with open(self.path("runs/seeds"), encoding="utf-8") as file:
            self.assertEqual(len(set(file.read().split())), 5, "each run has a seed of its own")
        with open(self.path("runs/0003/log"), encoding="utf-8") as file:
            self.assertEqual(file.read(), "said\n")

    def test_failover_counts_the_runs_that_fail(self):
        path = self.path("failed.json")
        script = self.script("[ $run != 2 ] || exit 3", "[ $run != 4 ] || sleep 60",
                             "echo '{\"counter\": {\"lost\": '$((run == 3))'}}' >\"$out/result.json\"")
        done = self.ftbench("failover", "--runs", 4, "--limit", 1, "--out", self.path("failed"), "--json", path, "--",
                            script, "{out}", "{seed}", "{run}", status=1)
        for words in ("run 2 has left no result (status 3)", "run 3: 1 acknowledged and lost", "run 4 is not done"):
            self.assertIn(words, done.stderr)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        self.validator.validate(result)
        self.assertEqual(result["failed_runs"], 3)
        self.assertEqual(self.values(result, "lost"), [0, 1])
        self.ftbench("failover", "--runs", 1, "--out", self.path("none"), "--", self.path("no-such-script"), status=1)
        self.ftbench("failover", "--runs", 1, status=2)
        self.ftbench("failover", "--runs", 0, "--", "true", status=2)
        self.ftbench("failover", "--out", self.path("no/such/place"), "--", "true", status=2)

    def run_files(self, number, **more):
        """What a recording of two seconds leaves: its status file, and the summary of its log."""
        status = {"vm": "x", "virtual_ms": 2000, "ended": "shutdown",
                  "lockstep": {"positions": 1000 * number, "time_records": 400, "time_bytes": 25600, "clock_reads": 800,
                               "divergences": 0,
                               "forced_syncs": 10, "forced_pages": 500, "forced_zero_pages": 20,
                               "forced_delta_pages": 30, "forced_bytes": 2000000, "forced_ms": 20, "run_ms": 1000,
                               "checked_ms": 15, "forced_pause": {"samples": 10, "p50_us": 1500, "p99_us": 4000,
                                                                  "max_us": 5000}, **more},
                  "channel": {"records": 2000, "record_bytes": 3000000}, "exits": {"io": 900, "hlt": 100, "mmio": 0}}
        log = {"kinds": {"time": {"records": 400, "bytes": 25600}, "pages": {"records": 20, "bytes": 2000000}}}
        paths = []
        for name, content in (("status", status), ("log", log)):
            paths.append(self.path(f"run{number}.{name}.json"))
            with open(paths[-1], "w", encoding="utf-8") as file:
                json.dump(content, file)
        return paths

    def medians(self, result):
        return {metric["name"]: metric["median"] for metric in result["metrics"]}

    def test_determinism_tells_what_a_run_has_logged(self):
        status, log = self.run_files(1)
        countable, _ = self.run_files(3, instructions=4000000)
        plain, _ = self.run_files(5)
        with open(plain, encoding="utf-8") as file:
            slower = json.load(file)
        slower["virtual_ms"] = 1900
        with open(plain, "w", encoding="utf-8") as file:
            json.dump(slower, file)
        _, result = self.result("determinism", "determinism", "--status", status, "--log", log, "--unprotected", plain)
        found = self.medians(result)
        for name, value in (("log_bytes_per_s", 1.5e6), ("log_megabits_per_s", 12), ("forced_pages_per_sync", 50),
                            ("forced_delta_pages_per_sync", 3), ("run_percent", 50), ("time_bytes_per_clock_read", 32),
                            ("checked_percent_of_run", 1.5), ("records_per_s.time", 200), ("bytes_per_s.pages", 1e6),
                            ("exits_per_s.io", 450), ("forced_pause_us.p99", 4000), ("protected_by_unprotected", 0.95)):
            self.assertAlmostEqual(found[name], value, msg=name)
        self.assertNotIn("exits_per_s.mmio", found)
        self.assertNotIn("log_bytes_per_1000_instructions", found)
        self.assertIn("not countable", result["notes"])
        self.assertTrue(all(goal["met"] for goal in result["goals"]) and len(result["goals"]) == 2)
        path = self.path("two.json")
        self.ftbench("determinism", "--json", path, "--status", countable, "--status", countable)
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        self.validator.validate(result)
        self.assertEqual(self.medians(result)["log_bytes_per_1000_instructions"], 750)
        self.assertEqual(len(result["metrics"][0]["values"]), 2)
        self.assertNotIn("not countable", result["notes"])

    def test_determinism_looks_at_a_running_guest(self):
        _, result = self.result("determinism-live", "determinism", "--live", self.vmms[0].address, "--seconds", 0.2,
                                "--looks", 2)
        found = self.medians(result)
        self.assertGreater(found["positions_per_s"], 0)
        self.assertAlmostEqual(found["log_bytes_per_position"], 512 / 9)
        self.assertAlmostEqual(found["exits_per_s.io"] / found["positions_per_s"], 7 / 9)

    def test_determinism_refuses_what_is_no_run(self):
        status, log = self.run_files(7)
        for args, code, words in (((), 2, "--live"), (("--log", log), 2, "before them"),
                                  (("--status", log), 1, "no status file"),
                                  (("--status", status, "--log", status), 1, "no summary"),
                                  (("--status", self.path("nowhere")), 1, "cannot read"),
                                  (("--status", status, "--live", "127.0.0.1:1"), 2, "--live"),
                                  (("--live", f"127.0.0.1:{free_port()}"), 1, "no metrics")):
            self.assertIn(words, self.ftbench("determinism", *args, status=code).stderr)

    def test_sim_says_where_each_number_is_from(self):
        _, result = self.sim()
        inputs = {item["name"]: item for item in result["inputs"]}
        self.assertEqual(inputs["write-us"]["origin"], "given")
        self.assertEqual(inputs["poll-us"]["origin"], "assumed")
        self.assertIn("channel.json", inputs["record-ns"]["origin"])
        self.assertAlmostEqual(inputs["exits"]["value"], 3, places=6)
        self.assertIn("guest.json", inputs["exits"]["origin"])
        self.assertAlmostEqual(inputs["guest-us"]["value"], 20 + 2 - 3 * 2, places=3)
        self.assertGreater(self.values(result, "commit_to_ack_us.4096B.25Gb")[0],
                           self.values(result, "commit_to_ack_us.4096B.400Gb")[0])
        with open(self.path("broken.json"), "w", encoding="utf-8") as file:
            file.write('{"format": "ftbench chan')
        self.ftbench("sim", "--from", self.path("broken.json"), status=1)
        self.ftbench("sim", "--from", self.path("nowhere.json"), status=1)
        self.ftbench("sim", "--record-ns", 0, status=2)
        self.ftbench("sim", "--load", 100, status=2)

    def check_page(self, text, paths):
        page = Page()
        page.feed(text)
        page.close()
        self.assertEqual(page.wrong, [])
        self.assertEqual(page.open, [])
        self.assertNotIn("http", re.sub(r'http-equiv', '', text), "nothing is from elsewhere")
        words = "\n".join(page.words)
        plots = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
        names = set()
        for plot in plots:
            root = xml.etree.ElementTree.fromstring(plot)
            width, height = map(float, root.get("viewBox").split()[2:])
            self.assertTrue(root.find("title").text)
            drawn = 0
            for line in root.iter("polyline"):
                points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
                self.assertGreater(len(points), 1)
                for x, y in points:
                    self.assertTrue(0 <= x <= width and 0 <= y <= height, (x, y))
                drawn += 1
            for bar in root.iter("rect"):
                x, y, w, h = (float(bar.get(name)) for name in ("x", "y", "width", "height"))
                self.assertTrue(x >= 0 and y >= 0 and w >= 0 and x + w <= width and y + h <= height)
                drawn += 1
            self.assertGreater(drawn, 0)
            names.update(text.text for text in root.iter("text"))
        for path in paths:
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            for series in result["latency_ns"]:
                self.assertIn(series["name"], names, "every series has its line")
            for metric in result["metrics"]:
                if "_ns.p" not in metric["name"] and "_ns.max" not in metric["name"]:
                    self.assertIn(metric["name"], words)
        return plots, words

    def test_report_is_one_whole_page_with_its_plots(self):
        paths = [make()[0] for make in (self.channel, self.counter, self.guest, self.sim, self.overhead, self.failover,
                                       self.net_forward)]
        self.ftbench("report", "--out", self.path("page.html"), "--title", "a & b", *paths)
        with open(self.path("page.html"), encoding="utf-8") as file:
            plots, words = self.check_page(file.read(), paths)
        self.assertGreaterEqual(len(plots), 8)
        self.assertIn("a & b", words)
        self.assertIn("A model, not a measurement.", words)
        self.assertIn("lost", words)

    def test_report_shows_hostile_text_as_text(self):
        evil = "</title><script>alert(1)</script>\"'&|`"
        _, result = self.channel()
        result = json.loads(json.dumps(result))
        result["notes"] = result["machine"]["cpu"] = result["latency_ns"][0]["name"] = evil
        result["metrics"][-1]["name"] = evil
        result["metrics"].append({"name": None, "role": 7, "values": ["x"]})
        result["latency_ns"].append(3)
        result["settings"]["seed"] = evil
        with open(self.path("evil.json"), "w", encoding="utf-8") as file:
            json.dump(result, file)
        page = Page()
        page.feed(self.ftbench("report", self.path("evil.json")).stdout)
        self.assertEqual(page.wrong, [])
        self.assertIn(evil, page.words)
        self.assertNotIn("<script", self.ftbench("report", "--markdown", self.path("evil.json")).stdout)

    def test_report_in_markdown_has_whole_tables(self):
        paths = [make()[0] for make in (self.channel, self.guest, self.sim)]
        text = self.ftbench("report", "--markdown", *paths).stdout
        columns = None
        for line in text.splitlines():
            if not line.startswith("|"):
                columns = None
                continue
            cells = len(re.findall(r"(?<!\\)\|", line))
            self.assertEqual(cells, columns or cells, line)
            columns = cells
        self.assertIn("protected_to_unprotected.p50", text)
        self.assertNotIn("<svg", text)

    def test_report_leaves_an_older_page_when_a_result_is_none(self):
        with open(self.path("old.html"), "w", encoding="utf-8") as file:
            file.write("older")
        self.ftbench("report", "--out", self.path("old.html"), self.channel()[0], self.path("nowhere.json"), status=1)
        with open(self.path("old.html"), encoding="utf-8") as file:
            self.assertEqual(file.read(), "older")
        self.ftbench("report", "--out", self.path("no/such/place.html"), self.channel()[0], status=1)
        self.ftbench("report", status=2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
