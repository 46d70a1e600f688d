"""The page in a real browser, against the real server: Debian's headless Chromium, driven by Selenium.

What the page shows is compared with what the API answers for the same sound.
"""

import json
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import jiwer
import numpy as np
import pytest
import soundfile
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from starlette.testclient import TestClient

from speech.ctc import Word
from speech.segments import segments
from speech.subtitles import LINE, to_srt, to_vtt
from tests.conftest import make_wav
from tests.test_server import ROOT, Process

HELLO = ROOT / "samples" / "hello.wav"
INSTALL = "the tests of the page need Chromium: apt-get install -y chromium chromium-driver"
KEY = "a-key-of-the-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    started = Process(tmp_path_factory.mktemp("server"))
    yield started
    started.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Chrome]]:
    """Starts browsers whose microphone hears samples/hello.wav once."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    assert all(programs), INSTALL
    started: list[Chrome] = []

    def start(*flags: str, microphone: bool = True) -> Chrome:
        options = ChromeOptions()
        options.binary_location = programs[0]
        fake = ["--use-fake-ui-for-media-stream"] if microphone else ["--deny-permission-prompts"]
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,1000",
            "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={HELLO}%noloop", f"--user-data-dir={tmp_path / 'profile'}", *fake, *flags,
        ):  # fmt: skip
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
        started.append(Chrome(options, ChromeService(programs[1])))
        return started[-1]

    yield start
    for browser in started:
        browser.quit()


@pytest.fixture
def page(start: Callable[..., Chrome], server: Process) -> Chrome:
    browser = start()
    browser.get(f"{server.url}/ui")
    return browser


def find(page: Chrome, css: str):
    return page.find_element(By.CSS_SELECTOR, css)


def wait(page: Chrome, condition: Callable[[], object], seconds: float = 60) -> object:
    return WebDriverWait(page, seconds, 0.1).until(lambda _: condition(), find(page, "main").text)


def ask(server: Process, response_format: str, sound: bytes = HELLO.read_bytes()) -> httpx.Response:
    data = {"response_format": response_format}
    if response_format == "verbose_json":
        data["timestamp_granularities[]"] = ["word", "segment"]
    return httpx.post(
        f"{server.url}/v1/audio/transcriptions", data=data, files={"file": sound}, timeout=60
    ).raise_for_status()


def choose(page: Chrome, file: Path = HELLO) -> None:
    find(page, "#file").send_keys(str(file))


def words(page: Chrome) -> list[str]:
    return page.execute_script("return [...document.querySelectorAll('.word')].map((word) => word.textContent)")


def done(page: Chrome) -> bool:
    return find(page, "#status").text.startswith(("Done", "No words"))


def test_a_file_is_shown_played_and_downloaded(page: Chrome, server: Process, tmp_path: Path):
    expected = ask(server, "verbose_json").json()
    choose(page)
    wait(page, lambda: done(page))
    assert words(page) == [word["word"] for word in expected["words"]]

    for canvas in ("waveform", "spectrogram"):  # something is drawn: more than one colour
        wait(page, lambda canvas=canvas: page.execute_script(
            "const c = document.getElementById(arguments[0]); if (!c.clientWidth) return false;"
            "return new Set(new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size > 1",
            canvas))  # fmt: skip

    page.execute_script(  # a word may be lit for a tenth of a second only
        "window.lit = new Set(); new MutationObserver((all) => all.forEach(({ target }) => target.matches('.lit') && lit.add(target)))"
        ".observe(document.getElementById('words'), { subtree: true, attributeFilter: ['class'] })"
    )
    third = page.find_elements(By.CSS_SELECTOR, ".word")[2]
    third.click()
    wait(page, lambda: page.execute_script("return lit.has(arguments[0])", third))
    assert page.execute_script("return audio.currentTime") >= expected["words"][2]["start"] - 0.02
    page.execute_script("audio.pause()")
    third.send_keys(Keys.HOME)
    first = page.switch_to.active_element
    assert first.text == expected["words"][0]["word"]
    first.send_keys(Keys.ARROW_RIGHT)
    second = page.switch_to.active_element
    second.send_keys(Keys.ENTER)
    wait(page, lambda: page.execute_script("return lit.has(arguments[0])", second))

    for name, ending in (("text", "txt"), ("srt", "srt"), ("vtt", "vtt"), ("verbose_json", "json")):
        find(page, f"[data-format={name}]").click()
        file = tmp_path / "downloads" / f"hello.{ending}"
        wait(page, file.exists)
        assert file.read_text(encoding="utf-8") == ask(server, name).text
    assert not [line for line in page.get_log("browser") if line["level"] == "SEVERE"]


def seek(page: Chrome, time: float) -> None:
    page.execute_async_script(
        "const [time, done] = arguments; audio.currentTime = time;"
        "audio.addEventListener('seeked', () => setTimeout(done), { once: true })",
        time,
    )


def test_36000_words_are_followed(page: Chrome):
    """As many as are said in hours, in the time of one short file: what the service answers is made up here."""
    page.execute_script(
        "const said = Array.from({ length: 36000 }, (_, i) => ({ word: 'so', start: i * 1e-4, end: (i + 1) * 1e-4, probability: 1 }));"
        "const ask = fetch; window.fetch = (url, how) => how.method === 'POST'"
        "? new Response(JSON.stringify({ text: '', duration: 3.6, words: said, segments: [] })) : ask(url, how)"
    )
    choose(page)
    wait(page, lambda: done(page) and page.execute_script("return audio.readyState"))
    for time in (3.00005, 1.23455, 0.00005, 2.00005):
        seek(page, time)
        assert page.execute_script(
            "const all = [...document.querySelectorAll('.word')]; return all.flatMap((word, i) => word.matches('.lit') ? i : [])"
        ) == [int((time + 0.02) * 1e4)]  # fmt: skip
    touched = page.execute_script(
        "let touched = 0; for (const name of ['add', 'remove', 'toggle']) { const real = DOMTokenList.prototype[name];"
        "DOMTokenList.prototype[name] = function (...of) { touched++; return real.apply(this, of); }; }"
        "for (let i = 0; i < 100; i++) audio.dispatchEvent(new Event('seeked')); return touched"
    )
    assert touched == 0  # the word is still the same


def test_playing_is_followed_once_a_frame(page: Chrome):
    choose(page)
    wait(page, lambda: done(page) and page.execute_script("return audio.readyState"))
    page.execute_script("audio.loop = true; audio.play()")
    for _ in range(5):
        seek(page, 0.5)
    asked = page.execute_async_script(
        "const [done] = arguments, real = requestAnimationFrame; let asked = 0, frames = 0;"
        "window.requestAnimationFrame = (what) => { asked++; return real(what); };"
        "const next = () => frames++ < 20 ? real(next) : done(asked); real(next)"
    )
    assert 19 <= asked <= 21


def test_a_file_may_be_dropped(page: Chrome, server: Process):
    box = find(page, "#drop").rect
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}

    def drag(kind: str) -> None:
        data = {"items": [], "files": [str(HELLO)], "dragOperationsMask": 1}
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **at, "data": data})

    drag("dragEnter")
    drag("dragOver")
    assert find(page, "#drop").get_attribute("class") == "over"
    drag("drop")
    assert not find(page, "#drop").get_attribute("class")
    wait(page, lambda: done(page))
    assert words(page) == ask(server, "text").text.split()


def test_the_text_can_be_copied(page: Chrome, server: Process):
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    choose(page)
    wait(page, lambda: done(page))
    find(page, "#copy").click()
    wait(page, lambda: find(page, "#status").text == "Copied.")
    assert (
        page.execute_async_script("navigator.clipboard.readText().then(arguments[0])") == ask(server, "text").text[:-1]
    )
    wait(page, lambda: done(page))  # what was said before is said again


def test_hot_words_count_for_text_and_downloads(page: Chrome, server: Process, tmp_path: Path):
    choose(page)
    wait(page, lambda: done(page))
    heard = words(page)
    unsure = min(ask(server, "verbose_json").json()["words"], key=lambda word: word["probability"])["word"]
    field = find(page, "#hot-words")
    field.send_keys(f"one, {unsure}:-60", Keys.ENTER)
    wait(page, lambda: done(page) and words(page) and words(page) != heard)
    assert unsure not in words(page)
    find(page, "[data-format=vtt]").click()
    file = tmp_path / "downloads" / "hello.vtt"
    wait(page, file.exists)
    assert unsure not in file.read_text(encoding="utf-8").split()

    field.send_keys(", 7", Keys.ENTER)
    wait(page, lambda: "letters" in find(page, "#error").text)
    field.clear()  # leaves the field, too
    wait(page, lambda: words(page) == heard)


def test_hot_words_count_for_the_microphone(page: Chrome, server: Process):
    unsure = min(ask(server, "verbose_json").json()["words"], key=lambda word: word["probability"])["word"]
    find(page, "#hot-words").send_keys(f"{unsure}:-60")
    record(page)
    wait(page, lambda: done(page))
    assert words(page)
    assert unsure not in words(page)


def recorded(page: Chrome, downloads: Path) -> bytes:
    """The sound that the page kept."""
    page.execute_script("Object.assign(document.createElement('a'), {href: audio.src, download: 'kept.wav'}).click()")
    wait(page, (downloads / "kept.wav").exists)
    return (downloads / "kept.wav").read_bytes()


def record(page: Chrome, seconds: float = 5) -> None:
    find(page, "#record").click()
    wait(page, lambda: find(page, "#record").text == "Stop")
    wait(page, lambda: find(page, "#partial").text or words(page))  # while it records
    page.execute_script(f"setTimeout(() => document.getElementById('record').click(), {1000 * seconds})")


def test_the_microphone_is_heard_live_and_kept(page: Chrome, server: Process, tmp_path: Path):
    record(page)
    wait(page, lambda: done(page))
    sound = recorded(page, tmp_path / "downloads")
    live = " ".join(words(page))
    # Silence before and after, and the device that may skip a moment, change letters; another sound has CER 0.7 and more.
    assert jiwer.cer(ask(server, "text", sound).text, live) < 0.4
    assert jiwer.cer(ask(server, "text").text, live) < 0.4
    assert not [line for line in page.get_log("browser") if line["level"] == "SEVERE"]


def test_a_recording_ends_where_it_was_stopped(page: Chrome):
    """However long the computer takes to let go of the microphone; its last sound came twice then."""
    page.execute_script(
        "const close = AudioContext.prototype.close; AudioContext.prototype.close = async function () {"
        "await new Promise((ready) => setTimeout(ready, 300)); await close.call(this); };"
        "window.sent = []; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (data) { sent.push(data.length); send.call(this, data); }"
    )
    record(page, 1)
    wait(page, lambda: done(page))
    _, *blocks, rest, _ = page.execute_script("return sent")
    assert blocks
    assert set(blocks) == {2205}
    assert rest < 2205


def test_a_recording_that_is_too_large_for_an_upload_is_saved_all_the_same(
    start: Callable[..., Chrome], tmp_path: Path
):
    """What is saved are the words that are shown. They stay where hearing the sound again as a file is refused."""
    server, page = Process(tmp_path, STT_MAX_UPLOAD_BYTES="20000"), start()
    try:
        page.get(f"{server.url}/ui/")
        record(page)
        wait(page, lambda: done(page))
        sound = recorded(page, tmp_path / "downloads")
        heard, saved = words(page), {}
        assert heard
        for name, ending in (("text", "txt"), ("srt", "srt"), ("vtt", "vtt"), ("verbose_json", "json")):
            find(page, f"[data-format={name}]").click()
            file = tmp_path / "downloads" / f"recording.{ending}"
            wait(page, file.exists)
            saved[ending] = file.read_text(encoding="utf-8")
        said = json.loads(saved["json"])
        assert [word["word"] for word in said["words"]] == heard
        assert saved["txt"] == said["text"] + "\n" == " ".join(heard) + "\n"
        shown = segments([Word(w["word"], w["start"], w["end"], w["probability"]) for w in said["words"]])
        assert (saved["srt"], saved["vtt"]) == (to_srt(shown), to_vtt(shown))
        assert said["duration"] == pytest.approx((len(sound) - 44) / 2 / 22050, abs=0.001)

        find(page, "#hot-words").send_keys("prison", Keys.ENTER)
        wait(page, lambda: find(page, "#error").text)
        size = f"This sound ({len(sound) / 1e6:.1f} MB) is more than the service takes as a file"
        assert find(page, "#error").text.startswith(f"{size}: expected a body of at most 20000 bytes")
        assert words(page) == heard
    finally:
        server.stop()


def test_the_page_cuts_subtitles_as_the_service_does(page: Chrome):
    chance = random.Random(1)
    said, time = [], 0.0
    for _ in range(2000):
        begin = time + chance.choice([0, 0.1, 0.1, 0.2, 0.4, 0.8, 0.801, 3, 100])
        time = begin + chance.choice([0.001, 0.2, 0.3, 0.5, 1, 7])
        text = chance.choice(["a", "I'm", "R&D", "<b>", "-->", "word", "twenty-one", "k" * chance.randint(1, LINE)])
        said.append({"word": text, "start": round(begin, 3), "end": round(time, 3)})
    for count in (0, 1, len(said)):
        made = page.execute_async_script(
            "const [words, done] = arguments; import('/ui/subtitles.js').then(({ srt, vtt }) => done([srt(words), vtt(words)]))",
            said[:count],
        )
        expected = segments([Word(w["word"], w["start"], w["end"], 1.0) for w in said[:count]])
        assert made == [to_srt(expected), to_vtt(expected)]


@pytest.mark.parametrize("end", ["heard", "broken"])
def test_a_file_chosen_while_a_recording_is_finished_is_shown_alone(page: Chrome, server: Process, end: str):
    """The last words of the recording, or the news that they will never come, come when the file is shown."""
    page.execute_script(
        "const Socket = WebSocket; window.WebSocket = class extends Socket {"
        "set onmessage(heard) { super.onmessage = async (event) => { await window.held; if (!window.broken) heard(event); }; }"
        "set onclose(ended) { super.onclose = async (event) => { await window.held; ended(event); }; } }"
    )
    find(page, "#record").click()
    wait(page, lambda: find(page, "#partial").text or words(page))
    page.execute_script("window.held = new Promise((release) => { window.release = release; })")
    find(page, "#record").click()
    wait(page, lambda: find(page, "#status").text.startswith("Finishing"))
    choose(page)
    wait(page, lambda: done(page))
    page.execute_script(
        "window.changes = []; for (const id of ['status', 'error', 'result']) new MutationObserver(() => changes.push(id))"
        ".observe(document.getElementById(id), { subtree: true, childList: true, attributes: true, characterData: true });"
        "window.broken = arguments[0]; release()",
        end == "broken",
    )
    wait(page, lambda: find(page, "#record").is_enabled())  # the recording is over
    assert page.execute_script("return changes") == []
    assert words(page) == ask(server, "text").text.split()


def record_with_a_question(page: Chrome) -> None:
    """The browser asks for the microphone until allow() or refuse()."""
    page.execute_script(
        "const devices = navigator.mediaDevices, get = devices.getUserMedia.bind(devices);"
        "devices.getUserMedia = async (wanted) => { const given = window.given = await get(wanted);"
        "await new Promise((allow, refuse) => Object.assign(window, { allow, refuse })); return given; }"
    )
    find(page, "#record").click()
    wait(page, lambda: page.execute_script("return Boolean(window.allow)"))


@pytest.mark.parametrize("decision", ["allow", "refuse"])
def test_a_file_chosen_while_the_browser_asks_for_the_microphone_stays(page: Chrome, server: Process, decision: str):
    record_with_a_question(page)
    choose(page)
    wait(page, lambda: done(page))
    status = find(page, "#status").text
    page.execute_script(f"{decision}(new Error('no'))")
    wait(page, lambda: find(page, "#record").is_enabled())
    assert find(page, "#record").text == "Record"
    assert words(page) == ask(server, "text").text.split()
    assert (find(page, "#status").text, find(page, "#error").text) == (status, "")
    if decision == "allow":  # and the microphone is off again
        assert page.execute_script("return given.getTracks().map((track) => track.readyState)") == ["ended"]


def test_sound_that_would_fill_the_memory_gets_no_pictures(page: Chrome, tmp_path: Path):
    """Known to be too long, or of unknown length and large: the browser is not asked to unpack it."""
    page.execute_script(
        "window.unpacked = []; const decode = OfflineAudioContext.prototype.decodeAudioData;"
        "OfflineAudioContext.prototype.decodeAudioData = function (buffer) {"
        "unpacked.push(buffer.byteLength); return decode.call(this, buffer); }"
    )
    long, unknown, short = tmp_path / "long.wav", tmp_path / "unknown.bin", tmp_path / "unknown-short.bin"
    long.write_bytes(make_wav(np.zeros(4000 * 21 * 60, np.int16), rate=4000))
    unknown.write_bytes(bytes(6_000_000))
    short.write_bytes(bytes(1_000_000))
    for file in (long, unknown, short):
        choose(page, file)
        wait(page, lambda: page.execute_script("return audio.readyState || audio.error"))
        wait(page, lambda: done(page) or find(page, "#error").text)
        assert not find(page, "#pictures").is_displayed()
    wait(page, lambda: page.execute_script("return unpacked.length"))
    choose(page)
    wait(page, lambda: find(page, "#pictures").is_displayed())
    assert page.execute_script("return unpacked") == [1_000_000, HELLO.stat().st_size]


def test_the_pictures_are_of_the_file_that_is_shown(page: Chrome):
    """Those of the file before, and the line where it was, are gone before the new one is unpacked."""
    choose(page)
    wait(page, lambda: done(page) and find(page, "#pictures").is_displayed())
    seek(page, 2)
    at = "return parseFloat(document.getElementById('playhead').style.left)"
    assert page.execute_script(at) == pytest.approx(100 * 2 / 3.43, abs=1)
    page.execute_script(
        "const decode = OfflineAudioContext.prototype.decodeAudioData;"
        "OfflineAudioContext.prototype.decodeAudioData = async function (buffer) {"
        "await new Promise((release) => { window.release = release; }); return decode.call(this, buffer); }"
    )
    choose(page)
    wait(page, lambda: page.execute_script("return Boolean(window.release)"))
    assert not find(page, "#pictures").is_displayed()
    page.execute_script("release()")
    wait(page, lambda: find(page, "#pictures").is_displayed())
    assert page.execute_script(at) == 0


def test_the_pictures_are_of_all_channels(page: Chrome, tmp_path: Path):
    sound, rate = soundfile.read(HELLO)
    soundfile.write(tmp_path / "right.wav", np.stack([np.zeros_like(sound), sound], axis=1), rate)
    choose(page, tmp_path / "right.wav")
    wait(page, lambda: find(page, "#pictures").is_displayed())
    width, painted = page.execute_script(
        "const { width, height } = document.getElementById('waveform');"
        "const { data } = document.getElementById('waveform').getContext('2d').getImageData(0, 0, width, height);"
        "return [width, data.filter((value, i) => i % 4 === 3 && value).length]"
    )
    assert painted > 5 * width  # silence is a line


def test_a_file_that_does_not_say_how_long_it_is_plays_from_where_it_is_clicked(page: Chrome):
    """As those are that browsers record."""
    page.execute_async_script(
        "const [done] = arguments, parts = [], list = new DataTransfer(), file = document.getElementById('file');"
        "navigator.mediaDevices.getUserMedia({ audio: true }).then((stream) => {"
        "const recorder = new MediaRecorder(stream); recorder.ondataavailable = ({ data }) => parts.push(data);"
        "recorder.onstop = () => { list.items.add(new File(parts, 'note.webm')); file.files = list.files;"
        "file.dispatchEvent(new Event('change')); done(); };"
        "recorder.start(100); setTimeout(() => recorder.stop(), 3000); })"
    )
    wait(page, lambda: find(page, "#pictures").is_displayed())
    assert page.execute_script("return audio.duration === Infinity")
    find(page, "#pictures").click()  # in the middle
    wait(page, lambda: page.execute_script("return audio.currentTime"))
    assert page.execute_script("return audio.currentTime") == pytest.approx(1.5, abs=0.3)
    left = page.execute_script("return parseFloat(document.getElementById('playhead').style.left)")
    assert left == pytest.approx(50, abs=2)


def test_a_file_that_the_browser_cannot_play_is_heard_all_the_same(page: Chrome, server: Process, tmp_path: Path):
    page.execute_script(
        "window.said = []; const status = document.getElementById('status');"
        "new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true })"
    )
    soundfile.write(tmp_path / "hello.aiff", *soundfile.read(HELLO))
    choose(page, tmp_path / "hello.aiff")
    wait(page, lambda: done(page) and find(page, "#unplayable").is_displayed())
    assert words(page) == ask(server, "text").text.split()
    status = find(page, "#status").text
    assert status.startswith("Done")
    assert page.execute_script("return said") == ["Transcribing hello.aiff …", status]
    choose(page)
    wait(page, lambda: done(page))
    assert not find(page, "#unplayable").is_displayed()


def test_nobody_waits_for_an_answer_that_is_not_wanted_any_more(page: Chrome, server: Process, tmp_path: Path):
    """An upload in whose place another comes is given up: the service stops hearing it."""
    samples, rate = soundfile.read(HELLO)
    soundfile.write(tmp_path / "long.wav", np.tile(samples, 120), rate)
    choose(page, tmp_path / "long.wav")
    wait(page, lambda: "stt_in_flight 1.0" in httpx.get(f"{server.url}/metrics").text)
    choose(page)
    wait(page, lambda: done(page))
    assert "3.4 s of sound" in find(page, "#status").text
    wait(page, lambda: "stt_in_flight 0.0" in httpx.get(f"{server.url}/metrics").text, seconds=3)


def test_the_keyboard_stops_what_it_started_and_a_lost_microphone_is_told(page: Chrome, server: Process):
    page.execute_script(
        "const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (how) => (window.stream = await ask(how))"
    )
    for end in (
        lambda: page.switch_to.active_element.send_keys(Keys.SPACE),
        lambda: page.execute_script("stream.getTracks()[0].dispatchEvent(new Event('ended'))"),
    ):
        find(page, "#record").send_keys(Keys.SPACE)
        wait(page, lambda: find(page, "#partial").text or words(page))
        assert find(page, "#record").accessible_name == "Stop"
        assert find(page, "#record").get_attribute("aria-pressed") is None  # "Stop, pressed" would say both
        assert page.execute_script("return !window.dispatchEvent(new Event('beforeunload', { cancelable: true }))")
        end()
        wait(page, lambda: any(said in find(page, "#status").text for said in ("Done", "No words")))
        assert find(page, "#record").text == "Record"
    assert find(page, "#status").text.startswith("The microphone stopped.")
    assert page.execute_script("return window.dispatchEvent(new Event('beforeunload', { cancelable: true }))")


@pytest.mark.parametrize("when", ["starts", "ends"])
def test_a_service_that_is_frozen_when_a_recording(page: Chrome, server: Process, when: str):
    """It is given up after a minute, of a clock that goes twenty times as fast here, and the microphone is off."""
    page.execute_script("const later = setTimeout; window.setTimeout = (what, ms) => later(what, ms / 20)")
    record_with_a_question(page)
    if when == "ends":
        page.execute_script("allow()")
        wait(page, lambda: find(page, "#partial").text or words(page))
    server.process.send_signal(signal.SIGSTOP)
    try:
        if when == "ends":
            find(page, "#record").click()
        else:
            page.execute_script("allow()")
        wait(page, lambda: find(page, "#error").text.startswith("The service does not answer."), 15)
        assert find(page, "#record").text == "Record"
        assert page.execute_script("return given.getTracks().map((track) => track.readyState)") == ["ended"]
    finally:
        server.process.send_signal(signal.SIGCONT)
    if when == "ends":  # the sound is kept
        find(page, "#error button").click()
        wait(page, lambda: done(page))


def test_a_connection_that_breaks_amid_the_answer_is_told(page: Chrome):
    page.execute_script(
        "const ask = fetch; window.fetch = async (...what) => {"
        "  const { status, headers } = await ask(...what);"
        "  const broken = new ReadableStream({ start: (reader) => reader.error(new TypeError('network error')) });"
        "  return new Response(broken, { status, headers });"
        "}"
    )
    choose(page)
    wait(page, lambda: find(page, "#error").text.startswith("The connection broke before the text was here."))
    assert find(page, "#error button").text == "Try again"


def test_a_service_that_is_frozen_gets_no_upload(page: Chrome, server: Process):
    page.execute_script("const later = setTimeout; window.setTimeout = (what, ms) => later(what, ms / 20)")
    server.process.send_signal(signal.SIGSTOP)
    try:
        choose(page)
        wait(page, lambda: find(page, "#error").text.startswith("The service does not answer."), 15)
    finally:
        server.process.send_signal(signal.SIGCONT)
    find(page, "#error button").click()
    wait(page, lambda: done(page))


def test_a_refused_microphone_is_told(start: Callable[..., Chrome], server: Process):
    page = start(microphone=False)
    page.get(f"{server.url}/ui/")
    find(page, "#record").click()
    wait(page, lambda: "microphone was refused" in find(page, "#error").text)
    assert find(page, "#record").is_enabled()


def test_what_the_service_refuses_is_shown_in_its_words(page: Chrome, server: Process, tmp_path: Path):
    bad = tmp_path / "notes.wav"
    bad.write_text("no sound at all, only words")
    detail = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": bad.read_bytes()}).json()["detail"]
    choose(page, bad)
    wait(page, lambda: find(page, "#error").text.startswith(detail))
    choose(page)
    wait(page, lambda: done(page))
    assert not find(page, "#error").text


def test_a_service_that_cannot_now_says_why_and_may_be_asked_again(start: Callable[..., Chrome], tmp_path: Path):
    """No model is 503; then a service with one comes up at the same address."""
    server, page = Process(tmp_path, "no model", STT_MODEL=str(tmp_path / "none")), start()
    try:
        page.get(f"{server.url}/ui/")
        answer = httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": HELLO.read_bytes()}, timeout=60)
        assert answer.status_code == 503
        choose(page)
        wait(page, lambda: find(page, "#error").text.startswith(answer.json()["detail"]))
        assert not words(page)
    finally:
        server.stop()
    server = Process(tmp_path, STT_PORT=str(httpx.URL(server.url).port))
    try:
        find(page, "#error button").click()
        wait(page, lambda: done(page))
        assert words(page) == ask(server, "text").text.split()
        assert not find(page, "#error").text
    finally:
        server.stop()


def test_a_service_that_is_busy_says_when_to_come_back(start: Callable[..., Chrome], tmp_path: Path):
    """A service that is stopping waits for an upload that is on its way; others get 503 and Retry-After."""
    server, page = Process(tmp_path), start()
    try:
        page.get(f"{server.url}/ui/")
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port), 20) as slow:
            slow.sendall(b"POST /upload/ HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n")
            slow.sendall(b"Content-Length: 1000\r\n\r\n--b\r\n")
            wait(page, lambda: "stt_in_flight 1.0" in httpx.get(f"{server.url}/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            wait(page, lambda: httpx.get(f"{server.url}/readyz").status_code == 503)
            choose(page)
            wait(page, lambda: "Try again in 5 s." in find(page, "#error").text)
            assert "stopping" in find(page, "#error").text
            find(page, "#record").click()  # live sound is refused in the same words
            wait(page, lambda: "no live text" in find(page, "#status").text)
    finally:
        server.stop()


def test_a_live_connection_that_breaks_costs_no_sound(start: Callable[..., Chrome], tmp_path: Path):
    """The service dies while the page records; the recording goes on, and is sent as a file when there is one again."""
    server, page = Process(tmp_path), start()
    try:
        page.get(f"{server.url}/ui/")
        find(page, "#record").click()
        wait(page, lambda: find(page, "#partial").text or words(page))
    finally:
        server.stop()
    wait(page, lambda: "no live text" in find(page, "#status").text)
    assert find(page, "#record").text == "Stop"
    page.execute_script("setTimeout(() => document.getElementById('record').click(), 2000)")
    wait(page, lambda: "cannot be reached" in find(page, "#error").text)
    server = Process(tmp_path, STT_PORT=str(httpx.URL(server.url).port))
    try:
        find(page, "#error button").click()
        wait(page, lambda: done(page))
        sound = recorded(page, tmp_path / "downloads")
        assert words(page) == ask(server, "text", sound).text.split()
        assert words(page)
    finally:
        server.stop()


@pytest.fixture
def deserted(start: Callable[..., Chrome], tmp_path: Path) -> Chrome:
    """The page after its service has gone."""
    server, page = Process(tmp_path), start()
    try:
        page.get(f"{server.url}/ui/")
    finally:
        server.stop()
    return page


def test_a_dead_service_is_told(deserted: Chrome):
    page = deserted
    choose(page)
    wait(page, lambda: "cannot be reached" in find(page, "#error").text)


def test_a_dead_service_gets_no_recording(deserted: Chrome):
    page = deserted
    find(page, "#record").click()
    wait(page, lambda: "cannot be reached" in find(page, "#error").text)
    assert find(page, "#record").text == "Record"


def test_the_microphone_is_off_again_if_recording_cannot_begin(start: Callable[..., Chrome], tmp_path: Path):
    server, page = Process(tmp_path), start()
    try:
        page.get(f"{server.url}/ui/")
        record_with_a_question(page)
    finally:
        server.stop()
    page.execute_script("allow()")
    wait(page, lambda: "cannot be reached" in find(page, "#error").text)
    assert find(page, "#record").text == "Record"
    assert page.execute_script("return given.getTracks().map((track) => track.readyState)") == ["ended"]


@pytest.mark.parametrize("what", ["a file", "a recording"])
def test_a_key_is_asked_for_before_anything_is_sent(start: Callable[..., Chrome], tmp_path: Path, what: str):
    server, page = Process(tmp_path, STT_API_KEYS=KEY), start()
    try:
        page.get(f"{server.url}/ui/")
        if what == "a file":
            choose(page)
        else:
            find(page, "#record").click()
        for key in ("not-this-one", KEY):
            wait(page, lambda: find(page, "#key-form").is_displayed())
            assert not [line for line in server.lines if "/v1/audio/" in line]
            find(page, "#key").send_keys(key + Keys.ENTER)
        wait(page, lambda: find(page, "#partial").text or words(page))
        assert not find(page, "#key-form").is_displayed()
    finally:
        server.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_legible_and_fits(page: Chrome, scheme: str, width: int):
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    choose(page)
    wait(page, lambda: done(page))
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for element in ("#status", "#words", "#copy", "#hint", "#drop strong", "label[for=hot-words]", "#hot-words"):
        assert contrast(page, element) >= 4.5, element


def contrast(page: Chrome, css: str) -> float:
    """WCAG 2.1, 1.4.3: of the element's text and the first opaque ground behind it."""
    ink, ground = page.execute_script(
        "let e = document.querySelector(arguments[0]); const ink = getComputedStyle(e).color;"
        "while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;"
        "return [ink, getComputedStyle(e).backgroundColor].map((c) => c.match(/\\d+/g).slice(0, 3).map(Number))",
        css,
    )

    def luminance(rgb: list[int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(ink), luminance(ground)))
    return (lighter + 0.05) / (darker + 0.05)


def test_headers(client: TestClient):
    assert client.get("/ui").url.path == "/ui/"
    for path in ("/ui/", "/ui/app.js", "/ui/worklet.js", "/ui/style.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["content-security-policy"]
    for path in ("/ui/none.js", "/ui/..%2fapi.py", "/ui/%00"):
        assert client.get(path).json()["code"] == "NotFound"
    assert json.loads(client.get("/").text)["status"] == "ok"


def test_the_page_names_no_other_host():
    for file in (ROOT / "web").iterdir():
        assert "//" not in "".join(line.partition("// ")[0] for line in file.read_text(encoding="utf-8").splitlines())
