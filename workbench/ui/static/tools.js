/* What can be done with a comparison beside hearing it: blind test, equal loudness, the difference signal, a file to share. */
class Tools {
  /** @param {ComparisonView} view  @param {Object<string, string>} urls  file name -> address */
  constructor(view, urls) {
    Object.assign(this, { view, urls, isMatched: false, isDifference: false });
    const { report } = view;
    this.element = make("div", "tools");
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", "Tools");
    if (report.has_original) {
      const abx = this._button("Can you hear it?", "Ten blind rounds: original or this version?", () => this._playAbx());
      abx.classList.add("first");
      this.match = this._button("Equal loudness", "Bring every version to the loudness of the original (BS.1770)", () => {
        this._set({ isMatched: !this.isMatched });
      });
      this.difference = this._button("Difference", "Hear what was added and lost: version minus original", () => {
        this._set({ isDifference: !this.isDifference });
      });
      this.element.append(abx, this.match, this.difference);
      this._mark();
    }
    if (document.querySelector("[data-shared]") === null) {
      this.element.append(this._button("Share as a file", "One HTML file with all sounds in it, which works offline", () => {
        this._share().catch((error) => this.view.complain(`The file could not be made: ${error.message}.`));
      }));
    }
  }

  /** Factors that make all versions as loud as the original; 1 where a loudness is not known. */
  static gains(report) {
    const { original_loudness_lufs: wanted, versions } = report;
    const gains = versions.map(({ loudness_lufs: loudness }) => {
      return typeof loudness === "number" && typeof wanted === "number" ? 10 ** ((wanted - loudness) / 20) : 1;
    });
    return [1, ...gains];
  }

  /** The sounds behind the buttons: as decoded, equally loud, or minus the original. */
  static sounds(wavs, report, { isMatched, isDifference }) {
    const gains = isMatched ? Tools.gains(report) : wavs.map(() => 1);
    const [original] = wavs;
    return wavs.map((wav, index) => {
      const factor = gains[index];
      if (isDifference && index > 0) return wav.map((sample, k) => factor * sample - original[k]);
      return factor === 1 ? wav : wav.map((sample) => factor * sample);
    });
  }

  _button(text, title, onclick) {
    const button = make("button", "chip", text);
    button.type = "button";
    button.title = title;
    button.addEventListener("click", onclick);
    return button;
  }

  _set(change) {
    Object.assign(this, change);
    this._mark();
    this.apply();
  }

  apply() {
    this.view.replaceSounds(Tools.sounds(this.view.wavs, this.view.report, this));
  }

  _mark() {
    this.match.setAttribute("aria-pressed", String(this.isMatched));
    this.difference.setAttribute("aria-pressed", String(this.isDifference));
  }

  _playAbx() {
    const { view } = this;
    const index = view.lastCoded;
    if (view.player.isPlaying) view.player.pause();
    const { start, end } = view.player.region;
    const matched = Tools.sounds(view.wavs, view.report, { isMatched: true, isDifference: false });
    const pair = [matched[0], matched[index]].map((wav) => wav.subarray(start, end));
    view.isBusy = true; // its keys rest
    new AbxGame(view.player.context, pair, view.versions[index].label, () => (view.isBusy = false));
  }

  /** A template of the server with scripts and looks, and the report and the sounds put into it here. */
  async _share() {
    const get = async (address) => {
      const response = await fetch(address);
      if (!response.ok) throw new Error(`the server no longer has ${address.split("/").pop()}`);
      return response;
    };
    const template = await (await get("share-template")).text();
    const names = [this.view.report.original_file, ...this.view.report.versions.flatMap((entry) => [entry.wav_file, entry.taae_file])];
    const files = {};
    for (const name of names.filter(Boolean)) files[name] = await Tools.dataUrl(await (await get(this.urls[name])).blob());
    // "<" is written so that no text of the report can end the element that it stands in.
    const json = JSON.stringify({ report: this.view.report, files }).replaceAll("<", "\\u003c");
    const page = new Blob([template.replace("COMPARISON_JSON", () => json)], { type: "text/html" });
    const link = make("a");
    link.href = URL.createObjectURL(page);
    link.download = `${this.view.report.name.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "comparison"}.html`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  static dataUrl(blob) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(reader.error);
      reader.readAsDataURL(blob);
    });
  }
}
