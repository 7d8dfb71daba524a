/* The way of one listener through a study. The server knows where the listener is; this page shows it and keeps what happens
 * in the outbox, so that it can run ahead of a server that is away.
 */
class Participant {
  /** @param {string} studyId */
  constructor(studyId) {
    this.studyId = studyId;
    this.memory = new Memory(studyId);
    this.main = document.getElementById("main");
    this.progress = document.getElementById("progress");
    this.saved = document.getElementById("saved");
    this.where = document.getElementById("where");
  }

  async start() {
    this._takeTokenFromAddress();
    try {
      if (this.memory.token) await this._resume();
      else await this._welcome();
    } catch (error) {
      if (error instanceof HttpError && error.status === 404 && this.memory.token) return this._forget();
      const isGone = error instanceof HttpError && (error.status === 404 || error.status === 410);
      if (isGone) return this._show(Pages.message(error.status === 410 ? "This test is closed" : "No test here", error.message));
      console.error(error);
      this._show(Pages.message("The server cannot be reached", "What you did is kept in this browser. This page tries again by itself."));
      setTimeout(() => location.reload(), 5000);
    }
  }

  // Where the listener is

  async _welcome() {
    const answer = await request("GET", `/api/t/${this.studyId}`);
    this.study = await answer.json();
    this._title();
    this._show(
      Pages.welcome(this.study, async () => {
        const joined = await (await request("POST", `/api/t/${this.studyId}/join`, { json: {} })).json();
        this.memory.begin(joined.token);
        this.session = joined.session;
        this._openOutbox();
        if (this.study.consent) this.outbox.push({ kind: "consent" });
        this._go(this._after("consent"));
      }),
    );
  }

  /** What the outbox still has goes first, so that the server's answer holds it. */
  async _resume() {
    this._openOutbox();
    await this.outbox.drained(10);
    if (this.outbox.isStopped) return;
    // One after the other: without a session nothing is to be said about the study.
    const ask = async (path) => (await request("GET", path, { token: this.memory.token })).json();
    const session = (this.session = await ask("/api/session"));
    const study = (this.study = await ask(`/api/t/${this.studyId}`));
    const revisions = [...Object.values(session.ratings).flatMap(Object.values), ...Object.values(session.choices)];
    this.memory.knowRevisions(revisions.map(({ rev }) => rev));
    this._title();
    const { stage } = session;
    if (stage === "consent") return this._show(Pages.welcome(study, async () => this._agree()));
    if (stage === "trials" && (session.current_trial > 0 || this.memory.hasBegun)) return this._go("trials");
    this._go(stage === "trials" ? "instructions" : stage);
  }

  _agree() {
    this.outbox.push({ kind: "consent" });
    this._go(this._after("consent"));
  }

  /** The page that follows, as far as this study has it. */
  _after(stage) {
    const { questionnaire, prescreen } = this.study;
    const stages = ["consent", "questionnaire", "prescreen", "instructions", "trials"];
    const exists = { questionnaire: questionnaire.length > 0, prescreen: prescreen.length > 0 };
    return stages.slice(stages.indexOf(stage) + 1).find((name) => exists[name] ?? true);
  }

  async _go(stage) {
    if (stage === "questionnaire") {
      return this._show(
        Pages.questionnaire(this.study, (answers) => {
          this.outbox.push({ kind: "questionnaire", answers });
          this._go(this._after("questionnaire"));
        }),
      );
    }
    if (stage === "prescreen") return this._prescreen([...this.study.prescreen], {});
    if (stage === "instructions") {
      const begin = () => {
        this.memory.startTrials();
        this._go("trials");
      };
      if (this.session.plan.length) this._sounds.of(0, this._slotsOf(0)).catch(() => {});
      return this._show(Pages.instructions(this.study, this.session.plan, begin));
    }
    if (stage === "trials") return this._trial(this.session.current_trial);
    if (stage === "finish") return this._show(Pages.finish((comment, say) => this._finish(comment, say)));
    this._thanks();
  }

  _prescreen(left, results) {
    const step = left.shift();
    if (!step) {
      this.outbox.push({ kind: "prescreen", results });
      return this._go(this._after("prescreen"));
    }
    if (step === "level") {
      const done = () => this._prescreen(left, { ...results, level: { set: true } });
      return this._show(Pages.level(() => this._levelPlayer(), done));
    }
    const check = new HeadphoneCheck((outcome) => {
      check.dispose();
      this._prescreen(left, { ...results, headphones: outcome });
    });
    this._show(check.element);
  }

  async _levelPlayer() {
    const trial = this.session.plan[0];
    const loaded = await this._sounds.of(0, this._slotsOf(0));
    const player = new SyncPlayer(this._contextAt(loaded.sampleRate));
    player.load([loaded.wavs.get(trial.has_reference ? Trial.REFERENCE : trial.slots[0])]);
    return player;
  }

  // Trials

  _slotsOf(index) {
    const trial = this.session.plan[index];
    return [...(trial.has_reference ? [Trial.REFERENCE] : []), ...trial.slots];
  }

  async _trial(index) {
    const { plan } = this.session;
    if (index >= plan.length) return this._go("finish");
    const trial = plan[index];
    this._place(trial);
    this._show(Pages.message("One moment", "The sounds of the next page are on their way."));
    this._sounds.onwait = (seconds) => {
      this._show(Pages.message("The server cannot be reached", `Your answers are kept in this browser. Trying again in ${seconds} s.`));
    };
    let loaded;
    try {
      loaded = await this._sounds.of(index, this._slotsOf(index));
    } catch (error) {
      if (error.status === 409) return this._await(index); // an answer that waits in the outbox has to be there first
      if (error.status === 404) return this._forget();
      return this._show(Pages.message("The sounds cannot be played", error.message));
    }
    if (this.outbox.isStopped) return;
    this._sounds.keepFrom(index);
    const context = this._contextAt(loaded.sampleRate);
    this.outbox.push({ kind: "start", trial: index });
    const keep = {
      rating: (slot, score) => this._keepRating(index, slot, score),
      choice: (answer) => this.outbox.push({ kind: "choice", trial: index, answer, rev: this.memory.nextRev() }, `choice ${index}`),
      event: (event) => this.outbox.pushEvents([event]),
      submit: (body) => this._submit(index, body),
    };
    const saved = {
      ratings: this.session.ratings[index],
      choice: this.session.choices[index],
      comment: this.session.comments[index],
    };
    const Kind = this.study.method === "mushra" ? SliderTrial : ChoiceTrial;
    this.current = new Kind({ study: this.study, trial, loaded, context, keep, saved });
    this._show(this.current.element, this.current);
    // Ahead of time, so that the next page comes even if the server is away; it sends no sounds beyond the next trial.
    const next = index + 1;
    if (next < plan.length && (await this.outbox.drained(3600))) this._sounds.of(next, this._slotsOf(next)).catch(() => {});
  }

  async _await(index) {
    this._show(Pages.message("One moment", "The server has to store your last answers before it sends the next sounds."));
    await this.outbox.drained(3600);
    this._trial(index);
  }

  _keepRating(trial, slot, score) {
    const rev = this.memory.nextRev();
    (this.session.ratings[trial] ??= {})[slot] = { score, rev, touched: true };
    this.outbox.push({ kind: "rating", trial, slot, score, rev, touched: true }, `rating ${trial} ${slot}`);
  }

  _submit(index, body) {
    this.outbox.push({ kind: "submit", trial: index, ...body });
    this.session.current_trial = index + 1;
    this._trial(index + 1);
  }

  async _finish(comment, say) {
    this.outbox.push({ kind: "finish", comment });
    while (!(await this.outbox.drained(5))) {
      if (this.outbox.isStopped) return;
      say("The server cannot be reached yet. Please leave this page open: your answers are sent as soon as it is back.");
    }
    const session = await (await request("GET", "/api/session", { token: this.memory.token })).json();
    if (session.stage === "finished") this._thanks();
    else location.reload();
  }

  _thanks() {
    this._where("");
    this.progress.hidden = true;
    this._show(Pages.message("Done", ...this.study.thanks.split(/\n\s*\n/), "Everything is saved. You can close this page."));
  }

  /** One audio context for all pages, unless the rate of the sounds changes. */
  _contextAt(sampleRate) {
    if (this.context?.sampleRate !== sampleRate) {
      this.context?.close();
      this.context = new AudioContext({ sampleRate });
      const { baseLatency = 0, outputLatency = 0 } = this.context;
      const device = { kind: "device", sample_rate_hz: sampleRate, base_latency_s: baseLatency, output_latency_s: outputLatency };
      this.outbox.push(device, "device");
    }
    return this.context;
  }

  // What is kept, in the browser and on the server

  _takeTokenFromAddress() {
    const token = location.hash.slice(1);
    if (!/^[\w-]{20,100}$/.test(token)) return;
    history.replaceState(null, "", location.pathname); // out of the address, so that nobody shares it by accident
    this.memory.begin(token);
  }

  _openOutbox() {
    this._sounds = new Sounds(this.memory.token);
    const { token } = this.memory;
    this.outbox = new Outbox(this.memory.outboxName, async (entries, isLeaving) => {
      const response = await request("POST", "/api/session/sync", { token, json: { entries }, keepalive: isLeaving });
      return (await response.json()).results;
    });
    this.outbox.onstate = (state) => this._tellSaved(state);
    this.outbox.onlost = () => this._forget();
    this.outbox.onrefused = (entry, reason) => this._onRefused(entry, reason);
    this._tellSaved({ state: "saved" });
    this._watchTabs();
  }

  _tellSaved({ state, waitSeconds, isPersistent = true }) {
    const waiting = waitSeconds ? `Not saved yet: no connection, trying again in ${waitSeconds} s` : "Not saved yet: no connection";
    const text = { saved: "Saved", saving: "Saving …", waiting }[state];
    this.saved.textContent = isPersistent || state === "saved" ? text : `${text}. Keep this page open`;
    this.saved.className = `saved ${state}`;
  }

  /** The page and the server disagree, as after a second tab went on: the server's word counts. */
  async _onRefused(entry, reason) {
    console.warn("refused", entry.kind, reason);
    if (entry.kind === "events" || entry.kind === "device" || entry.kind === "start") return;
    if (this.isReloading) return;
    this.isReloading = true;
    const notice = make("p", "notice", `The server did not take the last step (${reason}). This page goes back to where the server is.`);
    notice.setAttribute("role", "alert");
    this.main.prepend(notice);
    setTimeout(() => location.reload(), 2500);
  }

  /** The newest tab goes on; older ones stop, so that two hands cannot move one slider. */
  _watchTabs() {
    if (this.isWatching) return;
    this.isWatching = true;
    this.memory.claimTab(() => {
      this.outbox.stop();
      this._show(
        block(
          "section",
          "card",
          make("h1", "", "This test goes on in another tab"),
          make("p", "", "Nothing is lost. Close this tab, or go on here instead."),
          block("div", "go", makeButton("primary", "Go on here", () => location.reload())),
        ),
      );
    });
  }

  _forget() {
    this.outbox?.stop();
    this.outbox?.clear();
    this.memory.forget();
    this._show(
      block(
        "section",
        "card",
        make("h1", "", "This session does not exist any more"),
        make("p", "", "It was deleted, or the link was not complete."),
        block("div", "go", makeButton("primary", "Start anew", () => location.reload())),
      ),
    );
  }

  // What is shown

  _title() {
    document.title = this.study.title;
    this._where(this.study.title);
  }

  _where(text) {
    const parts = [text];
    if (this.session?.is_preview) parts.unshift("PREVIEW");
    if (this.session?.is_simulated) parts.unshift("SIMULATED");
    this.where.textContent = parts.filter(Boolean).join(" · ");
  }

  _place(trial) {
    const { plan } = this.session;
    const same = plan.filter(({ kind }) => kind === trial.kind);
    const name = trial.kind === "training" ? "Training" : "Page";
    this._where(`${name} ${same.indexOf(trial) + 1} of ${same.length}`);
    this.progress.hidden = false;
    this.progress.firstElementChild.style.width = `${(100 * trial.trial) / plan.length}%`;
    this.progress.setAttribute("aria-valuenow", String(Math.round((100 * trial.trial) / plan.length)));
  }

  _show(element, trial = null) {
    if (this.shown) this.shown.dispose();
    this.shown = trial;
    this.main.replaceChildren(element);
    window.scrollTo(0, 0);
    this.main.focus({ preventScroll: true });
  }
}

new Participant(decodeURIComponent(location.pathname.split("/")[2])).start();
