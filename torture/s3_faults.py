"""Embeds from and to an S3 server that fails at random, and compares the output with an undisturbed run.

    python -m torture.s3_faults --rounds 3 --rate 0.05

A proxy in front of SeaweedFS answers 500 and 503, resets connections before and after a request has reached
the server, truncates bodies, and stalls for longer than a client waits.
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from boring_assets.shard_states import State
from tests.faulty_proxy import KINDS, FaultyProxy
from tests.seaweed import Seaweed
from torture.outputs import Place, compare, write_input
from torture.report import finish
from torture.starter import Starter

_STALL_SECONDS = 20


def main() -> None:
    """Runs the rounds and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.05, help="probability of each kind of fault")
    parser.add_argument("--stalls", type=float, default=0.005, help="probability of a stall")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rates = dict.fromkeys(KINDS, options.rate) | {"stall": options.stalls}
    figures: Counter[str] = Counter()
    violations: list[str] = []
    times: list[str] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as name, Seaweed(Path(name) / "seaweed") as server:
        folder, starter = Path(name), Starter()
        keys = write_input(folder / "input", options.shards, options.images)
        source, fs = server.new_prefix(), server.filesystem()
        fs.put(f"{folder / 'input'}/", source, recursive=True)

        def place(name: str, endpoint: str) -> Place:
            target = server.new_prefix()
            env = server.env | {"AWS_ENDPOINT_URL": endpoint}
            return Place(folder / name / "home", source, target, fs, target.removeprefix("s3://"), env)

        undisturbed = place("undisturbed", server.endpoint)
        if undisturbed.start(starter).wait():
            raise RuntimeError(f"The undisturbed run failed:\n{undisturbed.log()}")
        tables, totals = undisturbed.tables(keys), undisturbed.totals()
        for number in range(options.rounds):
            with FaultyProxy(
                server.endpoint, rates, seed=options.seed + number, stall_seconds=_STALL_SECONDS
            ) as proxy:
                disturbed = place(f"disturbed-{number}", proxy.endpoint)
                started = time.monotonic()
                status = disturbed.start(starter).wait(1800)
                times.append(f"{time.monotonic() - started:.0f} s")
                figures["runs"] += 1
                if status:
                    figures["runs that had to be started again"] += 1
                    print(disturbed.log(), flush=True)
                    status = disturbed.start(starter).wait(1800)
                figures["requests"] += proxy.requests
                figures.update({f"faults: {kind}": count for kind, count in proxy.injected.items()})
            wrong = compare(disturbed, keys, tables, totals)
            disturbed.env = server.env
            wrong += [
                f"{key} is {state}" for key, state in disturbed.states().items() if state is not State.DONE
            ]
            wrong += [f"it failed twice: {disturbed.log()}"] if status else []
            uploads = fs.call_s3("list_multipart_uploads", Bucket=disturbed.path.partition("/")[0])
            wrong += [f"the upload {one['Key']} was not completed" for one in uploads.get("Uploads", [])]
            violations += [f"round {number}: {what}" for what in wrong]
            print(dict(figures), f"{len(violations)} violations", flush=True)
        starter.close()
    finish(f"S3 faults (seed {options.seed})", {**figures, "seconds a run": ", ".join(times)}, violations)


if __name__ == "__main__":
    main()
