/* Waveform, spectrograms and time ruler of a comparison, painted into the canvases of the player. */
class Pictures {
  static COLUMNS = 1000;
  static ROWS = 128;
  static RANGE_DB = 70; // from the loudest point of the first version down to the paper's colour
  static DIFFERENCE_DB = 30; // at which the difference is fully coloured
  static TICKS_HZ = [500, 1000, 2000, 4000, 8000];

  /**
   * @param {Float32Array[]} wavs  of one length; the first is the reference
   * @param {number} sampleRate
   * @param {HTMLElement} root  gives the colours, as CSS variables
   */
  constructor(wavs, sampleRate, root) {
    Object.assign(this, { wavs, sampleRate, root });
    this.levels = [];
    this.envelopes = new Map();
    this.forgetColours();
  }

  /** Version `index` sounds otherwise now. */
  replace(index, wav) {
    this.wavs[index] = wav;
    this.levels[index] = undefined;
    this.envelopes.delete(index);
    [index, `difference ${index}`].forEach((key) => this.images.delete(key));
  }

  forgetColours() {
    this.images = new Map();
  }

  /** Version `index`, over the first version where `hasShadow`. */
  waveform(canvas, index, hasShadow) {
    const [context, width, height] = this._prepare(canvas);
    const peak = Math.max(0.02, ...this.wavs.map((_, k) => this._envelope(k, width).peak));
    const draw = (k, colour) => {
      const { low, high } = this._envelope(k, width);
      context.fillStyle = colour;
      for (let x = 0; x < width; x++) {
        const top = (0.5 - (0.46 * high[x]) / peak) * height;
        context.fillRect(x, top, 1, Math.max(1, (0.5 - (0.46 * low[x]) / peak) * height - top));
      }
    };
    if (hasShadow) draw(0, this._colour("--faint-wave"));
    context.globalAlpha = hasShadow ? 0.85 : 1;
    draw(index, this._colour(hasShadow || this.wavs.length === 1 ? "--accent" : "--wave"));
  }

  spectrogram(canvas, index) {
    this._place(canvas, this._spectrogramImage(index));
  }

  /** How much louder version `index` is than the first one, in dB; below the range of both pictures nothing differs. */
  difference(canvas, index) {
    this._place(canvas, this._differenceImage(index));
  }

  /** Computes ahead what the first look at a version needs, so that switching to it does not wait. */
  warm(canvas, index) {
    this._envelope(index, canvas.clientWidth);
    this._spectrogramImage(index);
    if (index > 0) this._differenceImage(index);
  }

  ruler(element) {
    const duration = this.wavs[0].length / this.sampleRate;
    const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120];
    const step = steps.find((seconds) => (seconds / duration) * element.clientWidth >= 64) ?? 120;
    element.replaceChildren();
    for (let k = 0; k * step < duration - step / 3; k++) {
      const tick = document.createElement("span");
      tick.textContent = step < 1 ? `${(k * step).toFixed(1)} s` : `${k * step} s`;
      tick.style.left = `${(100 * k * step) / duration}%`;
      element.append(tick);
    }
  }

  _prepare(canvas) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(canvas.clientHeight * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    return [context, canvas.clientWidth, canvas.clientHeight];
  }

  _place(canvas, image) {
    const [context, width, height] = this._prepare(canvas);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, width, height);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.fillStyle = this._colour("--tick");
    context.strokeStyle = this._colour("--card"); // a halo keeps the words legible on dark spectra
    context.lineWidth = 3;
    context.lineJoin = "round";
    for (const hz of Pictures.TICKS_HZ) {
      const y = height * (1 - heightOfHz(hz, this.sampleRate));
      const words = hz < 4000 ? `${hz / 1000}` : `${hz / 1000} kHz`;
      if (y <= 5) continue;
      context.strokeText(words, width - 5, y);
      context.fillText(words, width - 5, y);
    }
  }

  _colour(name) {
    return getComputedStyle(this.root).getPropertyValue(name).trim();
  }

  _paint(levels, variable, low, high) {
    const colours = palette(this._colour(variable).split(/\s+/));
    return paintLevels(levels, Pictures.COLUMNS, Pictures.ROWS, colours, low, high);
  }

  _spectrogramImage(index) {
    return this._remember(index, () => {
      const top = this._top();
      return this._paint(this._levels(index), "--spectrum", top - Pictures.RANGE_DB, top);
    });
  }

  _differenceImage(index) {
    return this._remember(`difference ${index}`, () => {
      const floor = this._top() - Pictures.RANGE_DB;
      const original = this._levels(0);
      const louder = this._levels(index).map((level, k) => Math.max(level, floor) - Math.max(original[k], floor));
      return this._paint(louder, "--difference", -Pictures.DIFFERENCE_DB, Pictures.DIFFERENCE_DB);
    });
  }

  _remember(key, paint) {
    if (!this.images.has(key)) this.images.set(key, paint());
    return this.images.get(key);
  }

  _levels(index) {
    this.levels[index] ??= spectrogram(this.wavs[index], this.sampleRate, Pictures.COLUMNS, Pictures.ROWS);
    return this.levels[index];
  }

  _top() {
    return this._levels(0).reduce((top, level) => Math.max(top, level), FLOOR_DB + Pictures.RANGE_DB);
  }

  /** Lowest and highest sample under every pixel. */
  _envelope(index, width) {
    const wav = this.wavs[index];
    const known = this.envelopes.get(index);
    if (known?.low.length === width) return known;
    const [low, high] = [new Float32Array(width), new Float32Array(width)];
    let peak = 0;
    for (let x = 0; x < width; x++) {
      const start = Math.floor((x * wav.length) / width);
      const end = Math.max(Math.floor(((x + 1) * wav.length) / width), start + 1);
      for (let k = start; k < end; k++) {
        if (wav[k] < low[x]) low[x] = wav[k];
        if (wav[k] > high[x]) high[x] = wav[k];
      }
      peak = Math.max(peak, high[x], -low[x]);
    }
    this.envelopes.set(index, { low, high, peak });
    return { low, high, peak };
  }
}
