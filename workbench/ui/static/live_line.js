/* The audio thread of the live page: cuts the microphone into frames and plays what comes back, on one clock.
 *
 * Sample k that comes back is sample k that was spoken, so how many were spoken when it is played is its delay. Runs in
 * an AudioWorklet; tests run `LineQueue` without one.
 */
class LineQueue {
  static WINDOW = 50; // pieces over which a buffer that is too full is noticed, 2 s

  /** @param {number} target  samples to have before playing begins, against uneven arrival */
  constructor(target, piece) {
    Object.assign(this, { target, piece, blocks: [], queued: 0, spoken: 0, played: 0, gaps: 0, isPlaying: false });
    this.lows = [];
    this.low = Infinity;
  }

  add(block) {
    this.blocks.push(block);
    this.queued += block.length;
    if (this.queued >= this.target) this.isPlaying = true;
  }

  /** Fills `output`, with silence where nothing has come. */
  play(output) {
    this.spoken += output.length;
    let at = 0;
    while (this.isPlaying && at < output.length && this.queued) {
      const part = this.blocks[0].subarray(0, output.length - at);
      for (let k = 0; k < part.length; k++) output[at + k] = part[k] / 32768;
      at += part.length;
      this._take(part.length);
    }
    if (this.isPlaying && at < output.length) {
      this.gaps++;
      this.isPlaying = false;
    }
    output.fill(0, at);
    this.low = Math.min(this.low, this.queued);
  }

  /** Once a piece: what is always left over is only delay, and goes. */
  trim() {
    this.lows.push(this.low);
    this.low = Infinity;
    if (this.lows.length < LineQueue.WINDOW) return;
    const excess = Math.min(...this.lows) - this.target;
    this.lows = [];
    if (this.isPlaying && excess > this.piece) this._take(excess);
  }

  /** Samples between speaking and hearing, or null while nothing plays. */
  get delay() {
    return this.isPlaying ? this.spoken - this.played : null;
  }

  _take(count) {
    this.played += count;
    this.queued -= count;
    while (count) {
      const [first] = this.blocks;
      if (first.length > count) this.blocks[0] = first.subarray(count);
      else this.blocks.shift();
      count -= Math.min(count, first.length);
    }
  }
}

if (globalThis.registerProcessor) {
  registerProcessor("line", class extends AudioWorkletProcessor {
    constructor({ processorOptions: { piece, target } }) {
      super();
      this.queue = new LineQueue(target, piece);
      this.pcm = new Int16Array(piece);
      this.filled = 0;
      this.hear = "codec";
      this.port.onmessage = ({ data }) => (typeof data === "string" ? (this.hear = data) : this.queue.add(data));
    }

    process([[input]], [[output]]) {
      this.queue.play(output);
      for (let k = 0; k < output.length; k++) {
        const value = input ? input[k] : 0;
        this.pcm[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
        if (this.hear !== "codec") output[k] = this.hear === "microphone" ? value : 0;
        if (this.filled === this.pcm.length) {
          this.queue.trim();
          const { delay, queued, gaps } = this.queue;
          this.port.postMessage({ pcm: this.pcm.slice(), delay, queued, gaps });
          this.filled = 0;
        }
      }
      return true;
    }
  });
}
