/* One study for the admin: state, link, listeners, results, files. */
class StudyView {
  /** @param {Admin} admin  @param {string} id */
  constructor(admin, id) {
    this.admin = admin;
    this.id = id;
    this.path = `/api/admin/studies/${id}`;
    this.element = make("section", "study");
    this.head = make("div", "head");
    this.people = make("div", "people");
    this.results = make("div");
    this.element.append(this.head, this._section("Listeners", this.people), this._section("Results", this.results), this._downloads());
  }

  /** One at a time: statistics take longer than the time between two looks. */
  async update() {
    if (this.isUpdating) return;
    this.isUpdating = true;
    try {
      await this._update();
    } finally {
      this.isUpdating = false;
    }
  }

  async _update() {
    const details = await this.admin.get(this.path);
    this.details = details;
    this._showHead();
    this._showPeople();
    const stamp = JSON.stringify(details.listeners.map(({ num_submitted, finished, cause }) => [num_submitted, finished, cause]));
    if (stamp === this.stamp) return;
    this.stamp = stamp;
    this.results.replaceChildren(resultsView(await this.admin.get(`${this.path}/results`), details.public));
  }

  _section(title, content) {
    return block("section", "panel", make("h2", "", title), content);
  }

  _showHead() {
    const { study, row, job, departures } = this.details;
    const isReady = row.num_stimuli > 0;
    const buttons = [];
    if (row.status === "open") buttons.push(makeButton("soft", "Close", () => this._setStatus("closed")));
    else {
      const open = makeButton("primary", row.status === "draft" ? "Open" : "Open again", () => this._setStatus("open"));
      open.disabled = !isReady;
      buttons.push(open);
    }
    const preview = makeButton("soft", "Preview", () => this._preview());
    preview.disabled = !isReady;
    buttons.push(preview);
    buttons.push(makeButton("soft", "Simulate 24 listeners", () => this._simulate()));
    buttons.at(-1).disabled = !isReady;
    if (row.status !== "open") buttons.push(makeButton("quiet-button", "Delete", () => this._delete()));
    const facts = `${row.method} · ${study.items.length} items · ${study.systems.length} systems · ${row.num_stimuli} sounds`;
    this.head.replaceChildren(
      block("div", "titles", make("h1", "", study.title), make("p", "quiet", facts)),
      make("span", `status ${row.status}`, row.status),
      block("div", "buttons", ...buttons),
    );
    if (job && job.state !== "done") this.head.append(this._job(job));
    else if (!isReady) this.head.append(block("p", "job", "The sounds are not rendered. ", makeButton("chip", "Render", () => this._render())));
    if (row.status === "open") {
      const link = make("a", "", `${location.origin}/t/${this.id}`);
      link.href = `/t/${this.id}`;
      const copy = makeButton("chip", "Copy", async () => {
        await navigator.clipboard?.writeText(link.textContent);
        copy.textContent = "Copied";
      });
      this.head.append(block("p", "link", "Send this link to listeners: ", link, " ", navigator.clipboard ? copy : null));
    }
    if (departures.length) this.head.append(block("p", "quiet job", `Departs from BS.1534-3: ${departures.join("; ")}.`));
  }

  _job(job) {
    if (job.state === "failed") {
      return block("p", "job error", `Rendering failed: ${job.what} `, makeButton("chip", "Try again", () => this._render()));
    }
    const bar = block("div", "progress", make("i"));
    bar.firstElementChild.style.width = `${100 * job.fraction}%`;
    return block("div", "job", make("p", "quiet", job.state === "waiting" ? "Waiting to render" : `Rendering ${job.what}`), bar);
  }

  _showPeople() {
    const { listeners } = this.details;
    if (!listeners.length) return this.people.replaceChildren(make("p", "quiet", "Nobody has joined yet."));
    const isAnySimulated = listeners.some((entry) => entry.is_simulated);
    const rows = listeners.map((entry) => [
      block("span", "", entry.listener, entry.is_simulated ? make("span", "badge", "SIMULATED") : null),
      this._bar(entry),
      entry.finished ? "finished" : entry.stage,
      entry.last_seen.slice(0, 16).replace("T", " "),
      entry.num_underruns + entry.num_blurs ? `${entry.num_underruns} gaps, left ${entry.num_blurs}×` : "none",
      this._actions(entry),
    ]);
    const done = listeners.filter((entry) => entry.finished && !entry.is_simulated).length;
    const real = listeners.filter((entry) => !entry.is_simulated).length;
    const counts = `${done} of ${real} finished${isAnySimulated ? `, and ${listeners.length - real} SIMULATED` : ""}`;
    this.people.replaceChildren(
      make("p", "quiet", counts),
      block("div", "scroll", table(["Listener", "Progress", "At", "Last seen (UTC)", "Trouble", ""], rows)),
    );
  }

  _bar(entry) {
    const bar = block("div", "progress small", make("i"));
    bar.firstElementChild.style.width = `${(100 * entry.num_submitted) / Math.max(1, entry.num_trials)}%`;
    return block("div", "with-bar", bar, `${entry.num_submitted}/${entry.num_trials}`);
  }

  _actions(entry) {
    const exclude = makeButton("chip", entry.cause ? "Take back in" : "Leave out", async () => {
      let cause = "";
      if (!entry.cause) {
        cause = await this.admin.ask(`Leave ${entry.listener} out of the statistics?`, "The cause is recorded with the results.", "Cause");
        if (!cause) return;
      }
      await this.admin.post(`${this.path}/listeners/${entry.listener}/exclude`, { cause });
      this.update();
    });
    exclude.title = entry.cause;
    const erase = makeButton("chip", "Delete data", async () => {
      const text = "Answers, ratings and events are erased from the file and cannot be brought back. Backups keep them.";
      if (!(await this.admin.ask(`Delete everything of ${entry.listener}?`, text))) return;
      await this.admin.remove(`${this.path}/listeners/${entry.listener}`);
      this.update();
    });
    return block("div", "row-actions", exclude, erase);
  }

  _downloads() {
    const list = make("div", "downloads");
    for (const what of ["answers", "listeners", "events"]) {
      const chips = ["csv", "json", "parquet"].map((suffix) => this._download(`${what}.${suffix}`, suffix.toUpperCase()));
      list.append(block("p", "", make("span", "", what[0].toUpperCase() + what.slice(1)), ...chips));
    }
    list.append(block("p", "", make("span", "", "Others"), this._download("webmushra.csv", "webMUSHRA CSV"), this._download("study.json", "Study")));
    return this._section("Files", list);
  }

  _download(name, label) {
    return makeButton("chip", label, () => this.admin.download(`${this.path}/export/${name}`, `${this.id}-${name}`));
  }

  async _setStatus(status) {
    await this.admin.post(`${this.path}/status`, { status });
    this.update();
  }

  async _render() {
    await this.admin.post(`${this.path}/render`, {});
    this.update();
  }

  async _preview() {
    const tab = window.open("about:blank", "_blank"); // now, while the browser knows that it was asked for
    const { address } = await this.admin.post(`${this.path}/preview`, {});
    if (tab) tab.location.href = address;
    else location.href = address;
  }

  async _simulate() {
    this.admin.say("Simulating …");
    await this.admin.post(`${this.path}/simulate`, { count: 24 });
    this.admin.say("");
    this.update();
  }

  async _delete() {
    if (!(await this.admin.ask(`Delete the study ${this.id}?`, "With all its answers. This cannot be undone."))) return;
    await this.admin.remove(this.path);
    location.hash = "";
  }
}
