"""A proxy that passes TCP on and holds each answer back for a while, as a distant server does.

python -m benchmarks.delay 127.0.0.1:8333 0.03      # prints its own port

It runs in a process of its own, so that it does not slow down what is measured.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_PIECE = 2**18


@contextmanager
def delayed(target: str, seconds: float) -> Iterator[str]:
    """Runs the proxy; yields its address.

    Args:
        target: Host and port of the server.
        seconds: How long each answer is held back.
    """
    command = [sys.executable, "-m", "benchmarks.delay", target, str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def _serve(target: str, seconds: float) -> None:
    host, _, port = target.rpartition(":")

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = asyncio.Event()
        theirs, ours = await asyncio.open_connection(host, int(port), limit=_PIECE)

        async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
            with suppress(ConnectionError):
                while piece := await source.read(_PIECE):
                    if not answers:
                        asked.set()
                    elif asked.is_set():  # the first piece of an answer
                        asked.clear()
                        await asyncio.sleep(seconds)
                    sink.write(piece)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pass_on(reader, ours, False), pass_on(theirs, writer, True))

    server = await asyncio.start_server(connect, "127.0.0.1", 0, limit=_PIECE)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], float(sys.argv[2])))
