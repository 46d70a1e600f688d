// Blocks of 128 floats from the microphone → 16-bit PCM, a tenth of a second at a time.
class Pcm extends AudioWorkletProcessor {
  block = new Int16Array(Math.round(sampleRate / 10));
  used = 0;

  constructor() {
    super();
    this.port.onmessage = () => {
      this.port.postMessage(this.block.slice(0, this.used));
      this.port.postMessage(null);
      this.block = null; // what comes until the microphone is off is not wanted
    };
  }

  process([[channel]]) {
    if (!this.block) return false;
    for (const value of channel ?? []) {
      this.block[this.used++] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
      if (this.used === this.block.length) {
        this.port.postMessage(this.block.slice());
        this.used = 0;
      }
    }
    return true;
  }
}
registerProcessor("pcm", Pcm);
