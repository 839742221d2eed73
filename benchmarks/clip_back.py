"""Runs `clip-retrieval index` and `clip-retrieval back` on an export, and searches over HTTP.

    python -m benchmarks.clip_back [OUTPUT]

OUTPUT was embedded with `boring-tiny`; the default is the demo's output. clip-retrieval runs in its own
environment. Its service loads `boring-tiny`, which needs no download.
"""

import argparse
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import TINY
from benchmarks.environments import python_for
from boring_assets.commands.exporting import export_all

_SERVE = """
import sys
from pathlib import Path
from benchmarks.others import register_tiny_model
from clip_retrieval.clip_back import clip_back
folder, port = sys.argv[1:]
checkpoint = register_tiny_model(Path(folder))
clip_back(
    indices_paths=f"{folder}/indices.json", port=int(port), clip_model=f"open_clip:boring-tiny/{checkpoint}",
    use_jit=False, enable_mclip_option=False, provide_aesthetic_embeddings=False,
    columns_to_return=["key", "caption", "partition"],
)
"""
_START_SECONDS = 300
_SEARCHES = 50


def main() -> None:
    """Exports, indexes, serves and searches; prints how many results are right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", nargs="?", default="demo/output")
    output = parser.parse_args().output
    python, why = python_for("clip-retrieval")
    if not python:
        raise SystemExit(f"clip-retrieval cannot be installed: {why}")
    with tempfile.TemporaryDirectory(prefix="clip-back-") as temporary:
        folder = Path(temporary)
        facts = export_all(output, str(folder / "export"), "clip-retrieval")
        print(f"exported {facts['rows']:,} embeddings of {facts['partitions']} partitions")
        index = [f"--embeddings_folder={folder}/export", f"--index_folder={folder}/index"]
        run_timed("index", [python, "-m", "clip_retrieval.cli", "index", *index])
        (folder / "indices.json").write_text(json.dumps({"images": f"{folder}/index"}))
        with serving(python, folder) as url:
            ask_all(url, folder / "export")


def run_timed(what: str, command: list[str]) -> None:
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{what} failed:\n{done.stdout}\n{done.stderr}")
    print(f"{what} took {time.monotonic() - start:.1f} s")


@contextmanager
def serving(python: str, folder: Path) -> Iterator[str]:
    """Runs `clip_back` until the block ends; yields its URL."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    start, log = time.monotonic(), (folder / "back.txt").open("w")
    server = subprocess.Popen(
        [python, "-c", _SERVE, str(folder), str(port)], env=env, stdout=log, stderr=subprocess.STDOUT
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while not _is_up(url):
            if server.poll() is not None or time.monotonic() - start > _START_SECONDS:
                raise SystemExit(f"clip_back does not answer:\n{(folder / 'back.txt').read_text()[-4000:]}")
            time.sleep(0.5)
        print(f"clip_back answers after {time.monotonic() - start:.1f} s")
        yield url
    finally:
        server.kill()
        server.wait()


def _is_up(url: str) -> bool:
    try:
        return bool(json.load(urllib.request.urlopen(f"{url}/indices-list", timeout=5)) == ["images"])
    except OSError:
        return False


def ask(url: str, **query: Any) -> list[dict[str, Any]]:
    body = json.dumps({"modality": "image", "num_images": 5, "indice_name": "images", **query}).encode()
    answer: list[dict[str, Any]] = json.load(urllib.request.urlopen(f"{url}/knn-service", body, timeout=60))
    return answer


def ask_all(url: str, export: Path) -> None:
    """Searches by text and by embedding, and compares the results with the rows of the export."""
    vectors = np.concatenate([np.load(path) for path in sorted((export / "img_emb").iterdir())])
    tables = [pq.read_table(path) for path in sorted((export / "metadata").iterdir())]
    rows = [row for table in tables for row in table.select(["key", "caption", "partition"]).to_pylist()]
    chosen = np.random.default_rng(0).choice(len(rows), min(_SEARCHES, len(rows)), replace=False)
    own = captioned = 0
    for number in chosen.tolist():
        wanted = rows[number]
        found = ask(url, embedding_input=vectors[number].tolist())
        own += {name: found[0][name] for name in wanted} == wanted
        captioned += ask(url, text=wanted["caption"])[0]["caption"] == wanted["caption"]
    print(f"{TINY}: {own} of {len(chosen)} searches by embedding found the own row first")
    print(f"{TINY}: {captioned} of {len(chosen)} searches by caption found an image with that caption first")


if __name__ == "__main__":
    main()
