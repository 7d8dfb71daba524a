/* One answer a trial: ABX ("which is X?"), AB ("which do you prefer?"), ACR ("how good?"). */
class ChoiceTrial extends Trial {
  buildBoard(saved) {
    this.answer = saved.choice?.answer ?? null;
    const sounds = make("div", "sounds");
    for (const slot of this.order) sounds.append(this._soundButton(slot, slot === "R" ? "sound reference" : "sound"));
    const answers = make("div", "answers");
    answers.setAttribute("role", "radiogroup");
    answers.setAttribute("aria-label", this.study.question);
    this.answers = this._options().map(([answer, text], k) => {
      const button = makeButton("answer", "", () => this._choose(answer));
      button.setAttribute("role", "radio");
      button.dataset.answer = answer;
      button.append(make("kbd", "", String(k + 1)), make("span", "", text));
      return button;
    });
    answers.append(...this.answers);
    this._mark();
    return block("div", "board", sounds, answers);
  }

  missing() {
    return [...super.missing(), ...(this.answer === null ? ["choose an answer"] : [])];
  }

  ownKeys() {
    return [[this.order, "hear a sound"], [this._options().map((_, k) => String(k + 1)), "choose an answer"]];
  }

  ownActions() {
    return Object.fromEntries(this._options().map(([answer], k) => [String(k + 1), () => this._choose(answer)]));
  }

  _options() {
    if (this.study.method === "abx") return ["A", "B"].map((slot) => [slot, `X is ${slot}`]);
    if (this.study.method === "acr") return this.study.scale.map((label, k) => [String(5 - k), label]);
    const options = ["A", "B"].map((slot) => [slot, `${slot} is better`]);
    return this.study.allows_no_preference ? [...options, ["none", "No preference"]] : options;
  }

  _choose(answer) {
    if (this.answer === answer) return;
    this.answer = answer;
    this._mark();
    this.keep.choice(answer);
    this.update();
  }

  _mark() {
    for (const button of this.answers) {
      const isChosen = button.dataset.answer === this.answer;
      button.setAttribute("aria-checked", String(isChosen));
    }
  }
}
