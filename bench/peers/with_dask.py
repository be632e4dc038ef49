"""Does the work of Caravan's benchmarks with Dask, and prints what it measured as
one line of JSON. Two worker processes with a thread each; nothing is durable.

    with_dask.py fan|chain|empty N [COMMAND ...]
"""

import json
import subprocess
import sys
import time

from distributed import Client, LocalCluster


def nothing(*_):
    return None


def fan(client, task, n):
    begin = time.perf_counter()
    first = client.submit(task, pure=False)
    middle = client.map(task, range(n), [first] * n, pure=False)
    client.submit(task, middle, pure=False).result()
    took = time.perf_counter() - begin
    return {"seconds": took, "rate": (n + 2) / took}


def chains(client, task, n, length):
    took = []
    for i in range(n + n // 10):
        begin = time.perf_counter()
        last = None
        for _ in range(length):
            last = client.submit(task, last, pure=False)
        last.result()
        if i >= n // 10:
            took.append(1000 * (time.perf_counter() - begin))
    took.sort()
    return {"seconds": sum(took) / 1000, "p50": took[n // 2], "p99": took[min(n - 1, n * 99 // 100)]}


def main():
    work, n, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]

    def process(*_):
        subprocess.run(command, check=True)

    task = process if command else nothing
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            fan(client, task, 20)
            if work == "fan":
                figures = fan(client, task, n)
            elif work == "chain":
                figures = chains(client, task, 1, n)
            elif work == "empty":
                figures = chains(client, task, n, 1)
            else:
                sys.exit(f"with_dask.py: {work}: neither fan, chain nor empty")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
