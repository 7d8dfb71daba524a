/* "Can you hear it?": ten blind rounds between the original and one version, in a minute or two. */
class AbxGame {
  static ROUNDS = 10;

  /**
   * @param {AudioContext} context
   * @param {Float32Array[]} wavs  the original and the version, equally loud
   * @param {string} label  of the version
   * @param {() => void} done
   */
  constructor(context, wavs, label, done) {
    Object.assign(this, { context, wavs, label, done });
    this.answers = [];
    this.sounds = [];
    this.player = new SyncPlayer(context);
    this.element = document.createElement("dialog");
    this.element.className = "taae abx";
    this.element.setAttribute("aria-label", "Can you hear it?");
    this.element.addEventListener("close", () => this._end());
    this.element.addEventListener("keydown", (event) => this._onKey(event));
    document.body.append(this.element);
    this._ask();
    this.element.showModal();
  }

  /** Probability of at least `correct` right answers of `rounds` by guessing. */
  static chance(correct, rounds) {
    let [ways, sum] = [1, 0]; // ways: binomial coefficient, from the top
    for (let k = rounds; k >= correct; k--) {
      sum += ways;
      ways = (ways * k) / (rounds - k + 1);
    }
    return sum / 2 ** rounds;
  }

  _ask() {
    const wasPlaying = this.player.isPlaying;
    const position = wasPlaying ? this.player.position : 0;
    const isSwapped = Math.random() < 0.5;
    const [a, b] = isSwapped ? [this.wavs[1], this.wavs[0]] : this.wavs;
    this.x = Math.random() < 0.5 ? "A" : "B";
    this.player.load([a, b, this.x === "A" ? a : b]);
    this.player.onchange = () => this._mark();
    this.player.seek(position);
    const title = make("h2", "", "Can you hear it?");
    const text = make("p", "quiet", `Original or ${this.label}? Round ${this.answers.length + 1} of ${AbxGame.ROUNDS}. X is one of A and B; if you cannot tell, guess.`);
    this.sounds = ["A", "B", "X"].map((name, index) => this._button("version", name, () => this._hear(index)));
    const sounds = make("div", "versions");
    sounds.append(...this.sounds);
    const answers = make("div", "abx-answers");
    answers.append(...["A", "B"].map((name) => this._button("soft", `X is ${name}`, () => this._answer(name))));
    const close = this._button("abx-close", "✕", () => this.element.close());
    close.setAttribute("aria-label", "Stop");
    this.element.replaceChildren(title, text, sounds, answers, close);
    this.sounds[0].focus(); // what had the focus is gone, and keys go where it is
    if (this.answers.length) this._hear(2);
    else this._mark();
  }

  _button(className, text, onclick) {
    const button = make("button", className);
    button.type = "button";
    button.append(make("strong", "", text));
    button.addEventListener("click", onclick);
    return button;
  }

  _hear(index) {
    this.player.select(index);
    this.player.play();
  }

  _mark() {
    this.sounds.forEach((button, index) => {
      button.setAttribute("aria-pressed", String(this.player.isPlaying && index === this.player.active));
    });
  }

  _onKey(event) {
    event.stopPropagation(); // the page behind has keys of its own
    const index = ["a", "b", "x"].indexOf(event.key.toLowerCase());
    if (index >= 0 && this.sounds.length) this._hear(index);
  }

  _answer(name) {
    this.answers.push(name === this.x);
    if (this.answers.length < AbxGame.ROUNDS) return this._ask();
    this.player.pause();
    const correct = this.answers.filter(Boolean).length;
    const chance = AbxGame.chance(correct, AbxGame.ROUNDS);
    const verdict = chance < 0.05 ? "You hear the difference." : "That could be guessing.";
    const percent = chance < 0.01 ? "less than 1 %" : `${Math.round(100 * chance)} %`;
    this.sounds = [];
    this.element.replaceChildren(
      make("h2", "", verdict),
      make("p", "abx-score", `${correct} of ${AbxGame.ROUNDS} right`),
      make("p", "quiet", `Somebody who guesses gets that far in ${percent} of all cases. The original against ${this.label}, equally loud.`),
      this._button("soft", "Close", () => this.element.close()),
    );
    this.element.querySelector("button").focus();
  }

  _end() {
    this.player.dispose();
    this.element.remove();
    this.done();
  }
}
