// Waveform and spectrogram of samples on canvases, in the colours of the page.
const SIZE = 512; // samples of a spectrum
const SHOWN = 8000 / 22050; // of the sampling rate: up to 8 kHz
const LONGEST = 20 * 60; // seconds that are unpacked here: some 500 MB of memory at 48 kHz
const LARGEST = 50e6, UNKNOWN = 5e6; // bytes of a file, and of one that does not say how long it is

function context(canvas) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(canvas.clientWidth * scale));
  canvas.height = Math.max(1, Math.round(canvas.clientHeight * scale));
  return canvas.getContext("2d");
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function drawWaveform(canvas, samples) {
  const draw = context(canvas);
  const { width, height } = canvas;
  draw.fillStyle = colour("--accent");
  const peak = Math.max(0.05, samples.reduce((most, value) => Math.max(most, Math.abs(value)), 0));
  for (let x = 0; x < width; x++) {
    let low = 0, high = 0;
    const end = Math.floor(((x + 1) * samples.length) / width);
    for (let i = Math.floor((x * samples.length) / width); i < end; i++) {
      low = Math.min(low, samples[i] / peak);
      high = Math.max(high, samples[i] / peak);
    }
    draw.fillRect(x, ((1 - high) * height) / 2, 1, Math.max(1, ((high - low) * height) / 2));
  }
}

// Radix-2, in place.
function transform(re, im) {
  for (let i = 1, j = 0; i < SIZE; i++) {
    let bit = SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let length = 2; length <= SIZE; length *= 2) {
    const half = length / 2;
    for (let k = 0; k < half; k++) {
      const c = Math.cos((-2 * Math.PI * k) / length), s = Math.sin((-2 * Math.PI * k) / length);
      for (let i = k; i < SIZE; i += length) {
        const r = re[i + half] * c - im[i + half] * s, m = re[i + half] * s + im[i + half] * c;
        re[i + half] = re[i] - r; im[i + half] = im[i] - m;
        re[i] += r; im[i] += m;
      }
    }
  }
}

export function drawSpectrogram(canvas, samples) {
  const draw = context(canvas);
  const { width, height } = canvas;
  const image = draw.createImageData(width, height);
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const low = dark ? [24, 27, 33] : [243, 244, 246], high = dark ? [198, 220, 255] : [16, 52, 110];
  const re = new Float64Array(SIZE), im = new Float64Array(SIZE);
  for (let x = 0; x < width; x++) {
    const start = Math.round(((x + 0.5) * samples.length) / width) - SIZE / 2;
    for (let i = 0; i < SIZE; i++) {
      re[i] = (samples[start + i] ?? 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / SIZE));
      im[i] = 0;
    }
    transform(re, im);
    for (let y = 0; y < height; y++) {
      const bin = Math.floor(((height - 1 - y) * SIZE * SHOWN) / height);
      const level = 20 * Math.log10(Math.hypot(re[bin], im[bin]) + 1e-9);
      const share = Math.max(0, Math.min(1, (level + 36) / 60));
      const at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) image.data[at + c] = low[c] + share * (high[c] - low[c]);
      image.data[at + 3] = 255;
    }
  }
  draw.putImageData(image, 0, 0);
}

// Mono samples of a file of so many seconds, and how long it is; null if the browser cannot read it, or it is too much to be unpacked here.
export async function decode(file, seconds) {
  if (file.size > LARGEST || (Number.isFinite(seconds) ? seconds > LONGEST : file.size > UNKNOWN)) return null;
  try {
    const sound = await new OfflineAudioContext(1, 1, 22050).decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: sound.numberOfChannels }, (_, i) => sound.getChannelData(i));
    const mean = (_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length;
    return { samples: channels.length > 1 ? channels[0].map(mean) : channels[0], duration: sound.duration };
  } catch {
    return null;
  }
}
