"""A running server under load over HTTP: latency, throughput, wrong answers, and what it does when it is too much.

It starts the service on a free port, asks for each clip alone, then with 1, 4, 16 and 64 clients at once, and at last
with ten times as many clients as kept it busy. Every answer is compared with the one that the clip got alone.
A client that is told 503 comes back after the time that Retry-After says, and up to half of it more. Too many clients
go on for a fixed time, and only what is answered in it counts.

With ``--mixed N`` it sends N requests by 16 clients instead: short and long clips, other rates, broken files, and one
in ten hangs up. Each answer must be the one that the same file got alone, status and text; 503 is asked again.
"""

import asyncio
import io
import itertools
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import scipy.io.wavfile
from tqdm import tqdm

from benchmarks.common import SAMPLE, load_stock, made_clip, parser, report, seconds_of, where
from speech.audio import SAMPLE_RATE, Waveform
from speech.engine import available_cores

ROOT = Path(__file__).parents[1]
NEARLY = 0.9  # of the highest throughput: the fewest clients that reach it keep the server busy; runs differ by as much


def as_wav(clip: Waveform, rate: int = SAMPLE_RATE) -> bytes:
    """A 16-bit WAV file of a clip; its header may say another rate."""
    file = io.BytesIO()
    scipy.io.wavfile.write(file, rate, (clip.samples * 32767).astype(np.int16))
    return file.getvalue()


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
            time.sleep(0.01)
        self.url = found[0]
        with httpx.Client(base_url=self.url) as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.folder.cleanup()

    def memory(self) -> float:
        """Resident MB of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def stages(self) -> Counter[str]:
        """Seconds of wall-clock time that batches took in each stage so far."""
        text = httpx.get(f"{self.url}/metrics").text
        found = re.findall(r'^stt_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text, re.MULTILINE)
        return Counter({stage: float(seconds) for stage, seconds in found})


async def hammer(
    url: str,
    clips: Sequence[tuple[bytes, float]],
    expected: Sequence[str | None],
    clients: int,
    requests: int | None,
    limit: float = np.inf,
) -> dict[str, Any]:
    """So many requests, or all in so many seconds, by so many clients, each of which waits for its answer."""
    seconds: list[float] = []
    counted: list[int] = []
    heard, counts = 0.0, {"answered": 0, "busy": 0, "wrong": 0, "failed": 0}
    errors: Counter[str] = Counter()
    numbers = itertools.count() if requests is None else iter(range(requests))
    bar = tqdm(total=requests, desc=f"{clients} clients", unit="clip", leave=False)

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal heard
        for number in numbers:
            if time.perf_counter() > end:
                return
            duration = clips[number % len(clips)][1]
            began = time.perf_counter()
            try:
                answer = await http.send(uploads[number % len(clips)])
            except httpx.HTTPError as error:
                counts["failed"] += 1
                errors[type(error).__name__] += 1
                continue
            bar.update()
            if answer.status_code == 503:
                counts["busy"] += 1
                await asyncio.sleep(min(patience(answer), max(0.0, end - time.perf_counter())))
            elif answer.status_code != 200:
                counts["failed"] += 1
            else:
                seconds.append(time.perf_counter() - began)
                counts["answered"] += 1
                if time.perf_counter() <= end:
                    heard += duration
                    counted.append(number)
                text = expected[number % len(clips)]
                counts["wrong"] += text is not None and answer.json()["transcryption"] != text

    # Clients share the machine with the server: each body is written once, and each client has a pool of its own, since
    # one pool looks through all of its connections for each request.
    uploads = [prepared(f"{url}/upload/", body) for body, _ in clips]
    context = httpx.create_ssl_context()
    async with AsyncExitStack() as stack:
        all_clients = [
            await stack.enter_async_context(httpx.AsyncClient(timeout=120, verify=context)) for _ in range(clients)
        ]
        began = time.perf_counter()
        end = began + limit
        await asyncio.gather(*(client(http) for http in all_clients))
        wall = min(limit, time.perf_counter() - began)
    bar.close()
    if errors:
        print(dict(errors), file=sys.stderr)
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)) * 1000 if seconds else (np.nan,) * 3
    return {
        "clients": clients, "requests": sum(counts.values()) - counts["wrong"],
        "p50 ms": float(p50), "p95 ms": float(p95), "p99 ms": float(p99),
        "clips/s": len(counted) / wall, "s of audio/s": heard / wall, **counts,
    }  # fmt: skip


def prepared(url: str, body: bytes) -> httpx.Request:
    """An upload that can be sent again and again."""
    form = httpx.Request("POST", url, files={"file": body})
    return httpx.Request("POST", url, content=form.read(), headers={"content-type": form.headers["content-type"]})


def patience(answer: httpx.Response) -> float:
    """Seconds until a refused client comes back: what it was told, and up to half of it more."""
    return float(answer.headers["retry-after"]) * random.uniform(1.0, 1.5)


def mixed_files() -> list[bytes]:
    """Files of all kinds that come in: most are short clips, some say another rate, some are broken."""
    lengths = [*np.random.default_rng(0).uniform(1, 4, 32), 6, 8, 11, 15]
    clips = [made_clip(float(seconds), seed) for seed, seconds in enumerate(lengths)]
    good = [SAMPLE.read_bytes(), *(as_wav(clip) for clip in clips)]
    other = [as_wav(clips[n], rate) for n, rate in enumerate((8000, 16000, 44100))]
    return [*good, *other, b"", b"no sound", good[1][:30], good[2][: len(good[2]) // 2], good[3][:44]]


async def mixed(url: str, requests: int, clients: int = 16) -> Counter[str]:
    """What became of so many requests for files of all kinds, each compared with its answer alone."""
    files, counts = mixed_files(), Counter[str]()
    numbers = iter(tqdm(range(requests), desc="mixed", unit="request"))

    async def ask(http: httpx.AsyncClient, body: bytes) -> tuple[int, Any]:
        while True:
            answer = await http.post(f"{url}/upload/", files={"file": body})
            if answer.status_code != 503:
                said = answer.json()
                return answer.status_code, said.get("transcryption", said.get("code"))
            counts["busy"] += 1
            await asyncio.sleep(patience(answer))

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            which = number % len(files)
            try:
                if number % 10 == 9:
                    async with asyncio.timeout(random.uniform(0.001, 0.2)):
                        await ask(http, files[which])
                counts["right" if await ask(http, files[which]) == alone[which] else "wrong"] += 1
            except TimeoutError:
                counts["hung up"] += 1
            except httpx.HTTPError as error:
                counts[f"lost: {type(error).__name__}"] += 1

    async with httpx.AsyncClient(timeout=120) as http:
        alone = [await ask(http, body) for body in files]
        print("alone:", dict(Counter(status for status, _ in alone)))
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return counts


def main() -> None:
    """The command line."""
    arguments = parser("load", __doc__)
    arguments.add_argument("--requests", type=int, default=320, help="for each number of clients")
    arguments.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16, 64])
    arguments.add_argument("--queue-seconds", type=float, default=300, help="STT_MAX_QUEUE_SECONDS of the server")
    arguments.add_argument("--overload-seconds", type=float, default=60, help="how long there are too many clients")
    arguments.add_argument("--mixed", type=int, metavar="N", help="so many requests of all kinds instead")
    given = arguments.parse_args()
    if given.mixed:
        with Server(given.model, given.queue_seconds) as server:
            before = server.memory()
            counts = asyncio.run(mixed(server.url, given.mixed))
            after = server.memory()
        print(dict(counts), f"memory {before:.0f} → {after:.0f} MB")
        sys.exit(0 if counts["right"] + counts["hung up"] == given.mixed else 1)
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
        shares = {}
        for clients in given.clients:
            stages, began = server.stages(), time.perf_counter()
            rows.append(asyncio.run(hammer(server.url, clips, texts, clients, max(given.requests, 5 * clients))))
            wall = time.perf_counter() - began
            shares[clients] = {name: seconds / wall for name, seconds in (server.stages() - stages).items()}
            memory.append(server.memory())
        best = max(row["s of audio/s"] for row in rows)
        enough = min(row["clients"] for row in rows if row["s of audio/s"] > NEARLY * best)
        overload = 10 * enough
        rows.append(asyncio.run(hammer(server.url, clips, texts, overload, None, given.overload_seconds)))
        memory.append(server.memory())
        goodput = rows[-1]["s of audio/s"] / best
    stock_ten += [seconds_of(lambda: stock(ten)) for _ in range(3)]
    stock_rate = sum(clip.duration for clip in made) / stock_wall
    rows = [{**row, "× stock": row["s of audio/s"] / stock_rate} for row in rows]
    latency = {"stock": median(stock_ten), "over HTTP": median(ours_ten)}
    result = {
        "where": {**where(), "threads": available_cores()},
        "stock_seconds_of_audio_per_second": stock_rate,
        "latency_of_10_s": latency,
        "stages_share_of_time": shares,
        "memory_mb": memory,
        "goodput_under_overload": goodput,
    }
    report(result, rows, given.json)
    print(f"the stock path, one clip at a time: {stock_rate:.1f} s of audio/s")
    print(f"one clip of 10 s: {1000 * latency['stock']:.0f} ms stock, {1000 * latency['over HTTP']:.0f} ms over HTTP, "
          f"ratio {latency['stock'] / latency['over HTTP']:.1f}")  # fmt: skip
    for clients, share in shares.items():
        parts = ", ".join(f"{name} {100 * value:.0f} %" for name, value in share.items())
        print(f"of the time with {clients} clients: {parts}")
    print(f"goodput with ten times too many clients: {100 * goodput:.0f} % of the maximum")
    print("resident memory of the server, MB: " + ", ".join(f"{value:.0f}" for value in memory))


if __name__ == "__main__":
    main()
