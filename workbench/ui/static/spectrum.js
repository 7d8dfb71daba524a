/* Spectrograms in plain JavaScript: short-time spectra in dB on a mel-spaced frequency axis, and their colours. */

const FLOOR_DB = -110;

/** In-place radix-2 FFT of `re` + i `im`; the length is a power of two. */
function fft(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [re[i], re[j]] = [re[j], re[i]];
      [im[i], im[j]] = [im[j], im[i]];
    }
  }
  for (let size = 2; size <= n; size <<= 1) {
    const half = size >> 1;
    const stepRe = Math.cos((-2 * Math.PI) / size);
    const stepIm = Math.sin((-2 * Math.PI) / size);
    for (let start = 0; start < n; start += size) {
      let [wRe, wIm] = [1, 0];
      for (let k = start; k < start + half; k++) {
        const tRe = re[k + half] * wRe - im[k + half] * wIm;
        const tIm = re[k + half] * wIm + im[k + half] * wRe;
        re[k + half] = re[k] - tRe;
        im[k + half] = im[k] - tIm;
        re[k] += tRe;
        im[k] += tIm;
        [wRe, wIm] = [wRe * stepRe - wIm * stepIm, wRe * stepIm + wIm * stepRe];
      }
    }
  }
}

const melOfHz = (hz) => 2595 * Math.log10(1 + hz / 700);
const hzOfMel = (mel) => 700 * (10 ** (mel / 2595) - 1);

/** The highest frequency shown: everything the codec keeps, and some of what it drops. */
function topFrequency(sampleRate) {
  return Math.min(sampleRate / 2, 12000);
}

/** Fraction of the height, from the bottom, at which `hz` lies. */
function heightOfHz(hz, sampleRate) {
  return melOfHz(hz) / melOfHz(topFrequency(sampleRate));
}

/**
 * dB re full scale, `rows * columns` values, top row first; one frame of about 30 ms at the middle of every column, the
 * strongest bin of every row.
 * All versions of a recording are cut at the same places, so that they can be subtracted.
 */
function spectrogram(wav, sampleRate, columns, rows) {
  const size = 2 ** Math.round(Math.log2(0.03 * sampleRate));
  const window = Float64Array.from({ length: size }, (_, k) => 0.5 - 0.5 * Math.cos((2 * Math.PI * (k + 0.5)) / size));
  const scale = 4 / size; // a full-scale sine reads 0 dB under this window
  const topMel = melOfHz(topFrequency(sampleRate));
  const edges = Float64Array.from({ length: rows + 1 }, (_, r) => (hzOfMel((r / rows) * topMel) / sampleRate) * size);
  const re = new Float64Array(size);
  const im = new Float64Array(size);
  const power = new Float64Array(size / 2 + 1);
  const levels = new Float32Array(rows * columns);
  for (let column = 0; column < columns; column++) {
    const first = Math.round(((column + 0.5) / columns) * wav.length) - size / 2;
    for (let k = 0; k < size; k++) {
      const at = first + k;
      re[k] = at >= 0 && at < wav.length ? wav[at] * window[k] : 0;
      im[k] = 0;
    }
    fft(re, im);
    for (let k = 0; k <= size / 2; k++) power[k] = (re[k] * re[k] + im[k] * im[k]) * scale * scale;
    for (let row = 0; row < rows; row++) {
      const [low, high] = [edges[row], edges[row + 1]];
      const [from, to] = [Math.ceil(low), Math.floor(high)];
      let value = 0;
      for (let k = from; k <= to; k++) value = Math.max(value, power[k]);
      if (from > to) {
        const middle = (low + high) / 2; // a row between two bins
        value = power[to] + (power[from] - power[to]) * (middle - to);
      }
      levels[(rows - 1 - row) * columns + column] = Math.max(FLOOR_DB, 10 * Math.log10(value + 1e-12));
    }
  }
  return levels;
}

/** 256 colours, each [r, g, b], evenly along `stops`, a list of "#rrggbb". */
function palette(stops) {
  const colours = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.trim().slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, index) => {
    const place = (index / 255) * (colours.length - 1);
    const k = Math.min(Math.floor(place), colours.length - 2);
    return colours[k].map((from, channel) => Math.round(from + (colours[k + 1][channel] - from) * (place - k)));
  });
}

/** A canvas of `columns` x `rows` pixels: `low` takes the first colour, `high` the last. */
function paintLevels(levels, columns, rows, colours, low, high) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < levels.length; i++) {
    const colour = colours[Math.max(0, Math.min(255, Math.round((255 * (levels[i] - low)) / (high - low))))];
    image.data.set(colour, 4 * i);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
