/* The live page: microphone -> server (encode, lose, decode) -> ear. */
class LivePage {
  static BUFFER_S = 0.06; // against uneven arrival
  static KEEP_S = 60;
  static MAX_PIECE_S = 1.5; // the server takes 2

  constructor(document) {
    this.get = (id) => document.getElementById(id);
    this.isOn = false;
    this.get("start").onclick = () => (this.isOn ? this.stop() : this.start());
    this.get("loss").oninput = ({ target }) => (this.get("loss-text").textContent = `${target.value} %`);
    this.get("gain").oninput = ({ target }) => (this.get("gain-text").textContent = `${target.value} dB`);
    this.get("hear").onchange = () => this.line?.port.postMessage(this.hear);
    addEventListener("pagehide", () => this.isOn && this.stop());
  }

  get hear() {
    return document.querySelector("[name=hear]:checked").value;
  }

  say(text, isError = false) {
    this.get("status").textContent = text;
    this.get("status").classList.toggle("error", isError);
  }

  /** Asks the server what it has; the page stays off if that, or the browser, is not enough. */
  async open() {
    try {
      this.info = await this._ask("status", { method: "GET" });
    } catch (error) {
      return this.say(error.message, true);
    }
    const { model, millions, bitrates, latency_ms } = this.info;
    this.get("model").textContent =
      `Your microphone goes through the codec frame by frame, as on a call: the causal model “${model}”, ` +
      `${millions} million parameters, ${latency_ms} ms of algorithmic latency. It runs on this machine; nothing is stored.`;
    for (const { bottleneck, label } of bitrates) {
      const option = new Option(`${label} (${bottleneck})`, bottleneck);
      option.selected = bottleneck === "2x5^6";
      this.get("bitrate").append(option);
    }
    const obstacle = Recorder.obstacle();
    if (obstacle) return this.say(obstacle, true);
    this.get("start").disabled = false;
    this.say("Press Start and allow the microphone.");
  }

  async start() {
    this.get("start").disabled = true;
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio: Recorder.CONSTRAINTS });
      const { sample_rate_hz: sampleRate, hop_samples: piece } = this.info;
      this.context = new AudioContext({ sampleRate, latencyHint: "interactive" });
      await this.context.audioWorklet.addModule("live_line.js");
      const target = Math.round(LivePage.BUFFER_S * sampleRate);
      const options = { channelCount: 1, channelCountMode: "explicit", outputChannelCount: [1], processorOptions: { piece, target } };
      this.line = new AudioWorkletNode(this.context, "line", options);
      this.session = (await this._ask("start")).session;
    } catch (error) {
      this._release();
      this.get("start").disabled = false;
      const refused = error.name === "NotAllowedError";
      return this.say(refused ? "The browser was not allowed to use the microphone." : error.message, true);
    }
    Object.assign(this, { isOn: true, isBusy: false, waiting: [], spoken: [], heard: [], steps: [], tripMs: 0 });
    Object.assign(this, { numFrames: 0, numLost: 0, numBits: 0 });
    this.line.port.onmessage = ({ data }) => this._spoken(data);
    this.line.port.postMessage(this.hear);
    this.context.createMediaStreamSource(this.stream).connect(this.line).connect(this.context.destination);
    await this.context.resume();
    this._label("Stop");
    this.say("Live. The microphone is unprocessed: no echo cancelling, no noise suppression, no gain control.");
  }

  stop(text = "Stopped.", isError = false) {
    this.isOn = false;
    this._release();
    fetch(`stop?session=${this.session}`, { method: "POST", keepalive: true }).catch(() => {});
    this._label("Start");
    this.say(text, isError);
    for (const name of ["spoken", "heard"]) {
      const link = this.get(`save-${name}`);
      URL.revokeObjectURL(link.href);
      const samples = Float32Array.from(this._joined(this[name]), (value) => value / 32768);
      link.href = URL.createObjectURL(wavFile(samples, this.info.sample_rate_hz, `${name}.wav`));
    }
    this.get("saving").hidden = false;
  }

  /** A frame from the microphone; it goes out at once unless an answer is awaited. */
  _spoken({ pcm, delay, queued, gaps }) {
    if (!this.isOn) return;
    this._keep(this.spoken, pcm);
    this.waiting.push(pcm);
    this._show(pcm, delay, queued, gaps);
    if (!this.isBusy) this._send();
  }

  async _send() {
    this.isBusy = true;
    try {
      while (this.isOn && this.waiting.length) {
        const pcm = this._joined(this.waiting.splice(0, Math.floor((LivePage.MAX_PIECE_S * 1000) / this.info.latency_ms)));
        const settings = {
          session: this.session,
          bottleneck: this.get("bitrate").value,
          loss: this.get("loss").value / 100,
          gain_db: this.get("gain").value,
        };
        const started = performance.now();
        const answer = await fetch(`push?${new URLSearchParams(settings)}`, { method: "POST", body: pcm });
        if (!answer.ok) throw new Error((await answer.json()).error);
        const heard = new Int16Array(await answer.arrayBuffer());
        this.tripMs = performance.now() - started;
        this._count(JSON.parse(answer.headers.get("X-Live")));
        this._keep(this.heard, heard);
        if (this.isOn) this.line.port.postMessage(heard);
      }
    } catch (error) {
      if (this.isOn) this.stop(error instanceof TypeError ? "The server does not answer any more." : error.message, true);
    }
    this.isBusy = false;
  }

  _count({ frames, lost, bits, encode_ms, decode_ms }) {
    this.numFrames += frames;
    this.numLost += lost;
    this.numBits += bits;
    if (frames) this.steps.push((encode_ms + decode_ms) / frames);
    this.steps.splice(0, this.steps.length - 250);
  }

  /** The read-out, four times a second. */
  _show(pcm, delay, queued, gaps) {
    let peak = 0;
    for (const value of pcm) peak = Math.max(peak, Math.abs(value) / 32768);
    this.get("level").style.width = `${Math.min(100, 100 * Math.sqrt(peak))}%`;
    if (!this.numFrames || this.spoken.length % 6) return;
    const set = (id, text) => (this.get(id).textContent = text);
    const rate = this.info.sample_rate_hz;
    const deviceMs = 1000 * (this.context.baseLatency + (this.context.outputLatency || 0));
    const seconds = (this.numFrames * this.info.latency_ms) / 1000;
    set("latency", delay === null ? "–" : `${Math.round((1000 * delay) / rate + deviceMs)} ms`);
    const parts = [`frame ${this.info.latency_ms} ms`, `server and network ${Math.round(this.tripMs)} ms`];
    parts.push(`buffer ${Math.round((1000 * queued) / rate)} ms`, `sound device ${Math.round(deviceMs)} ms`);
    set("latency-parts", parts.join(", "));
    set("rate", `${Math.round(this.numBits / seconds)} bit/s`);
    set("rate-parts", `${(rate * 16).toLocaleString("en")} bit/s before; ${seconds.toFixed(0)} s`);
    set("lost", `${((100 * this.numLost) / this.numFrames).toFixed(1)} %`);
    const breaks = gaps === 1 ? "1 break" : `${gaps} breaks`;
    set("lost-parts", `${this.numLost} of ${this.numFrames} frames; ${breaks} because an answer came too late`);
    const sorted = [...this.steps].sort((a, b) => a - b);
    set("computing", `${sorted[Math.floor(sorted.length / 2)].toFixed(1)} ms`);
  }

  _release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    if (this.context && this.context.state !== "closed") this.context.close();
  }

  _label(text) {
    const button = this.get("start");
    button.disabled = false;
    button.classList.toggle("on", this.isOn);
    button.lastElementChild.textContent = text;
  }

  _keep(blocks, block) {
    blocks.push(block);
    const most = LivePage.KEEP_S * this.info.sample_rate_hz;
    while (blocks.reduce((sum, { length }) => sum + length, 0) > most) blocks.shift();
  }

  _joined(blocks) {
    const joined = new Int16Array(blocks.reduce((sum, block) => sum + block.length, 0));
    blocks.reduce((at, block) => (joined.set(block, at), at + block.length), 0);
    return joined;
  }

  async _ask(what, options = { method: "POST" }) {
    const answer = await fetch(what, options).catch(() => {
      throw new Error("The server does not answer.");
    });
    const values = await answer.json();
    if (!answer.ok) throw new Error(values.error);
    return values;
  }
}
