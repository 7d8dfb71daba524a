/* One trial: its sounds on one clock, transport, keyboard, and what has been heard. What is asked about the sounds is up to
 * the subclasses, `SliderTrial` and `ChoiceTrial`.
 */
class Trial {
  static REFERENCE = "R";

  /**
   * @param {{study: object, trial: object, loaded: object, context: AudioContext, keep: object, count: string}} parts
   *   `keep` has rating(slot, score), choice(answer), event(event) and submit(body); `loaded` comes from Sounds
   */
  constructor({ study, trial, loaded, context, keep, saved }) {
    Object.assign(this, { study, trial, keep });
    this.order = [...(trial.has_reference ? [Trial.REFERENCE] : []), ...trial.slots];
    this.player = new SyncPlayer(context);
    this.player.load(Trial.equallyLong(this.order.map((slot) => loaded.wavs.get(slot))));
    this.log = new ListeningLog(this.player, (event) => this._onEvent(event));
    const shown = trial.has_reference ? loaded.wavs.get(Trial.REFERENCE) : null; // the others would give themselves away
    this.timeline = new Timeline(this.player, shown);
    this.element = make("section", `trial ${study.method}`);
    this.element.setAttribute("aria-label", "Trial");
    this.buttons = new Map();
    this._build(saved ?? {});
    this._onKeyDown = (event) => this._onKey(event);
    document.addEventListener("keydown", this._onKeyDown);
    this.player.onchange = () => this.update();
    this.timer = setInterval(() => this.update(), 200); // the seconds heard
    this.update();
  }

  /** Coded versions may differ by a few samples at the end; the engine wants one length. */
  static equallyLong(wavs) {
    const length = Math.min(...wavs.map((wav) => wav.length));
    return wavs.map((wav) => wav.subarray(0, length));
  }

  get slot() {
    return this.order[this.player.active];
  }

  dispose() {
    clearInterval(this.timer);
    document.removeEventListener("keydown", this._onKeyDown);
    if (this.player.isPlaying) this.player.pause();
    this.log.dispose();
    this.timeline.dispose();
    const { player } = this;
    setTimeout(() => player.dispose(), 100); // after its fade
  }

  /** Hears `slot`, from where the others are. */
  hear(slot) {
    this.player.select(this.order.indexOf(slot));
    if (!this.player.isPlaying) this.player.play();
  }

  toggle() {
    if (this.player.isPlaying) this.player.pause();
    else this.player.play();
  }

  hasHeard(slot) {
    // the server counts too and a rounding must not set them apart
    return this.log.secondsOf(this.order.indexOf(slot)) >= this.study.must_listen_s + 0.05;
  }

  /** Sentences on what is left to do; empty when the trial may be closed. Subclasses add theirs. */
  missing() {
    const unheard = this.order.filter((slot) => !this.hasHeard(slot)).map((slot) => this.nameOf(slot));
    return unheard.length ? [`listen to ${listOf(unheard)}`] : [];
  }

  nameOf(slot) {
    return slot === Trial.REFERENCE ? "the reference" : slot;
  }

  submit() {
    const missing = this.missing();
    if (missing.length) {
      this.todo.classList.add("urgent");
      return;
    }
    if (this.player.isPlaying) this.player.pause();
    const listened = Object.fromEntries(this.order.map((slot, k) => [slot, round(this.log.secondsOf(k), 3)]));
    const { region, sampleRate, isLooping } = this.player;
    const loop = isLooping ? { start_s: region.start / sampleRate, end_s: region.end / sampleRate } : null;
    this.keep.submit({ comment: this.comment.value.trim(), listened_s: listened, loop });
  }

  update() {
    const { player } = this;
    if (!player.numFrames) return;
    this.playButton.replaceChildren(icon(player.isPlaying ? "pause" : "play"));
    this.playButton.setAttribute("aria-label", player.isPlaying ? "Pause" : "Play");
    for (const [slot, button] of this.buttons) {
      const isActive = slot === this.slot;
      button.setAttribute("aria-pressed", String(isActive));
      button.classList.toggle("sounding", isActive && player.isPlaying);
      button.classList.toggle("heard", this.hasHeard(slot));
    }
    this.loopButton.hidden = !player.isLooping;
    const [start, end] = [player.region.start / player.sampleRate, player.region.end / player.sampleRate];
    this.loopButton.textContent = `Loop ${start.toFixed(1)}–${end.toFixed(1)} s ✕`;
    this.time.textContent = `${clock(player.position)} / ${clock(player.duration)}`;
    this.timeline.update();
    const missing = this.missing();
    this.next.setAttribute("aria-disabled", String(missing.length > 0));
    const text = missing.length ? `Still to do: ${missing.join("; ")}.` : "All done. You can go on.";
    if (this.todo.textContent !== text) this.todo.textContent = text;
    if (!missing.length) this.todo.classList.remove("urgent");
  }

  _build(saved) {
    const transport = make("div", "transport");
    this.playButton = makeButton("play", "", () => this.toggle());
    this.time = make("p", "time");
    this.loopButton = makeButton("chip", "", () => this.player.setLoop());
    this.loopButton.title = "Leave the loop";
    transport.append(this.playButton, this.timeline.element, block("div", "beside", this.time, this.loopButton));
    this.comment = make("textarea");
    this.comment.maxLength = 4000;
    this.comment.rows = 2;
    this.comment.value = saved.comment ?? "";
    const remarks = block("details", "remarks", make("summary", "", "Add a comment"), this.comment);
    this.comment.setAttribute("aria-label", "Comment on this page");
    this.todo = make("p", "todo");
    this.todo.setAttribute("aria-live", "polite");
    this.next = makeButton("primary next", "Next", () => this.submit());
    // A page that checks attention looks like the others, but for what it asks.
    const { instruction } = this.trial;
    const question = block("div", "question", ...paragraphs(instruction ?? this.study.question));
    question.classList.toggle("instructed", Boolean(instruction));
    if (this.trial.kind === "training") question.prepend(make("span", "badge", "Training: not counted"));
    this.board = this.buildBoard(saved);
    this.element.append(
      question,
      transport,
      this.board,
      block("div", "closing", remarks, block("div", "go", this.todo, this.next)),
      this._help(),
    );
  }

  _help() {
    const details = make("details", "keys");
    const list = make("dl");
    for (const [keys, meaning] of [...this.ownKeys(), ...Trial.KEYS]) {
      list.append(block("dt", "", ...keys.map((key) => make("kbd", "", key))), make("dd", "", meaning));
    }
    details.append(make("summary", "", "Keyboard"), list);
    return details;
  }

  static KEYS = [
    [["space"], "play, pause"],
    [["←", "→"], "one second back, on"],
    [["[", "]"], "begin, end a loop here"],
    [["esc"], "leave the loop"],
  ];

  _soundButton(slot, className = "sound") {
    const button = makeButton(className, "", () => this.hear(slot));
    button.append(make("strong", "", slot === Trial.REFERENCE ? "Reference" : slot), icon("check"));
    button.dataset.slot = slot;
    this.buttons.set(slot, button);
    return button;
  }

  _onEvent({ kind, version, position, time, body }) {
    this.keep.event({
      ...body,
      id: randomId(),
      trial: this.trial.trial,
      kind,
      slot: this.order[version],
      pos_s: round(position, 4),
      ctx_time: round(time, 4),
      wall: Date.now(),
    });
  }

  _onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("textarea, dialog")) return;
    const action = this._actions(event)[event.key.length === 1 ? event.key.toUpperCase() : event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  _actions(event) {
    const { player } = this;
    const { target, shiftKey } = event;
    const [start, end] = [player.region.start / player.sampleRate, player.region.end / player.sampleRate];
    const step = shiftKey ? 0.1 : 1;
    const actions = {
      "[": () => player.setLoop(player.position, end),
      "]": () => player.setLoop(start, player.position),
      Escape: () => player.setLoop(),
      ArrowLeft: () => player.seek(player.position - step),
      ArrowRight: () => player.seek(player.position + step),
    };
    this.order.forEach((slot) => (actions[slot] = () => this.hear(slot)));
    // Where space presses something else it keeps that meaning.
    if (!target.closest?.("button:not(.sound), summary, input[type=radio]")) actions[" "] = () => this.toggle();
    return { ...actions, ...this.ownActions(event) };
  }
}

function round(value, digits) {
  return Number(value.toFixed(digits));
}

/** "A, B and C" */
function listOf(words) {
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words.at(-1)}` : words[0];
}
