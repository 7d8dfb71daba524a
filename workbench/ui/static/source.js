/* The card on which a recording is chosen: dropped, picked, recorded, or one of the examples. */
class SourceCard {
  static BROWSER_DECODES = /\.(m4a|mp4|aac|webm|weba|3gp|amr)$/i;

  /**
   * @param {HTMLElement} root  empty
   * @param {{examples: {title: string}[], maxBytes: number, maxSeconds: number}} options
   * @param {(file: File) => Promise<void>} onfile  hands a file to the server
   * @param {(example: object) => void} onexample
   */
  constructor(root, options, onfile, onexample) {
    Object.assign(this, { root, options, onfile, onexample });
    this.recorder = null;
    this._build();
  }

  _build() {
    const { element } = SourceCard;
    this.input = element("input", { type: "file", accept: "audio/*,.taae,.flac,.m4a", className: "visually-hidden", tabIndex: -1 });
    this.input.setAttribute("aria-label", "Recording or .taae file");
    this.input.onchange = () => this.input.files[0] && this.choose(this.input.files[0]);
    const pick = element("button", { type: "button", className: "soft", textContent: "Choose a file" });
    pick.onclick = () => this.input.click();
    this.record = element("button", { type: "button", className: "soft record" });
    this.record.onclick = () => this.toggleRecording();
    this.meter = element("span", { className: "meter", hidden: true });
    this.meter.append(element("i", {}));
    const row = element("div", { className: "controls" });
    row.append(pick, this.record, this.meter);

    const examples = element("div", { className: "controls examples" });
    examples.setAttribute("role", "group");
    examples.setAttribute("aria-label", "Examples");
    examples.append(element("span", { className: "quiet", textContent: "or an example:" }));
    this.chips = this.options.examples.map((example) => {
      const chip = element("button", { type: "button", className: "chip", textContent: example.title });
      chip.onclick = () => this.chooseExample(example);
      examples.append(chip);
      return chip;
    });
    this.status = element("p", { className: "status" });
    this.status.setAttribute("role", "status");
    const megabytes = Math.round(this.options.maxBytes / 2 ** 20);
    const limits = `wav, flac, mp3, ogg, m4a or .taae; at most ${megabytes} MB and ${this.options.maxSeconds / 60} minutes.`;
    this.root.append(
      element("h2", { textContent: "Recording" }),
      element("p", { className: "quiet", textContent: `Drop a file here: ${limits}` }),
      row,
      examples,
      this.status,
      this.input,
    );
    this._label(false);
    const lit = (event, on) => {
      event.preventDefault();
      this.root.classList.toggle("dropping", on);
    };
    this.root.addEventListener("dragover", (event) => lit(event, true));
    this.root.addEventListener("dragleave", (event) => lit(event, false));
    this.root.addEventListener("drop", (event) => {
      lit(event, false);
      if (event.dataTransfer.files[0]) this.choose(event.dataTransfer.files[0]);
    });
  }

  static element(tag, properties) {
    return Object.assign(document.createElement(tag), properties);
  }

  say(text, isError = false) {
    this.status.textContent = text;
    this.status.classList.toggle("error", isError);
  }

  chooseExample(example) {
    this._mark(example.title);
    this.onexample(example);
    this.say(`Ready: ${example.title}, synthesised.`);
  }

  async choose(file) {
    this._mark(null);
    this.input.value = "";
    if (file.size > this.options.maxBytes) {
      const limit = Math.round(this.options.maxBytes / 2 ** 20);
      this.say(`${file.name} has ${Math.ceil(file.size / 2 ** 20)} MB; at most ${limit} MB, please.`, true);
      return;
    }
    try {
      this.say(`Reading ${file.name} …`);
      if (SourceCard.BROWSER_DECODES.test(file.name)) file = await decodedFile(file);
      await this.onfile(file);
      this.say(`Ready: ${file.name}.`);
    } catch (error) {
      console.error(error);
      this.say(`${file.name} could not be read or sent. Is it audio, and is the server still running? `, true);
      const keep = { href: URL.createObjectURL(file), download: file.name, textContent: "Save it here" };
      this.status.append(SourceCard.element("a", keep)); // a recording must not be lost
    }
  }

  async toggleRecording() {
    if (this.recorder) return this._finish();
    const obstacle = Recorder.obstacle();
    if (obstacle) return this.say(`${obstacle} Choose a file instead.`, true);
    const recorder = new Recorder((seconds, peak) => {
      this.meter.firstChild.style.width = `${Math.min(100, 100 * Math.sqrt(peak))}%`;
      this.record.lastChild.textContent = `Stop (${seconds.toFixed(1)} s)`;
      // Just before the server's limits: a recording that it refuses would be lost.
      const isFull = seconds >= this.options.maxSeconds - 1 || recorder.numBytes >= this.options.maxBytes - 2 ** 16;
      if (isFull && this.recorder === recorder) this._finish();
    });
    try {
      await recorder.start();
    } catch (error) {
      const refused = error.name === "NotAllowedError";
      this.say(refused ? "The browser was not allowed to use the microphone." : `No recording: ${error.message}`, true);
      return;
    }
    this.recorder = recorder;
    this._label(true);
    this.say("Recording, unprocessed: no echo cancelling, no gain control.");
  }

  async _finish() {
    const file = this.recorder.stop();
    this.recorder = null;
    this._label(false);
    if (file.size > 44) await this.choose(file);
    else this.say("Nothing was recorded.", true);
  }

  _label(isRecording) {
    this.record.classList.toggle("on", isRecording);
    this.record.replaceChildren(
      SourceCard.element("i", { className: "dot" }),
      SourceCard.element("span", { textContent: isRecording ? "Stop" : "Record" }),
    );
    this.meter.hidden = !isRecording;
  }

  _mark(title) {
    this.chips.forEach((chip) => chip.setAttribute("aria-pressed", String(chip.textContent === title)));
  }
}
