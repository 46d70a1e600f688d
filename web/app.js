import { Microphone, wav } from "./microphone.js";
import { decode, drawSpectrogram, drawWaveform } from "./pictures.js";
import { Live, admitted, key, transcribe } from "./server.js";
import { srt, vtt } from "./subtitles.js";

const $ = (id) => document.getElementById(id);
const UNSURE = 0.6; // words less probable are marked
const HOPELESS = [400, 413, 415, 422]; // the same sound will get the same answer
const ENDINGS = { text: "txt", srt: "srt", vtt: "vtt", verbose_json: "json" };
const audio = $("audio");

let file = null; // what is shown
let unpacked = null; // its sound, as the pictures show it
let seconds = 0; // of it
let words = []; // [{word, start, end, probability}], a button for each in #words
let answer = null; // of the service, if they came as one
let recording = null;
let turn = 0; // what was begun last wins: what comes for an earlier turn is not shown
let working = new AbortController(); // for this turn
let busy = false; // starting or stopping a recording
let again = null; // what to do when there is a key
let lit = null; // the button of the word that is heard
let frame = 0; // in which it is looked for again

const say = (text) => { $("status").textContent = text; };

function fail(error, retry = null) {
  say("");
  $("error").textContent = error.message;
  again = retry;
  if (error.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
  } else if (retry && !HOPELESS.includes(error.status)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
    button.onclick = () => { $("error").replaceChildren(); $("status").focus(); retry(); };
    $("error").append(button);
  }
}

function nextTurn() {
  turn++;
  working.abort();
  working = new AbortController();
}

function reset() {
  nextTurn();
  audio.pause();
  $("error").replaceChildren();
  $("key-form").hidden = true;
  $("player").hidden = $("result").hidden = true;
  clearWords();
  file = unpacked = null;
  draw();
}

// Words

function clearWords() {
  $("words").replaceChildren();
  $("partial").textContent = "";
  words = [];
  answer = null;
}

function addWords(more) {
  $("result").hidden = false;
  for (const word of more) {
    const button = document.createElement("button");
    const percent = Math.round(word.probability * 100);
    Object.assign(button, { type: "button", className: "word", textContent: word.word, tabIndex: words.length ? -1 : 0 });
    button.classList.toggle("unsure", word.probability < UNSURE);
    button.title = `${percent} % sure, ${word.start.toFixed(2)} s`;
    button.onclick = () => jump(button, word.start);
    $("words").append(button, " ");
    words.push({ ...word, button });
  }
}

function jump(button, start) {
  for (const word of words) word.button.tabIndex = word.button === button ? 0 : -1;
  if (!file) return; // still recording
  audio.currentTime = start;
  audio.play().catch(() => {});
}

$("words").onkeydown = (event) => {
  const here = words.findIndex((word) => word.button === document.activeElement);
  const next = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: words.length - 1 }[event.key];
  if (next === undefined || !words[next]) return;
  event.preventDefault();
  words[here].button.tabIndex = -1;
  words[next].button.tabIndex = 0;
  words[next].button.focus();
};

// The sound

function buttonAt(time) { // of the last word that has begun
  let from = 0, to = words.length;
  while (from < to) {
    const middle = (from + to) >> 1;
    if (words[middle].start <= time) from = middle + 1;
    else to = middle;
  }
  return words[from - 1]?.button;
}

function follow() {
  const now = audio.currentTime, heard = now > 0 ? buttonAt(now + 0.02) : null;
  $("playhead").style.left = `${unpacked ? (100 * now) / unpacked.duration : 0}%`;
  if (heard !== lit) {
    lit?.classList.remove("lit");
    heard?.classList.add("lit");
    lit = heard;
  }
  cancelAnimationFrame(frame); // two events would follow twice
  if (!audio.paused) frame = requestAnimationFrame(follow);
}
for (const event of ["play", "seeked", "pause"]) audio.addEventListener(event, follow);
audio.onerror = () => { $("unplayable").textContent = "This browser cannot play the file; its text is not affected."; };
$("pictures").onclick = (event) => {
  const box = $("pictures").getBoundingClientRect();
  audio.currentTime = ((event.clientX - box.left) / box.width) * unpacked.duration; // the player may not know its own
};

function draw() {
  follow();
  $("pictures").hidden = !unpacked;
  if (!unpacked) return;
  drawWaveform($("waveform"), unpacked.samples);
  drawSpectrogram($("spectrogram"), unpacked.samples);
}
new ResizeObserver(draw).observe($("player"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

async function show(chosen) {
  file = chosen;
  $("unplayable").textContent = "";
  URL.revokeObjectURL(audio.src);
  audio.src = URL.createObjectURL(chosen);
  $("player").hidden = false;
  await new Promise((resolve) => { // until its duration is known, or that it cannot be
    for (const event of ["loadedmetadata", "error"]) audio.addEventListener(event, resolve, { once: true });
  });
  if (file !== chosen) return;
  const decoded = await decode(chosen, audio.duration);
  if (file !== chosen) return;
  unpacked = decoded;
  draw();
}

// A file

async function take(chosen) {
  if (recording) return say("Stop the recording first.");
  reset();
  show(chosen);
  await write();
}

async function write() {
  const mine = turn;
  $("error").replaceChildren();
  $("partial").textContent = "";
  say(`Transcribing ${file.name} …`);
  try {
    const heard = await transcribe(file, $("hot-words").value, working.signal);
    if (mine !== turn) return;
    const said = JSON.parse(heard);
    clearWords(); // not before: an earlier text is better than none
    answer = heard;
    seconds = said.duration;
    addWords(said.words);
    finished();
  } catch (error) {
    if (mine === turn) fail(error, write);
  }
}

function finished() {
  $("result").hidden = false;
  const count = `${words.length} ${words.length === 1 ? "word" : "words"}`;
  say(words.length ? `Done: ${count} in ${seconds.toFixed(1)} s of sound.` : "No words were heard.");
}

$("file").onchange = () => { if ($("file").files[0]) take($("file").files[0]); $("file").value = ""; };
const hasFiles = (event) => event.dataTransfer.types.includes("Files");
document.ondragover = (event) => {
  if (!hasFiles(event)) return; // text, for a field
  event.preventDefault();
  $("drop").classList.add("over");
};
document.ondragleave = () => $("drop").classList.remove("over");
document.ondrop = (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  $("drop").classList.remove("over");
  const { files } = event.dataTransfer;
  if (files[0]) take(files[0]);
  if (files.length > 1 && !recording) $("error").textContent = `Only the first of ${files.length} files was taken.`;
};

$("hot-words").onchange = () => {
  if (!file || recording) return;
  nextTurn(); // an answer on its way was for other words
  write();
};

// The microphone

async function start() {
  const mine = turn, blocks = [], microphone = new Microphone(), early = [];
  let live = null;
  say("Starting …");
  await admitted(working.signal);
  if (mine !== turn) return;
  const rate = await microphone.open((block) => {
    blocks.push(block);
    if (live) live.send(block);
    else early.push(block);
  }, async () => {
    if (recording?.microphone !== microphone) return;
    await toggle();
    say(`The microphone stopped. ${$("status").textContent}`);
  });
  if (mine !== turn) return microphone.close();
  live = new Live(rate, $("hot-words").value, (message) => {
    if (mine !== turn) return;
    $("result").hidden = false;
    $("partial").textContent = message.type === "partial" ? message.text : "";
    if (message.type === "final") addWords(message.words);
  });
  live.done.catch((error) => {
    if (recording?.live === live) say(`Recording, and the sound is kept, but there is no live text: ${error.message}`);
  });
  early.forEach((block) => live.send(block));
  recording = { blocks, microphone, live, rate };
  $("record").classList.add("on");
  $("record-label").textContent = "Stop";
  $("file").disabled = true;
  say("Recording …");
}

async function stop() {
  const mine = turn, { blocks, microphone, live, rate } = recording;
  await microphone.close();
  recording = null;
  $("record").classList.remove("on");
  $("record-label").textContent = "Record";
  $("file").disabled = false;
  const sound = wav(blocks, rate);
  seconds = (sound.size - 44) / 2 / rate;
  show(sound);
  say("Finishing …");
  try {
    await live.finish();
    if (mine !== turn) return;
    $("partial").textContent = "";
    finished();
  } catch (error) { // the sound is kept: it can be sent as a file, if it is not too large
    if (mine !== turn) return;
    $("partial").textContent = "";
    $("result").hidden = !words.length;
    fail(error, write);
  }
}

async function toggle() {
  if (busy) return;
  busy = true;
  if (!recording) reset();
  const mine = turn;
  try {
    await (recording ? stop() : start());
  } catch (error) {
    if (mine === turn) fail(error, error.status === 401 ? toggle : null);
  }
  busy = false;
}
$("record").onclick = toggle;

window.onbeforeunload = (event) => { if (recording || busy) event.preventDefault(); }; // it would be lost

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  key.set($("key").value);
  $("key").value = "";
  $("key-form").hidden = true;
  $("error").replaceChildren();
  again?.();
};

// Copy and download

const text = () => words.map((word) => word.word).join(" ");

function copyFromAField(value) { // pages that come by http have no clipboard
  const field = Object.assign(document.createElement("textarea"), { value });
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  $("copy").focus();
  if (!copied) throw new Error();
}

$("copy").onclick = async () => {
  try {
    await (navigator.clipboard ? navigator.clipboard.writeText(text()) : copyFromAField(text()));
    const before = $("status").textContent;
    say("Copied.");
    setTimeout(() => { if ($("status").textContent === "Copied.") say(before); }, 2000);
  } catch {
    fail(new Error("The browser did not let the page copy; save the text as .txt instead."));
  }
};

const formats = {
  text: () => `${text()}\n`,
  srt: () => srt(words),
  vtt: () => vtt(words),
  verbose_json: () => answer ?? JSON.stringify({ // of a recording
    task: "transcribe", language: "english", text: text(), duration: Number((file ? seconds : words.at(-1).end).toFixed(3)),
    words: words.map(({ button, ...word }) => word),
  }),
};

function download(format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([formats[format]()]));
  link.download = `${(file?.name ?? "recording.wav").replace(/(?<=.)\.[a-z0-9]{1,5}$/i, "")}.${ENDINGS[format]}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
for (const button of document.querySelectorAll("[data-format]")) {
  button.onclick = () => { if (file || words.length) download(button.dataset.format); };
}
