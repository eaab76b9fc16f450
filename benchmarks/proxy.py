"""A network in front of a Unix socket: ``python -m benchmarks.proxy SOCKET SECONDS`` delays each direction.

It prints the TCP port at which it listens. Then it answers every line on its standard input with the number of
exchanges so far. It ends when its input ends. An exchange begins when the client sends after the server did, because
then the client has waited for an answer.
"""

from __future__ import annotations

import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

CHUNK = 2**18
"""Bytes read at once."""


class Proxy:
    """A proxy that runs in another process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = self._number()

    def exchanges(self) -> int:
        """Return the number of exchanges since the proxy started."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._number()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@contextmanager
def proxy(target: Path, delay: float) -> Iterator[Proxy]:
    """Start a proxy; end it after the block."""
    command = [sys.executable, "-m", "benchmarks.proxy", str(target), str(delay)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Proxy(process)


class _Counter:
    """Counts the times when the client sends after the server did, over all connections."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.value = 0

    def exchange(self) -> None:
        self.value = next(self._numbers)


class _Link:
    """Serve one connection. In each direction one thread reads, and one writes after the delay."""

    def __init__(self, client: socket.socket, target: str, delay: float, counter: _Counter) -> None:
        server = socket.socket(socket.AF_UNIX)
        server.connect(target)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._delay, self._counter = delay, counter
        self._answered = True
        for source, sink, from_client in ((client, server, True), (server, client, False)):
            due: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=self._read, args=(source, due, from_client), daemon=True).start()
            threading.Thread(target=self._write, args=(sink, due), daemon=True).start()

    def _read(self, source: socket.socket, due: queue.SimpleQueue[tuple[float, bytes]], from_client: bool) -> None:
        data = b"."
        while data:
            try:
                data = source.recv(CHUNK)
            except OSError:
                data = b""
            if data and from_client and self._answered:
                self._counter.exchange()
            self._answered = not from_client
            due.put((time.monotonic() + self._delay, data))

    def _write(self, sink: socket.socket, due: queue.SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            when, data = due.get()
            if not data:
                break
            time.sleep(max(0.0, when - time.monotonic()))
            try:
                sink.sendall(data)
            except OSError:
                break
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def main() -> None:
    """Serve until the input ends."""
    target, delay = sys.argv[1], float(sys.argv[2])
    counter = _Counter()
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            _Link(listener.accept()[0], target, delay, counter)

    threading.Thread(target=accept, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for _ in sys.stdin:
        print(counter.value, flush=True)


if __name__ == "__main__":
    main()
