/* MUSHRA: every sound has a scale from 0 to 100 in five bands; only the scale of the sound that plays can be moved. */
class SliderTrial extends Trial {
  buildBoard(saved) {
    this.scores = new Map();
    this.sliders = new Map();
    const bands = make("ol", "bands");
    bands.setAttribute("aria-hidden", "true");
    this.study.scale.forEach((label, k) => {
      const band = make("li", "", label);
      band.dataset.from = String(100 - 20 * k);
      bands.append(band);
    });
    const columns = make("div", "columns");
    for (const slot of this.trial.slots) columns.append(this._column(slot, saved.ratings?.[slot]));
    const board = make("div", "board");
    if (this.trial.has_reference) board.append(block("div", "anchor", this._soundButton(Trial.REFERENCE, "sound reference")));
    board.append(block("div", "scale", bands, columns));
    return board;
  }

  missing() {
    const missing = super.missing();
    const unrated = this.trial.slots.filter((slot) => !this.scores.has(slot));
    if (unrated.length) missing.push(`rate ${listOf(unrated)}`);
    return missing;
  }

  ownKeys() {
    const slots = this.trial.slots;
    const keys = this.trial.has_reference ? [[["R"], "hear the reference"]] : [];
    keys.push([[slots[0], "…", slots.at(-1)], "hear a sound"]);
    keys.push([["↑", "↓"], "move the scale of the sound that plays; with shift by 5, page keys by 10"]);
    return keys;
  }

  ownActions(event) {
    const step = event.shiftKey ? 5 : 1;
    return {
      ArrowUp: () => this._nudge(step),
      ArrowDown: () => this._nudge(-step),
      PageUp: () => this._nudge(10),
      PageDown: () => this._nudge(-10),
    };
  }

  update() {
    super.update();
    for (const [slot, slider] of this.sliders) {
      const isOpen = slot === this.slot && this.player.isPlaying;
      slider.disabled = !isOpen;
      slider.closest(".column").classList.toggle("open", isOpen);
    }
  }

  _column(slot, rating) {
    const column = make("div", "column");
    const slider = make("input");
    Object.assign(slider, { type: "range", min: 0, max: 100, step: 1, value: 50 });
    slider.setAttribute("aria-label", `Score of ${slot}`);
    slider.addEventListener("input", () => this._rate(slot, Number(slider.value)));
    // Where it need not be moved, a press keeps it where it stands.
    if (!this.study.must_move) slider.addEventListener("pointerup", () => this._rate(slot, Number(slider.value)));
    this.sliders.set(slot, slider);
    const output = make("output", "score", "–");
    column.append(this._soundButton(slot), block("div", "track", slider), output);
    if (rating) this._show(slot, rating.score, column);
    return column;
  }

  _show(slot, score, column) {
    const slider = this.sliders.get(slot);
    this.scores.set(slot, score);
    slider.value = String(score);
    column.querySelector("output").textContent = String(Math.round(score));
    const band = this.study.scale[Math.min(4, Math.floor((100 - score) / 20))];
    slider.setAttribute("aria-valuetext", `${Math.round(score)}, ${band}`);
    column.classList.add("rated");
  }

  _rate(slot, score) {
    if (this.scores.get(slot) === score) return;
    this._show(slot, score, this.sliders.get(slot).closest(".column"));
    this.keep.rating(slot, score);
    this.update();
  }

  _nudge(step) {
    const slider = this.sliders.get(this.slot);
    if (!slider || slider.disabled) return;
    this._rate(this.slot, Math.min(100, Math.max(0, Number(slider.value) + step)));
  }
}
