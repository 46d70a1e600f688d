"""A running server under load over HTTP: latency, throughput, wrong answers, and what it does when it is too much.

It starts the service on a free port, asks for each clip alone, then with 1, 4, 16 and 64 clients at once, and at last
with ten times as many clients as kept it busiest. Every answer is compared with the one that the clip got alone.
"""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import scipy.io.wavfile
from tqdm import tqdm

from benchmarks.common import load_stock, made_clip, parser, report, seconds_of, where
from speech.audio import SAMPLE_RATE, Waveform
from speech.engine import available_cores

ROOT = Path(__file__).parents[1]


def as_wav(clip: Waveform) -> bytes:
    """A 16-bit WAV file of a clip."""
    with tempfile.TemporaryFile() as file:
        scipy.io.wavfile.write(file, SAMPLE_RATE, (clip.samples * 32767).astype(np.int16))
        file.seek(0)
        return file.read()


class Server:
    """The service as its own process on a free port, until the end of the block."""

    def __init__(self, model: Path, queue_seconds: float) -> None:
        self.environment = {
            **os.environ, "STT_PORT": "0", "STT_MODEL": str(model.resolve()), "STT_LOG_LEVEL": "INFO",
            "STT_MAX_QUEUE_SECONDS": str(queue_seconds),
        }  # fmt: skip

    def __enter__(self) -> "Server":
        self.folder = tempfile.TemporaryDirectory()
        self.environment["STT_LOG_FOLDER"] = self.folder.name
        self.process = subprocess.Popen(
            [sys.executable, "api.py"],
            cwd=ROOT,
            env=self.environment,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        log, deadline = Path(self.folder.name) / "api.log", time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text() if log.exists() else "")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start")
            time.sleep(0.05)
        self.url = found[0]
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.folder.cleanup()

    def memory(self) -> float:
        """Resident MB of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


async def hammer(
    url: str, clips: Sequence[tuple[bytes, float]], expected: Sequence[str | None], clients: int, requests: int
) -> dict[str, Any]:
    """So many requests by so many clients, each of which waits for its answer; the clips go round and round."""
    seconds: list[float] = []
    heard, counts = 0.0, {"answered": 0, "busy": 0, "wrong": 0, "failed": 0}
    numbers = iter(range(requests))
    bar = tqdm(total=requests, desc=f"{clients} clients", unit="clip", leave=False)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal heard
        for number in numbers:
            body, duration = clips[number % len(clips)]
            began = time.perf_counter()
            try:
                answer = await http.post(f"{url}/upload/", files={"file": body})
            except httpx.HTTPError:
                counts["failed"] += 1
                continue
            bar.update()
            if answer.status_code == 503:
                counts["busy"] += 1
                await asyncio.sleep(0.2)  # less than Retry-After asks for: a rude client
            elif answer.status_code != 200:
                counts["failed"] += 1
            else:
                seconds.append(time.perf_counter() - began)
                counts["answered"] += 1
                heard += duration
                text = expected[number % len(clips)]
                counts["wrong"] += text is not None and answer.json()["transcryption"] != text

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        wall = time.perf_counter() - began
    bar.close()
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1000 if seconds else (np.nan,) * 3
    return {
        "clients": clients, "requests": requests, "p50 ms": float(p50), "p95 ms": float(p95), "p99 ms": float(p99),
        "clips/s": counts["answered"] / wall, "s of audio/s": heard / wall, **counts,
    }  # fmt: skip


def main() -> None:
    """The command line."""
    arguments = parser("load", __doc__)
    arguments.add_argument("--requests", type=int, default=320, help="for each number of clients")
    arguments.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    arguments.add_argument("--queue-seconds", type=float, default=600, help="STT_MAX_QUEUE_SECONDS of the server")
    given = arguments.parse_args()
    rng = np.random.default_rng(0)
    made = [made_clip(seconds, seed) for seed, seconds in enumerate(rng.uniform(1, 15, 40))]
    clips = [(as_wav(clip), clip.duration) for clip in made]
    ten = made_clip(10.0)
    stock = load_stock(given.model)
    stock(ten)
    stock_ten = [seconds_of(lambda: stock(ten)) for _ in range(3)]
    stock_wall = seconds_of(lambda: [stock(clip) for clip in made])
    with Server(given.model, given.queue_seconds) as server:
        alone = [httpx.post(f"{server.url}/upload/", files={"file": body}, timeout=60).json() for body, _ in clips]
        texts = [answer["transcryption"] for answer in alone]
        with httpx.Client(timeout=60) as http:
            body = as_wav(ten)
            ours_ten = [seconds_of(lambda: http.post(f"{server.url}/upload/", files={"file": body})) for _ in range(9)]
        memory = [server.memory()]
        rows = []
        for clients in given.clients:
            rows.append(asyncio.run(hammer(server.url, clips, texts, clients, max(given.requests, 5 * clients))))
            memory.append(server.memory())
        best = max(rows, key=lambda row: row["clips/s"])
        overload = 10 * best["clients"]
        rows.append(asyncio.run(hammer(server.url, clips, texts, overload, max(given.requests, 4 * overload))))
        memory.append(server.memory())
    stock_ten += [seconds_of(lambda: stock(ten)) for _ in range(3)]
    stock_rate = sum(clip.duration for clip in made) / stock_wall
    rows = [{**row, "× stock": row["s of audio/s"] / stock_rate} for row in rows]
    latency = {"stock": median(stock_ten), "over HTTP": median(ours_ten)}
    result = {
        "where": {**where(), "threads": available_cores()},
        "stock_seconds_of_audio_per_second": stock_rate,
        "latency_of_10_s": latency,
        "memory_mb": memory,
    }
    report(result, rows, given.json)
    print(f"the stock path, one clip at a time: {stock_rate:.1f} s of audio/s")
    print(f"one clip of 10 s: {1000 * latency['stock']:.0f} ms stock, {1000 * latency['over HTTP']:.0f} ms over HTTP, "
          f"ratio {latency['stock'] / latency['over HTTP']:.1f}")  # fmt: skip
    print("resident memory of the server, MB: " + ", ".join(f"{value:.0f}" for value in memory))


if __name__ == "__main__":
    main()
