#!/usr/bin/env python3
"""Runs libCacheSim and this workspace's policies on the same single-expert requests; prints hits and speed side by side.

    pip install libcachesim==0.3.5 numpy
    cargo build --release -p expert-cache --examples
    python tools/libcachesim/compare.py target/release/examples/count_hits

With --cacheus FOLDER, a checkout of https://github.com/sylab/cacheus (which needs matplotlib), LIRS is also compared with
that implementation, on requests without immediate repeats, which it ignores, and with its one HIR slot in a hundred, at
least one, where it has at least two.

Needs no trace: requests are drawn from seeded distributions. Both sides read one file in libCacheSim's oracleGeneral
format; both times are of serving the requests, libCacheSim's with its reader of the mapped file.
"""

import argparse
import csv
import io
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import libcachesim as lcs
from libcachesim import libcachesim_python as raw

RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


# Two to this power buckets: enough for 6,144 experts, and quick to set up.
HASH_POWER = 14


def slru(capacity, hashpower):
    """Two segments; the class of the package has no parameter for their number."""
    return lcs.cache.CacheBase(raw.SLRU_init(lcs.CommonCacheParams(cache_size=capacity, hashpower=hashpower), "n-seg=2"))


# Ours, libCacheSim's, and why the hits may differ ("" where they must be equal).
POLICIES = [
    ("lru", lcs.LRU, ""),
    ("fifo", lcs.FIFO, ""),
    ("clock", lcs.Clock, ""),
    ("sieve", lcs.Sieve, ""),
    ("s3-fifo", lcs.S3FIFO, ""),
    ("2q", lcs.TwoQ, ""),
    ("slru", slru, ""),
    ("arc", lcs.ARC, ""),
    ("lfu-in-cache", lcs.LFU, ""),
    ("belady", lcs.Belady, ""),
    ("lirs", lcs.LIRS, "a hit in its Q takes a LIR slot"),
]


def workloads(requests, seed):
    random = np.random.default_rng(seed)
    rank = np.arange(1, 65, dtype=np.float64)
    zipf = rank**-0.8 / np.sum(rank**-0.8)
    yield "64 experts, zipf 0.8", random.choice(64, requests, p=zipf)
    # Popularity that moves: the ranks are shuffled anew every 5,000 requests.
    shuffles = np.array([random.permutation(64) for _ in range(requests // 5000 + 1)])
    drawn = random.choice(64, requests, p=zipf)
    yield "64 experts, zipf 0.8, moving", shuffles[np.arange(requests) // 5000, drawn]
    rank = np.arange(1, 6145, dtype=np.float64)
    zipf = rank**-0.8 / np.sum(rank**-0.8)
    yield "6144 experts, zipf 0.8", random.permutation(6144)[random.choice(6144, requests, p=zipf)]


def write(path, ids):
    """Writes oracleGeneral records with the true next accesses, which libCacheSim's Belady needs."""
    records = np.zeros(len(ids), RECORD)
    records["id"], records["size"] = ids, 1
    records["time"] = np.arange(len(ids)) // 1000
    upcoming = {}
    following = np.full(len(ids), -1, np.int64)
    for at in range(len(ids) - 1, -1, -1):
        following[at] = upcoming.get(ids[at], -1)
        upcoming[ids[at]] = at + 1
    records["next"] = following
    records.tofile(path)


def theirs(make, path, capacity, requests, repeats):
    best, misses = float("inf"), None
    for _ in range(repeats):
        reader = lcs.TraceReader(str(path), lcs.TraceType.ORACLE_GENERAL_TRACE, lcs.ReaderInitParam(ignore_obj_size=True))
        cache = make(capacity, hashpower=HASH_POWER)
        start = time.perf_counter()
        miss_ratio, _ = cache.process_trace(reader)
        best = min(best, time.perf_counter() - start)
        misses = round(miss_ratio * requests)
    return requests - misses, best


def ours(binary, path, capacities, repeats):
    names = ",".join(name for name, _, _ in POLICIES)
    command = [binary, path, "--policy", names, "--capacity", ",".join(map(str, capacities)), "--repeats", str(repeats)]
    rows = csv.DictReader(io.StringIO(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {(row["policy"], int(row["capacity"])): (int(row["hits"]), float(row["seconds"])) for row in rows}


def cacheus_lirs(folder, path, capacity):
    sys.path.insert(0, str(folder / "code"))
    from algs.lirs import LIRS

    cache = LIRS(capacity, 1000)
    cache.hirs_limit = max(1, capacity // 100)
    cache.lirs_limit = capacity - cache.hirs_limit
    hits = 0
    for at, expert in enumerate(np.fromfile(path, RECORD)["id"].tolist()):
        hits += expert in cache
        cache.request(expert, at)
    return hits


def compare_lirs_with_cacheus(arguments, path, ids, capacities):
    """Returns the number of capacities at which hits differ."""
    write(path, ids[np.r_[True, ids[1:] != ids[:-1]]])
    mine = ours(arguments.binary, path, capacities, 1)
    unequal = 0
    for capacity in capacities:
        hits, their_hits = mine["lirs", capacity][0], cacheus_lirs(arguments.cacheus, path, capacity)
        unequal += hits != their_hits
        print(f"lirs, {capacity} slots, no immediate repeats: {hits} hits, Cacheus has {their_hits}")
    return unequal


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path, help="the example count_hits, built for release")
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=50, help="runs, of which the fastest counts")
    parser.add_argument("--cacheus", type=pathlib.Path, help="a checkout of sylab/cacheus, to compare LIRS with")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    unequal = 0
    for name, ids in workloads(arguments.requests, arguments.seed):
        capacities = [20, 32, 48] if ids.max() < 64 else [256, 1536]
        print(f"\n{name}, {arguments.requests} requests\n")
        print("| policy | slots | hits | libCacheSim's | M requests/s | libCacheSim's | remark |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "requests.oracleGeneral"
            write(path, ids)
            mine = ours(arguments.binary, path, capacities, arguments.repeats)
            for policy, make, difference in POLICIES:
                for capacity in capacities:
                    hits, seconds = mine[policy, capacity]
                    their_hits, their_seconds = theirs(make, path, capacity, len(ids), arguments.repeats)
                    if hits == their_hits:
                        remark = "equal"
                    elif difference:
                        remark = difference
                    else:
                        remark, unequal = "DIFFERENT", unequal + 1
                    speeds = [f"{len(ids) / took / 1e6:.1f}" for took in (seconds, their_seconds)]
                    print(f"| `{policy}` | {capacity} | {hits} | {their_hits} | {speeds[0]} | {speeds[1]} | {remark} |", flush=True)
            if arguments.cacheus:
                print()
                unequal += compare_lirs_with_cacheus(arguments, path, ids, capacities)
    if unequal:
        sys.exit(f"{unequal} hit counts differ that should be equal")


if __name__ == "__main__":
    main()
