/* The comparison as people meet it: transport, versions, pictures on one time axis, table.
 * It builds its own elements and needs SyncPlayer, Pictures and table.js; words from outside go through textContent.
 */

const PLAY_ICON = "M6 3.5v17l15-8.5z";
const PAUSE_ICON = "M5 4h5v16H5zM14 4h5v16h-5z";

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")}`;
}

class ComparisonView {
  static LANES = ["waveform", "original", "coded", "difference"];
  static DRAG_PIXELS = 6;

  /** @param {HTMLElement} root  empty; everything is built in it */
  constructor(root) {
    this.root = root;
    this.player = null;
    document.addEventListener("keydown", (event) => this._onKey(event));
    new ResizeObserver(() => this._draw()).observe(root);
    new MutationObserver(() => this._forgetColours()).observe(document.body, { attributeFilter: ["class"] });
  }

  /**
   * Loads a comparison; what was shown before stays until the new one is ready.
   *
   * @param {object} report  `Comparison.as_dict()`, with `original_file` and, for every version, `wav_file` and `taae_file`
   * @param {Object<string, string>} urls  file name -> address
   */
  async show(report, urls) {
    const names = [report.original_file, ...report.versions.map((version) => version.wav_file)].filter(Boolean);
    const context = new AudioContext({ sampleRate: report.sample_rate_hz });
    const wavs = await Promise.all(
      names.map(async (name) => {
        const response = await fetch(urls[name]);
        if (!response.ok) throw new Error(`the server no longer has ${name}`);
        return (await context.decodeAudioData(await response.arrayBuffer())).getChannelData(0);
      }),
    );
    this.player?.dispose();
    this.player?.context.close();
    this.report = report;
    this.wavs = wavs;
    this.player = new SyncPlayer(context);
    this.player.load(wavs);
    // A version is known by its key: 0 is the original, 1 ... 9 the coded ones.
    this.firstKey = report.has_original ? 0 : 1;
    this.versions = report.has_original ? [undefined, ...report.versions] : report.versions;
    this.lastCoded = report.has_original ? 1 : 0;
    this.pictures = new Pictures(wavs, report.sample_rate_hz, this.root);
    this._build(urls);
    this.player.onchange = () => this._update();
    this.player.select(this.lastCoded);
    this._draw();
    this._update();
    const { pictures, canvases } = this;
    this.versions.forEach((_, index) => setTimeout(() => pictures.warm(canvases.waveform, index), 100 * (index + 1)));
  }

  /** Says what went wrong, above what is shown. */
  complain(text) {
    const message = make("p", "status error", text);
    message.setAttribute("role", "alert");
    this.root.querySelector(":scope > .status.error")?.remove();
    this.root.classList.add("loaded");
    this.root.prepend(message);
  }

  _build(urls) {
    const { report } = this;
    const { table, rows } = comparisonTable(report, urls, this.versions);
    this.rows = rows;
    this.tools = new Tools(this, urls);
    this.strip = new TokenStrip(this, urls);
    const { tools, strip } = this;
    const parts = [this._transport(), this._versions(), tools.element, this._stage(), strip.editor, make("p", "help quiet", this._help()), table];
    const notes = [...report.notes, ...missingMetrics(report)];
    if (notes.length) {
      const list = make("ul", "notes quiet");
      notes.forEach((text) => list.append(make("li", "", text)));
      parts.push(list);
    }
    this.root.replaceChildren(...parts, tableLegend(report));
    this.root.classList.add("loaded");
    this._listenToPointer();
  }

  /** Puts other sounds of the same length behind the same buttons, where they are in time. */
  replaceSounds(wavs) {
    const { player } = this;
    const { active, position, isPlaying, isLooping, region, sampleRate } = player;
    if (isPlaying) player.pause();
    clearTimeout(this.replacing);
    this.replacing = setTimeout(() => {
      player.load(wavs);
      player.select(active);
      if (isLooping) player.setLoop(region.start / sampleRate, region.end / sampleRate);
      player.seek(position);
      if (isPlaying) player.play();
    }, 60); // after the fade
  }

  /** Another sound for one version, of the same length. */
  replaceVersion(index, wav) {
    this.wavs[index] = wav;
    this.pictures.replace(index, wav);
    this.tools.apply();
    this._draw();
  }

  _transport() {
    const transport = make("div", "transport");
    this.playButton = make("button", "play");
    this.playButton.type = "button";
    this.playButton.innerHTML = '<svg viewBox="0 0 24 24" aria-hidden="true"><path></path></svg>';
    this.playButton.onclick = () => this._toggle();
    this.now = make("span", "now");
    const time = make("p", "time");
    time.append(this.now, make("span", "quiet", ` / ${clock(this.player.duration)}`));
    const title = make("div", "title");
    title.append(make("h2", "", this.report.name), time);
    this.loopButton = make("button", "chip loop-clear");
    this.loopButton.type = "button";
    this.loopButton.title = "Leave the loop";
    this.loopButton.onclick = () => this.player.setLoop();
    this.tokenLine = make("p", "tokens");
    transport.append(this.playButton, title, this.loopButton, this.tokenLine);
    return transport;
  }

  _versions() {
    const group = make("div", "versions");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Version to hear");
    this.versionButtons = this.versions.map((version, index) => {
      const button = make("button", "version");
      button.type = "button";
      button.append(
        make("kbd", "", String(index + this.firstKey)),
        make("strong", "", version ? version.label : "Original"),
        make("span", "spec", version ? bottleneckText(version) : `${this.report.source_rate_hz / 1000} kHz`),
      );
      button.onclick = () => this.player.select(index);
      return button;
    });
    group.append(...this.versionButtons);
    return group;
  }

  _stage() {
    this.stage = make("div", "stage");
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "slider");
    this.stage.setAttribute("aria-label", "Position in the recording");
    this.stage.setAttribute("aria-valuemin", "0");
    this.stage.setAttribute("aria-valuemax", this.player.duration.toFixed(2));
    this.canvases = {};
    this.captions = {};
    for (const lane of ComparisonView.LANES) {
      if (!this.report.has_original && (lane === "original" || lane === "difference")) continue;
      const figure = make("figure", `lane ${lane}`);
      this.canvases[lane] = make("canvas");
      this.captions[lane] = make("figcaption");
      figure.append(this.canvases[lane], this.captions[lane]);
      this.stage.append(figure);
    }
    this.captions.waveform.textContent = "Waveform";
    this.canvases.waveform.parentElement.after(this.strip.element);
    if (this.report.has_original) {
      this.captions.original.textContent = "Original";
      const keys = [make("span", "key lost", "energy lost"), make("span", "key added", "energy added")];
      this.captions.difference.append("Difference", ...keys);
    }
    this.ruler = make("div", "ruler");
    this.loopShade = make("div", "loop-shade");
    this.playhead = make("div", "playhead");
    this.stage.append(this.ruler, this.loopShade, this.playhead);
    return this.stage;
  }

  _help() {
    const lastKey = this.versions.length - 1 + this.firstKey;
    const keys = this.report.has_original ? `0 original, ${lastKey > 1 ? `1–${lastKey}` : "1"} coded · ` : "";
    return `${keys}space play · ← → seek · drag, or [ and ], to loop · esc whole recording`;
  }

  _listenToPointer() {
    const secondsAt = (event) => {
      const box = this.stage.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * this.player.duration;
    };
    let from = null;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, seconds: secondsAt(event), isDrag: false };
      this.stage.setPointerCapture(event.pointerId);
    });
    this.stage.addEventListener("pointermove", (event) => {
      if (!from) return;
      from.isDrag ||= Math.abs(event.clientX - from.x) > ComparisonView.DRAG_PIXELS;
      if (from.isDrag) this._shade(from.seconds, secondsAt(event));
    });
    this.stage.addEventListener("pointerup", (event) => {
      if (!from) return;
      const { seconds, isDrag } = from;
      from = null;
      if (isDrag) this.player.setLoop(seconds, secondsAt(event));
      else this._seek(seconds);
    });
    this.stage.addEventListener("pointercancel", () => {
      from = null;
      this._update();
    });
  }

  /** A place outside the loop leaves the loop. */
  _seek(seconds) {
    const { region, sampleRate } = this.player;
    if (seconds < region.start / sampleRate || seconds >= region.end / sampleRate) this.player.setLoop();
    this.player.seek(seconds);
  }

  _toggle() {
    if (this.player.isPlaying) this.player.pause();
    else this.player.play();
  }

  _onKey(event) {
    if (!this.player?.numFrames || this.isBusy || event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.closest?.("textarea, select, [contenteditable], input:not([type=checkbox]):not([type=radio])")) return;
    const action = this._actions(target, event.shiftKey ? 0.1 : 1)[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  /** key -> what it does, with the focus on `target`. */
  _actions(target, stepSeconds) {
    const { player } = this;
    const position = player.position;
    const [loopStart, loopEnd] = [player.region.start / player.sampleRate, player.region.end / player.sampleRate];
    const actions = {
      "[": () => player.setLoop(position, loopEnd),
      "]": () => player.setLoop(loopStart, position),
      Escape: () => player.setLoop(),
    };
    this.versions.forEach((_, index) => (actions[index + this.firstKey] = () => player.select(index)));
    // The browser's own meaning of a key on a control comes first, but on a version space plays, as everywhere.
    if (!target.closest?.("button:not(.version), a, input, summary")) actions[" "] = () => this._toggle();
    if (!target.closest?.("input")) {
      actions.ArrowLeft = () => player.seek(position - stepSeconds);
      actions.ArrowRight = () => player.seek(position + stepSeconds);
    }
    if (target === this.stage) {
      actions.Home = () => player.seek(0);
      actions.End = () => player.seek(player.duration);
    }
    return actions;
  }

  /** After every change of the player's state. */
  _update() {
    const { player } = this;
    if (!player.numFrames) return;
    this.playButton.setAttribute("aria-label", player.isPlaying ? "Pause" : "Play");
    this.playButton.querySelector("path").setAttribute("d", player.isPlaying ? PAUSE_ICON : PLAY_ICON);
    this.versionButtons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === player.active)));
    this.rows.forEach((row, index) => row.classList.toggle("active", index === player.active));
    const [start, end] = [player.region.start / player.sampleRate, player.region.end / player.sampleRate];
    this.loopButton.hidden = !player.isLooping;
    this.loopButton.textContent = `Loop ${start.toFixed(2)}–${end.toFixed(2)} s ✕`;
    this._shade(start, end);
    this.loopShade.hidden = !player.isLooping;
    if (this.drawn !== player.active) this._draw();
    this._moveTo(player.position);
    this._tellPosition(player.position);
    if (player.isPlaying && !this.isTicking) this._tick();
  }

  _tick() {
    this.isTicking = true;
    requestAnimationFrame(() => {
      this.isTicking = false;
      if (!this.player.isPlaying) return;
      this._moveTo(this.player.position);
      this._tick();
    });
  }

  _moveTo(seconds) {
    this.playhead.style.left = `${(100 * seconds) / this.player.duration}%`;
    this.now.textContent = clock(seconds);
    const tokens = this.versions[this.player.active]?.tokens;
    const frame = Math.floor(seconds * this.report.frame_rate_hz);
    this.tokenLine.textContent = tokens ? `frame ${frame + 1}: ${tokens[Math.min(frame, tokens.length - 1)].join(" · ")}` : "";
  }

  /** To assistive technology; not at every frame, which would drown everything else. */
  _tellPosition(seconds) {
    this.stage.setAttribute("aria-valuenow", seconds.toFixed(2));
    this.stage.setAttribute("aria-valuetext", `${seconds.toFixed(1)} of ${this.player.duration.toFixed(1)} seconds`);
  }

  _shade(from, to) {
    const { duration } = this.player;
    this.loopShade.hidden = false;
    this.loopShade.style.left = `${(100 * Math.min(from, to)) / duration}%`;
    this.loopShade.style.width = `${(100 * Math.abs(to - from)) / duration}%`;
  }

  _forgetColours() {
    this.pictures?.forgetColours();
    this._draw();
  }

  _draw() {
    if (!this.player?.numFrames || !this.root.clientWidth) return;
    const { active } = this.player;
    const { has_original: hasOriginal } = this.report;
    this.drawn = active;
    if (!hasOriginal || active > 0) this.lastCoded = active; // while the original sounds, the last coded version stays in view
    this.pictures.waveform(this.canvases.waveform, active, hasOriginal && active > 0);
    this.strip.draw();
    this.pictures.spectrogram(this.canvases.coded, this.lastCoded);
    this.captions.coded.textContent = `${hasOriginal ? "Coded" : "Decoded"}, ${this.versions[this.lastCoded].label}`;
    if (hasOriginal) {
      this.pictures.spectrogram(this.canvases.original, 0);
      this.pictures.difference(this.canvases.difference, this.lastCoded);
    }
    this.pictures.ruler(this.ruler);
  }
}
