// The service's public endpoints. The key, if one is asked for, lives as long as the tab.
const at = (path) => new URL(`../${path}`, document.baseURI);

export const key = {
  get: () => sessionStorage.getItem("key") ?? "",
  set: (value) => sessionStorage.setItem("key", value.trim()),
};

export const UNREACHABLE = "The service cannot be reached. Is it running, and are you connected?";

const REFUSED = "No live sound is taken now: all places are, or something on the way lets no WebSockets pass.";
const PATIENCE = 60000; // ms, in which a service that is asked says something

export class Failure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

// What the promise gives; a service that is silent for too long is given up. Each word of it (renew) begins the wait anew.
export function patient(promise, wait = {}) {
  let timer;
  const silence = new Promise((_, reject) => {
    wait.renew = () => {
      clearTimeout(timer);
      timer = setTimeout(() => reject(new Failure("The service does not answer.")), PATIENCE);
    };
  });
  wait.renew();
  return Promise.race([promise, silence]).finally(() => clearTimeout(timer));
}

async function ask(path, options = {}) {
  if (/[^!-~]/.test(key.get())) throw new Failure("A key is made of visible ASCII characters.", 401); // no header can hold it
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  let response;
  try {
    response = await fetch(at(path), { ...options, headers });
  } catch {
    throw new Failure(UNREACHABLE);
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  const wait = response.headers.get("Retry-After");
  const detail = body.detail ?? `The service answered ${response.status}.`;
  throw new Failure(wait ? `${detail} Try again in ${wait} s.` : detail, response.status);
}

// Whether the service lets us in: else a file would be uploaded, or words be spoken, before a key is asked for.
export const admitted = (signal) => patient(ask("v1/models", { signal }));

// The text of a file, its words and segments: JSON. Nothing more is done for it once the signal aborts.
export async function transcribe(file, hotWords, signal) {
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Failure("This file cannot be read: it is a folder, or was changed or removed since it was chosen.");
  });
  await admitted(signal);
  const form = new FormData();
  form.append("file", file, file.name);
  form.append("response_format", "verbose_json");
  form.append("hotwords", hotWords);
  for (const kind of ["word", "segment"]) form.append("timestamp_granularities[]", kind);
  try {
    const response = await ask("v1/audio/transcriptions", { method: "POST", body: form, signal });
    return await response.text().catch(() => { throw new Failure("The connection broke before the text was here."); });
  } catch (error) {
    if (error.status !== 413) throw error;
    const size = (file.size / 1e6).toFixed(1);
    throw new Failure(`This sound (${size} MB) is more than the service takes as a file: ${error.message}.`, 413);
  }
}

// Live sound. `heard(message)` gets partial and final messages; finish() resolves when all is said.
export class Live {
  constructor(rate, hotWords, heard) {
    const url = at("v1/audio/stream");
    url.protocol = url.protocol.replace("http", "ws");
    if (key.get()) url.searchParams.set("api_key", key.get());
    this.waiting = [JSON.stringify({ sample_rate: rate, hotwords: [hotWords] })];
    this.socket = new WebSocket(url);
    let opened = false;
    this.socket.onopen = () => {
      opened = true;
      this.waiting.splice(0).forEach((message) => this.socket.send(message));
    };
    this.done = new Promise((resolve, reject) => {
      let failure = null;
      let complete = false;
      this.socket.onmessage = ({ data }) => {
        const message = JSON.parse(data);
        this.renew?.();
        if (message.type === "error") failure = new Failure(message.error.message);
        else if (message.type === "done") complete = true;
        else heard(message);
      };
      this.socket.onclose = async () => {
        if (complete) return resolve();
        // A browser does not tell why a handshake was refused: a plain request does.
        const why = failure ?? (await ask("v1/models").then(() => ask("readyz")).then(
          () => new Failure(opened ? "The live connection broke." : REFUSED), (error) => error));
        reject(why);
      };
    });
    this.done.catch(() => {});
  }

  send(message) {
    if (this.socket.readyState === WebSocket.CONNECTING) this.waiting.push(message);
    else if (this.socket.readyState === WebSocket.OPEN) this.socket.send(message);
  }

  finish() {
    this.send(JSON.stringify({ eof: true }));
    return patient(this.done, this).finally(() => this.socket.close());
  }
}
