#!/usr/bin/env python3
"""Measures takeovers on real engines of its own: how long nobody answers after kill -9, how fast a journal is folded, and
how fast it is audited.

    GWBENCH=DIR bench/takeover.py [REQUESTS]      DIR holds mock-openai and gwload; prints one JSON object

The default settings hold, but that the fold of REQUESTS (default 300000) requests is made without a checkpoint.
"""
import json, os, re, signal, socket, subprocess, sys, tempfile, threading, time, urllib.request

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
OURS = os.environ.get("TOLLSTREAM") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release/tollstream")
BENCH = os.environ["GWBENCH"]
ROUNDS = 5
PATIENCE_S = 60
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}).encode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url):
    return urllib.request.urlopen(url, timeout=5).read().decode()


class Process:
    """A gateway with all roles."""

    def __init__(self, work, name, common, checkpoint=None):
        self.facade, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
        own = f'instance = "{name}"\n{common}[facade]\nlisten = "{self.facade}"\n[admin]\nlisten = "{self.admin}"\n'
        own += f"[processor]\ncheckpoint_commits = {checkpoint}\n" if checkpoint else ""
        self.config = os.path.join(work, f"{name}.toml")
        with open(self.config, "w") as file:
            file.write(own)
        self.log = os.path.join(work, f"{name}.log")
        self.child = subprocess.Popen([OURS, "run", "--config", self.config], stderr=open(self.log, "w"))
        until = time.monotonic() + PATIENCE_S
        while not self.is_ready():
            assert time.monotonic() < until, open(self.log).read()[-2000:]
            time.sleep(0.1)

    def is_ready(self):
        try:
            return bool(get(f"http://{self.admin}/health/ready"))
        except OSError:
            return False

    def metric(self, name):
        return next(int(line.split()[1]) for line in get(f"http://{self.admin}/metrics").splitlines() if line.startswith(name + " "))

    def ask(self, key, timeout):
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://{self.facade}/v1/chat/completions", data=BODY, headers=headers)
        return urllib.request.urlopen(request, timeout=timeout).read()


def share(*processes):
    until = time.monotonic() + PATIENCE_S
    while not all(process.metric("tollstream_processor_partitions_owned") for process in processes):
        assert time.monotonic() < until, "a process has no partition"
        time.sleep(0.1)


def silence(one, other, key):
    """Kills the owner of the key's organization; the longest time without an answer, and which of the two is left."""
    before = one.metric("tollstream_processor_requests_admitted_total")
    other.ask(key, PATIENCE_S)
    owner, left = (one, other) if one.metric("tollstream_processor_requests_admitted_total") > before else (other, one)
    answers, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            try:
                left.ask(key, PATIENCE_S)
                answers.append(time.monotonic())
            except OSError as error:
                print("a request failed:", error, file=sys.stderr)

    clients = [threading.Thread(target=client) for _ in range(4)]
    [thread.start() for thread in clients]
    time.sleep(1)
    killed = time.monotonic()
    owner.child.send_signal(signal.SIGKILL)
    owner.child.wait()
    # What was on its way is answered at once; then comes the silence.
    while not [at for at in answers if at > killed + 2]:
        assert time.monotonic() < killed + PATIENCE_S, "nobody took over"
        time.sleep(0.05)
    stop.set()
    [thread.join() for thread in clients]
    times = sorted([killed] + [at for at in answers if at > killed])
    return max(later - earlier for earlier, later in zip(times, times[1:])), left


def fold_speed(log):
    """Entries of the journal per second, of the longest fold."""
    found = re.findall(r"journal folded.*?entries\S*=\S*?(\d+).*?elapsed_ms\S*=\S*?(\d+)", re.sub(r"\x1b\[[0-9;]*m", "", open(log).read()))
    entries, elapsed_ms = max((int(entries), int(elapsed)) for entries, elapsed in found)
    return {"entries": entries, "seconds": elapsed_ms / 1000, "per_second": round(entries * 1000 / max(elapsed_ms, 1))}


def main():
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory() as work:
        mock_port = free_port()
        mock = subprocess.Popen([f"{BENCH}/mock-openai", "--addr", f"127.0.0.1:{mock_port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stack = [OURS, "stack"]
        running = []
        try:
            subprocess.run([*stack, "up", "--data", f"{work}/stack", "--free-ports"], check=True, stdout=subprocess.DEVNULL)
            status = subprocess.run([*stack, "status", "--data", f"{work}/stack", "--json"], check=True, capture_output=True, text=True).stdout
            at = json.loads(status)["addresses"]
            common = f'[kafka]\nbrokers = "{at["kafka"]}"\n[registry]\nurl = "{at["registry"]}"\n[clickhouse]\nurl = "{at["clickhouse"]}"\n'
            common += f'[providers]\nupstream_override = "http://127.0.0.1:{mock_port}/v1"\n'
            config = os.path.join(work, "common.toml")
            with open(config, "w") as file:
                file.write(common)
            subprocess.run([OURS, "topology", "apply", "--config", config, "--yes"], check=True, stdout=subprocess.DEVNULL)
            create = [OURS, "keys", "create", "--config", config, "--organization", "org_demo"]
            key = subprocess.run(create, check=True, capture_output=True, text=True).stdout.strip()

            one = Process(work, "round0", common)
            running.append(one)
            silences = []
            for round in range(1, ROUNDS + 1):
                other = Process(work, f"round{round}", common)
                running.append(other)
                share(one, other)
                longest, one = silence(one, other, key)
                silences.append(round_to(longest))
                print(f"takeover {round}: {longest:.2f} s", file=sys.stderr)
            one.child.terminate()
            one.child.wait()

            # Without a checkpoint, all of it is folded by the next start.
            never = 1 << 60
            filling = Process(work, "filling", common, never)
            running.append(filling)
            load = [f"{BENCH}/gwload", "--target", f"ours=http://{filling.facade}/v1/chat/completions", "--header", f"ours=authorization: Bearer {key}"]
            load += ["--default-model", "gpt-4o-mini", "--mode", "closed", "-c", "64", "--rounds", "1", "--round-secs", str(max(5, requests // 2_500))]
            subprocess.run(load, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            filling.child.terminate()
            filling.child.wait()
            folding = Process(work, "folding", common, never)
            running.append(folding)
            fold = fold_speed(folding.log)
            folding.child.terminate()
            folding.child.wait()
            report = json.loads(subprocess.run([OURS, "audit", "--config", config, "--json"], capture_output=True, text=True).stdout)
            audit = {name: report[name] for name in ("verdict", "seconds", "commits_per_second")}
            print(json.dumps({"takeover_seconds": sorted(silences), "fold": fold, "audit": audit}, indent=2))
        finally:
            for process in running:
                process.child.kill()
                process.child.wait()
            mock.kill()
            mock.wait()
            subprocess.run([*stack, "down", "--data", f"{work}/stack"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def round_to(seconds):
    return round(seconds, 2)


main()
