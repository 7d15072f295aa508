#!/usr/bin/env python3
"""How long after its answer a request's row is there for whoever asks ClickHouse, under a steady load.

    tollstream up --detach
    bench/visible.py [--rate 200] [--seconds 60] [--data .tollstream]

A request's time is from the last byte of its answer, as its client saw it, to the first query that has its row; queries
come every 50 ms, so that a time is too long by up to that and by what the query took.
"""

import argparse
import http.client
import json
import pathlib
import queue
import threading
import time
import urllib.parse
import urllib.request

# The simulator takes half a second for an answer.
CONNECTIONS = 256
QUERY_EVERY = 0.05
GIVE_UP = 60.0

arguments = argparse.ArgumentParser()
arguments.add_argument("--rate", type=float, default=200)
arguments.add_argument("--seconds", type=float, default=60)
arguments.add_argument("--data", default=".tollstream")
arguments = arguments.parse_args()

described = json.loads((pathlib.Path(arguments.data) / "gateway.json").read_text())["description"]
facade = urllib.parse.urlparse(described["facade"])
body = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Bom dia!"}]})
headers = {"authorization": f"Bearer {described['api_key']}", "content-type": "application/json", "cache-control": "no-store"}

due, answered, failures, lock = queue.Queue(), {}, [], threading.Lock()


def ask():
    connection = http.client.HTTPConnection(facade.hostname, facade.port, timeout=60)
    while (at := due.get()) is not None:
        time.sleep(max(0.0, at - time.monotonic()))
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        answer.read()
        ended = time.monotonic()
        with lock:
            if answer.status == 200:
                answered[answer.headers["x-request-id"]] = ended
            else:
                failures.append(answer.status)


def query(sql):
    with urllib.request.urlopen(described["clickhouse"], sql.encode(), timeout=30) as answer:
        return answer.read().decode().split()


def main():
    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    begun = time.monotonic() + 0.5
    count = int(arguments.rate * arguments.seconds)
    for number in range(count):
        due.put(begun + number / arguments.rate)
    for _ in threads:
        due.put(None)
    wall = time.time()
    for thread in threads:
        thread.start()
    seen, recent = {}, f"SELECT request_id FROM {described['database']}.usage WHERE at >= fromUnixTimestamp64Milli({{}})"
    until = begun + arguments.seconds + GIVE_UP
    while time.monotonic() < until and (any(thread.is_alive() for thread in threads) or len(seen) < len(answered)):
        time.sleep(QUERY_EVERY)
        # Rows of this run alone; what a query brings again is known already.
        since = int(max(wall, time.time() - 30) * 1000)
        found = query(recent.format(since))
        now = time.monotonic()
        for request_id in found:
            seen.setdefault(request_id, now)
    times = sorted(max(0.0, seen[id] - ended) for id, ended in answered.items() if id in seen)
    missing = len(answered) - len(times)
    at = lambda share: times[min(len(times) - 1, int(share * len(times)))]
    took = max(answered.values()) - begun
    print(f"{len(answered)} answers at {len(answered) / took:.0f}/s, {len(failures)} others, {missing} rows missing")
    print(f"row visible after p50 {at(0.5):.2f} s, p95 {at(0.95):.2f} s, p99 {at(0.99):.2f} s, max {times[-1]:.2f} s")


main()
