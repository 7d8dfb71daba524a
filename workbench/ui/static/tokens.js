/* The tokens of the version that sounds, one cell a frame: click to hear one, change it, and hear what it carried. */
class TokenStrip {
  static CELL_HEIGHT = 18; // of one residual stage
  static AROUND_SECONDS = 0.3; // heard before and after a frame

  /** @param {ComparisonView} view  @param {Object<string, string>} urls  file name -> address */
  constructor(view, urls) {
    Object.assign(this, { view, urls, chosen: null });
    this.isShared = document.querySelector("[data-shared]") !== null; // a file that was shared has no codec
    this.edits = view.versions.map(() => new Map()); // "frame stage" -> token
    this.canvas = make("canvas");
    this.caption = make("figcaption", "", "Tokens");
    this.element = make("figure", "tokens-lane");
    this.element.append(this.canvas, this.caption);
    this.editor = make("form", "token-editor");
    this.editor.setAttribute("aria-label", "Token");
    this.canvas.addEventListener("pointerdown", (event) => event.stopPropagation()); // a click here is no seek
    this.canvas.addEventListener("click", (event) => this._choose(event));
    this.editor.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!this.isShared) this._decode();
    });
    this.editor.hidden = true;
  }

  get version() {
    return this.view.versions[this.view.lastCoded];
  }

  draw() {
    const { tokens } = this.version ?? {};
    this.element.hidden = !tokens;
    if (!tokens) return;
    const { canvas } = this;
    canvas.style.height = `${TokenStrip.CELL_HEIGHT * tokens[0].length}px`;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const cell = this._cellWidth(width);
    const gap = cell > 4 ? 1 : 0;
    const edits = this.edits[this.view.lastCoded];
    tokens.forEach((stages, frame) => {
      stages.forEach((token, stage) => {
        const edit = edits.get(`${frame} ${stage}`);
        // The golden angle sets neighbouring numbers apart; equal tokens have equal colours.
        const value = edit ?? token;
        context.fillStyle = `hsl(${(10 + ((value * 137.508) % 30)).toFixed(0)} 62% ${(40 + ((value * 61.8) % 42)).toFixed(0)}%)`;
        const top = stage * TokenStrip.CELL_HEIGHT;
        context.fillRect(frame * cell, top, Math.max(cell - gap, 0.5), TokenStrip.CELL_HEIGHT - 1);
        if (edit === undefined && frame !== this.chosen) return;
        context.lineWidth = 2;
        context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--ink").trim();
        context.strokeRect(frame * cell + 1, top + 1, Math.max(cell - 2, 1), TokenStrip.CELL_HEIGHT - 3);
      });
    });
  }

  /** Frames are all equally long; the last one may reach beyond the recording. */
  _cellWidth(width) {
    return width / (this.view.report.frame_rate_hz * this.view.player.duration);
  }

  _choose(event) {
    event.stopPropagation();
    const box = this.canvas.getBoundingClientRect();
    const { tokens } = this.version;
    this.chosen = Math.min(tokens.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / this._cellWidth(box.width))));
    this._showEditor();
    this.draw();
    this._hear();
  }

  _hear() {
    const { view } = this;
    const middle = (this.chosen + 0.5) / view.report.frame_rate_hz;
    view.player.setLoop(Math.max(0, middle - TokenStrip.AROUND_SECONDS), Math.min(view.player.duration, middle + TokenStrip.AROUND_SECONDS));
    view.player.select(view.lastCoded);
    view.player.play();
  }

  _showEditor() {
    const { version, view } = this;
    const edits = this.edits[view.lastCoded];
    const seconds = (this.chosen / view.report.frame_rate_hz).toFixed(2);
    this.inputs = version.tokens[this.chosen].map((token, stage) => {
      const input = make("input");
      Object.assign(input, { type: "number", min: 0, step: 1, value: edits.get(`${this.chosen} ${stage}`) ?? token });
      input.setAttribute("aria-label", `Token ${stage + 1} of frame ${this.chosen + 1}`);
      return input;
    });
    const [decode, hear, undo] = [
      ["Decode", () => {}], // the form's own
      ["Hear it", () => this._hear()],
      ["Undo all", () => this._undo()],
    ].map(([text, onclick]) => {
      const button = make("button", "chip", text);
      button.type = "button";
      button.addEventListener("click", onclick);
      return button;
    });
    decode.type = "submit";
    this.undo = undo;
    this.undo.hidden = edits.size === 0;
    this.state = make("span", "quiet");
    this.state.setAttribute("role", "status");
    this.editor.replaceChildren(make("strong", "", `Frame ${this.chosen + 1}, ${seconds} s`), ...this.inputs);
    if (!this.isShared) this.editor.append(decode);
    this.editor.append(hear, undo, this.state);
    this.editor.hidden = false;
  }

  async _decode() {
    const { view } = this;
    const index = view.lastCoded;
    const edits = this.edits[index];
    this.inputs.forEach((input, stage) => {
      const [key, value] = [`${this.chosen} ${stage}`, Math.round(Number(input.value))];
      if (value === this.version.tokens[this.chosen][stage]) edits.delete(key);
      else edits.set(key, value);
    });
    await this._apply(index);
  }

  async _undo() {
    this.edits[this.view.lastCoded].clear();
    await this._apply(this.view.lastCoded);
    this._showEditor();
  }

  async _apply(index) {
    const { view } = this;
    this.state.textContent = "Decoding …";
    try {
      const data = await (await fetch(this.urls[view.versions[index].taae_file])).blob();
      const file = (await Tools.dataUrl(data)).split(",")[1];
      const edits = [...this.edits[index]].map(([key, token]) => [...key.split(" ").map(Number), token]);
      const response = await fetch("tokens/edit", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ file, edits }),
      });
      if (!response.ok) throw new Error((await response.json()).detail);
      const decoded = await view.player.context.decodeAudioData(await response.arrayBuffer());
      const wav = new Float32Array(view.player.numFrames);
      wav.set(decoded.getChannelData(0).subarray(0, wav.length));
      view.replaceVersion(index, wav);
      this.state.textContent = edits.length ? `${edits.length} changed` : "";
    } catch (error) {
      console.error(error);
      this.state.textContent = error.message;
    }
    this.undo.hidden = this.edits[index].size === 0;
    this.draw();
  }
}
