/* Several versions of one recording on one clock.
 *
 * Every version plays all the time, looped, from the same sample; the ear hears the one whose gain is 1. A switch fades the
 * old version out with a raised cosine and only then the new one in (ITU-R BS.1534-3, never a cross-fade), so that position and
 * timing cannot differ between versions. Times that reach the audio graph are whole sample frames.
 *
 * No dependency and no page: `context` may be an AudioContext or, for tests, an OfflineAudioContext.
 */
class SyncPlayer {
  static FADE_SECONDS = 0.005;
  static SHORTEST_LOOP_SECONDS = 0.5;
  // Chromium 156 begins a curve at the wrong value when another one ended in the same block of 128 frames, so they keep this apart.
  static QUANTUM = 128;
  // A busy audio thread renders several blocks at once; a ramp that it learns of too late would begin in its middle.
  static LEAD_SECONDS = 0.03;

  /**
   * @param {BaseAudioContext} context  plays at `context.sampleRate`, which must be that of the versions
   * @param {AudioNode} [destination]
   */
  constructor(context, destination = context.destination) {
    this.context = context;
    this.destination = destination;
    this.sampleRate = context.sampleRate;
    this.fadeFrames = Math.round(SyncPlayer.FADE_SECONDS * this.sampleRate);
    this.fadeIn = SyncPlayer.raisedCosine(this.fadeFrames);
    this.fadeOut = this.fadeIn.slice().reverse();
    this.versions = [];
    this.gains = [];
    this.active = 0;
    this.numFrames = 0;
    this.region = { start: 0, end: 0 };
    this.onchange = () => {};
    /** Told of everything that is done, as {kind, version, frame, position}: the context frame from which it is heard, and
     * seconds into the recording at that frame. `kind` is play, pause, switch, seek or loop. */
    this.onevent = () => {};
    this._run = null; // the sources that sound now
    this._restFrame = 0; // where to start when nothing sounds
    this._switchFree = 0; // first context frame at which no switch is under way
    this._quietFrom = 0; // first context frame at which the last stopped run is silent
  }

  /** `length + 1` values rising from 0 to 1. */
  static raisedCosine(length) {
    return Float32Array.from({ length: length + 1 }, (_, k) => 0.5 - 0.5 * Math.cos((Math.PI * k) / length));
  }

  /** @param {Float32Array[]} versions  mono, all of one length; the first one is heard first */
  load(versions) {
    if (!versions.length || !versions[0].length) throw new Error("there is nothing to play");
    if (versions.some((wav) => wav.length !== versions[0].length)) throw new Error("versions differ in length");
    this.dispose();
    this.versions = versions;
    this.numFrames = versions[0].length;
    this.active = 0;
    this._restFrame = 0;
    this._switchFree = 0;
    this.gains = versions.map((_, index) => {
      const gain = this.context.createGain();
      gain.gain.value = index === 0 ? 1 : 0;
      gain.connect(this.destination);
      return gain;
    });
    this._setRegion(0, this.numFrames);
    this.onchange();
  }

  get duration() {
    return this.numFrames / this.sampleRate;
  }

  get isPlaying() {
    return this._run !== null;
  }

  get isLooping() {
    return this.region.start > 0 || this.region.end < this.numFrames;
  }

  /** Seconds into the recording of what reaches the ear now. */
  get position() {
    const latency = this.context.outputLatency || 0;
    return this._positionAt(Math.round((this.context.currentTime - latency) * this.sampleRate)) / this.sampleRate;
  }

  /** Every method takes `when`, seconds on the context's clock; left out, it means as soon as possible. */
  play(when) {
    if (this._run || !this.numFrames) return;
    if (this.context.state === "suspended" && when === undefined) this.context.resume();
    const frame = Math.max(this._frame(when), this._quietFrom);
    this._start(frame, this._restFrame);
    this._tell("play", frame);
  }

  pause(when) {
    if (!this._run) return;
    const frame = this._stop(this._frame(when));
    this._restFrame = this._positionAt(frame);
    this._run = null;
    this._tell("pause", frame);
  }

  /** Makes version `index` the audible one, at the same position. */
  select(index, when) {
    if (!(index in this.versions)) throw new Error(`there is no version ${index}`);
    if (index === this.active) return;
    const frame = Math.max(this._frame(when), this._switchFree);
    const [from, to] = [this.gains[this.active].gain, this.gains[index].gain];
    if (this._run || frame < this._quietFrom) {
      this._ramp(from, this.fadeOut, frame);
      this._ramp(to, this.fadeIn, frame + this.fadeFrames);
      this._switchFree = frame + 2 * this.fadeFrames + SyncPlayer.QUANTUM;
    } else {
      from.setValueAtTime(0, frame / this.sampleRate);
      to.setValueAtTime(1, frame / this.sampleRate);
      this._switchFree = frame;
    }
    this.active = index;
    this._tell("switch", frame);
  }

  /** Goes to `seconds`; inside a loop region, to the nearest point of it. */
  seek(seconds, when) {
    const target = this._clamp(Math.round(seconds * this.sampleRate));
    let frame = this._frame(when);
    if (this._run) {
      frame = this._stop(frame);
      this._start(frame + this.fadeFrames, target);
    } else {
      this._restFrame = target;
    }
    this._tell("seek", frame);
  }

  /** Repeats start..end (seconds, at least half a second); without arguments the whole recording. */
  setLoop(start = 0, end = this.duration, when) {
    const shortest = Math.min(this.numFrames, Math.round(SyncPlayer.SHORTEST_LOOP_SECONDS * this.sampleRate));
    let first = Math.max(0, Math.round(Math.min(start, end) * this.sampleRate));
    const last = Math.min(this.numFrames, Math.max(Math.round(Math.max(start, end) * this.sampleRate), first + shortest));
    first = Math.min(first, last - shortest);
    let frame = this._frame(when);
    if (this._run) {
      frame = this._stop(frame);
      const position = this._positionAt(frame + this.fadeFrames);
      this._setRegion(first, last);
      this._start(frame + this.fadeFrames, this._isInside(position) ? position : first);
    } else {
      this._setRegion(first, last);
      if (!this._isInside(this._restFrame)) this._restFrame = first;
    }
    this._tell("loop", frame);
  }

  /** Silences and lets go of everything. */
  dispose() {
    if (this._run) this._run.sources.forEach((source) => source.stop());
    this.gains.forEach((gain) => gain.disconnect());
    this._run = null;
    this.gains = [];
    this.versions = [];
    this.numFrames = 0;
  }

  _tell(kind, frame) {
    this.onevent({ kind, version: this.active, frame, position: this._positionAt(frame) / this.sampleRate });
    this.onchange();
  }

  _frame(when) {
    if (when === undefined) return Math.ceil((this.context.currentTime + SyncPlayer.LEAD_SECONDS) * this.sampleRate);
    return Math.round(when * this.sampleRate);
  }

  _clamp(frame) {
    return Math.min(Math.max(frame, this.region.start), this.region.end - 1);
  }

  _isInside(frame) {
    return frame >= this.region.start && frame < this.region.end;
  }

  _positionAt(frame) {
    if (!this._run) return this._restFrame;
    const elapsed = Math.max(0, frame - this._run.frame);
    return this.region.start + ((this._run.offset + elapsed) % (this.region.end - this.region.start));
  }

  _ramp(param, curve, frame) {
    param.setValueCurveAtTime(curve, frame / this.sampleRate, this.fadeFrames / this.sampleRate);
  }

  /** Copies the region of every version, faded at both ends: a loop then needs no timer and cannot click. */
  _setRegion(start, end) {
    this.region = { start, end };
    const fade = Math.min(this.fadeFrames, Math.floor((end - start) / 2));
    const curve = SyncPlayer.raisedCosine(Math.max(1, fade));
    this._buffers = this.versions.map((wav) => {
      const buffer = this.context.createBuffer(1, end - start, this.sampleRate);
      const samples = buffer.getChannelData(0);
      samples.set(wav.subarray(start, end));
      for (let k = 0; k < fade; k++) {
        samples[k] *= curve[k];
        samples[samples.length - 1 - k] *= curve[k];
      }
      return buffer;
    });
  }

  _start(frame, position) {
    const offset = position - this.region.start;
    const gates = [];
    const sources = this._buffers.map((buffer, index) => {
      const source = this.context.createBufferSource();
      const gate = this.context.createGain();
      source.buffer = buffer;
      source.loop = true;
      gate.gain.value = 0;
      this._ramp(gate.gain, this.fadeIn, frame);
      source.connect(gate).connect(this.gains[index]);
      source.start(frame / this.sampleRate, offset / this.sampleRate);
      source.onended = () => gate.disconnect();
      gates.push(gate);
      return source;
    });
    this._run = { frame, offset, gates, sources };
  }

  /** Fades the sounding run out from `frame`, or from the end of its own fade-in; gives the frame taken. */
  _stop(frame) {
    const first = Math.max(frame, this._run.frame + this.fadeFrames + SyncPlayer.QUANTUM);
    this._run.gates.forEach((gate) => this._ramp(gate.gain, this.fadeOut, first));
    this._run.sources.forEach((source) => source.stop((first + this.fadeFrames) / this.sampleRate));
    this._quietFrom = first + this.fadeFrames;
    return first;
  }
}
