/* The sounds of the trials, fetched ahead, as samples at their own rate. */
class Sounds {
  /** @param {string} token */
  constructor(token) {
    this.token = token;
    this.trials = new Map();
    this.onwait = () => {};
  }

  /** Keeps this trial and the next ones; a listener needs no others. */
  keepFrom(trial) {
    for (const number of this.trials.keys()) if (number < trial) this.trials.delete(number);
  }

  /**
   * @param {number} trial
   * @param {string[]} slots
   * @returns {Promise<{sampleRate: number, wavs: Map<string, Float32Array>}>}
   */
  of(trial, slots) {
    if (!this.trials.has(trial)) {
      const loaded = this._load(trial, slots);
      loaded.catch(() => this.trials.delete(trial));
      this.trials.set(trial, loaded);
    }
    return this.trials.get(trial);
  }

  async _load(trial, slots) {
    const files = await Promise.all(slots.map((slot) => this._fetch(`/api/session/audio/${trial}/${slot}`)));
    const sampleRate = Sounds.rateOf(files[0]);
    const decoder = new OfflineAudioContext(1, 1, sampleRate); // at the rate of the file, so that nothing is resampled
    const buffers = await Promise.all(files.map((file) => decoder.decodeAudioData(file)));
    return { sampleRate, wavs: new Map(slots.map((slot, k) => [slot, buffers[k].getChannelData(0)])) };
  }

  async _fetch(path) {
    for (let attempt = 0; ; attempt++) {
      try {
        const response = await request("GET", path, { token: this.token, seconds: 60 });
        return await response.arrayBuffer();
      } catch (error) {
        if (error instanceof HttpError && error.status < 500 && error.status !== 429) throw error;
        const wait = Math.max(Outbox.WAITS_SECONDS[Math.min(attempt, 4)], error.retryAfterSeconds || 0);
        this.onwait(wait);
        await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
      }
    }
  }

  /** Sample rate from the header of a wav file. */
  static rateOf(file) {
    const view = new DataView(file);
    for (let at = 12; at + 16 <= view.byteLength; at += 8 + view.getUint32(at + 4, true)) {
      if (view.getUint32(at) === 0x666d7420) return view.getUint32(at + 12, true); // "fmt "
    }
    throw new Error("the sound is no wav file");
  }
}
