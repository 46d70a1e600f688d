// The microphone as 16-bit PCM, and PCM as a WAV file.
import { Failure, UNREACHABLE, patient } from "./server.js";

const REFUSED = {
  NotAllowedError: "The microphone was refused. Allow it for this page in the browser's settings.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone is in use by another program.",
};

// What browsers do to voices for a call would only be noise to the model.
const PLAIN = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };

export class Microphone {
  async open(heard, lost) {
    if (!navigator.mediaDevices) throw new Error("Browsers give the microphone only to https pages and to localhost.");
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: PLAIN });
    } catch (error) {
      throw new Error(REFUSED[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    this.stream.getAudioTracks()[0].onended = lost; // it was unplugged, or taken away
    try {
      return await this.listen(heard);
    } catch (error) {
      await this.release(); // else it stays on
      throw error;
    }
  }

  async listen(heard) {
    let source;
    try {
      this.context = new AudioContext({ sampleRate: 22050 }); // what the model hears
      source = this.context.createMediaStreamSource(this.stream);
    } catch { // not every browser resamples
      await this.context?.close();
      this.context = new AudioContext();
      source = this.context.createMediaStreamSource(this.stream);
    }
    await patient(this.context.audioWorklet.addModule("worklet.js").catch(() => { throw new Failure(UNREACHABLE); }));
    this.node = new AudioWorkletNode(this.context, "pcm", { channelCount: 1, channelCountMode: "explicit" });
    this.ended = new Promise((resolve) => {
      this.node.port.onmessage = ({ data }) => (data ? heard(data) : resolve());
    });
    source.connect(this.node).connect(this.context.destination); // silent: nothing is written to it
    return this.context.sampleRate;
  }

  async close() {
    this.node.port.postMessage("end");
    await this.ended;
    await this.release();
  }

  async release() {
    this.stream.getTracks().forEach((track) => track.stop());
    await this.context?.close();
  }
}

export function wav(blocks, rate) {
  const bytes = 2 * blocks.reduce((sum, block) => sum + block.length, 0);
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + bytes, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, bytes, true);
  return new File([view, ...blocks], "recording.wav", { type: "audio/wav" });
}
