#!/usr/bin/env python3
"""Measures what the gateway adds to a call when the cache has the answer and when it does not, against the same upstream
without it, on real engines of its own.

    bench/cache.py [ROUNDS]      prints one JSON object; milliseconds

Each round (2000 of them) asks the upstream directly, then the gateway what nobody has asked before, then what was asked in the
first round, one after the other on connections that stay. The upstream is the simulator, and answers at once.
"""
import http.client, json, os, socket, statistics, subprocess, sys, tempfile, time, urllib.request

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
OURS = os.environ.get("TOLLSTREAM") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release/tollstream")
PATIENCE_S = 60
WARM_UP = 500


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url):
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            assert time.monotonic() < until, url
            time.sleep(0.1)


class Client:
    """One connection to one of the two."""

    def __init__(self, address, key):
        self.connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
        self.headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, question, found=None):
        """How long the answer took; what the gateway must say of its cache."""
        body = json.dumps({"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": question}]})
        began = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", body, self.headers)
        answer = self.connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - began
        assert answer.status == 200, text
        assert answer.headers.get("x-tollstream-cache") == found, (found, dict(answer.headers))
        return took * 1000


def told(times, direct):
    """Of one way of asking: its median and its 99th percentile, and what they are above those of the upstream itself."""
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    own = {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
    if direct is not None:
        own["added_p50_ms"] = round(p50 - statistics.median(direct), 2)
        own["added_p99_ms"] = round(p99 - statistics.quantiles(direct, n=100)[98], 2)
    return own


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    with tempfile.TemporaryDirectory() as work:
        running, stack = [], [OURS, "stack"]
        upstream, facade, admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
        log = open(os.path.join(work, "log"), "w")
        try:
            running.append(subprocess.Popen([OURS, "simulate", "--listen", upstream, "--ttft-ms", "0", "--tokens-per-second", "0"], stdout=log, stderr=log))
            subprocess.run([*stack, "up", "--data", f"{work}/stack", "--free-ports"], check=True, stdout=subprocess.DEVNULL)
            status = subprocess.run([*stack, "status", "--data", f"{work}/stack", "--json"], check=True, capture_output=True, text=True).stdout
            at = json.loads(status)["addresses"]
            config = os.path.join(work, "tollstream.toml")
            with open(config, "w") as file:
                file.write(f'[kafka]\nbrokers = "{at["kafka"]}"\n[registry]\nurl = "{at["registry"]}"\n[clickhouse]\nurl = "{at["clickhouse"]}"\n')
                file.write(f'[facade]\nlisten = "{facade}"\n[admin]\nlisten = "{admin}"\n[providers]\nupstream_override = "http://{upstream}/v1"\n')
            subprocess.run([OURS, "topology", "apply", "--config", config, "--yes"], check=True, stdout=subprocess.DEVNULL)
            create = [OURS, "keys", "create", "--config", config, "--organization", "org_demo"]
            key = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()
            running.append(subprocess.Popen([OURS, "run", "--config", config], stderr=log))
            wait_for(f"http://{admin}/health/ready")
            direct, ours = Client(upstream, key), Client(facade, key)
            ours.ask("what everybody asks", "miss")
            times = {"direct": [], "miss": [], "hit": []}
            for number in range(WARM_UP + rounds):
                took = {
                    "direct": direct.ask("what everybody asks"),
                    "miss": ours.ask(f"what nobody has asked, {number}", "miss"),
                    "hit": ours.ask("what everybody asks", "hit"),
                }
                if number >= WARM_UP:
                    for name, ms in took.items():
                        times[name].append(ms)
            told_of = {name: told(all, None if name == "direct" else times["direct"]) for name, all in times.items()}
            print(json.dumps({"rounds": rounds, **told_of}, indent=2))
        finally:
            for process in reversed(running):
                process.kill()
                process.wait()
            subprocess.run([*stack, "down", "--data", f"{work}/stack"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


main()
