/* Everything that has to reach the server waits here, in localStorage, until the server has said that it is stored. A page
 * that is closed, a browser that crashes or a server that is away for an hour loses nothing.
 */
class Outbox {
  static WAITS_SECONDS = [0.5, 1, 2, 4, 8, 15];
  static BATCH = 50;
  static BATCH_BYTES = 150_000; // the server takes 256 kB
  static MAX_EVENTS = 200; // in one entry

  /**
   * @param {string} name  of the list in localStorage
   * @param {(entries: object[], isLeaving: boolean) => Promise<object[]>} send  gives {id, status, reason} of every entry
   */
  constructor(name, send) {
    this.name = name;
    this.send = send;
    this.onstate = () => {};
    this.onrefused = () => {};
    this.onlost = () => {};
    this.isStopped = false;
    this.isPersistent = true;
    this.queue = this._read();
    this._failures = 0;
    this._batch = Outbox.BATCH;
    this._inFlight = new Set();
    this._timer = null;
    this._waiters = [];
    addEventListener("online", () => this._soon(0, true));
    addEventListener("pagehide", () => this._leave());
    addEventListener("beforeunload", (event) => this.queue.length && !this.isStopped && event.preventDefault());
  }

  /** Keeps `entry`; an older one with the same `key` that is not on its way is dropped, since this one says more. */
  push(entry, key = null) {
    if (this.isStopped) return;
    if (key) this.queue = this.queue.filter((old) => old.key !== key || this._inFlight.has(old.id));
    this.queue.push({ id: randomId(), key, entry });
    this._write();
    this._soon(120);
  }

  /** Events of the player, several in one entry. */
  pushEvents(events) {
    const last = this.queue.at(-1);
    if (last?.entry.kind === "events" && !this._inFlight.has(last.id) && last.entry.events.length < Outbox.MAX_EVENTS) {
      last.entry.events.push(...events);
      this._write();
      this._soon(2000);
    } else {
      this.push({ kind: "events", events });
    }
  }

  /** Waits until all is stored, or `seconds` have passed; tells whether it is. */
  drained(seconds) {
    this._soon(0, true);
    if (!this.queue.length) return Promise.resolve(true);
    return new Promise((resolve) => {
      const timer = setTimeout(() => resolve(false), 1000 * seconds);
      this._waiters.push(() => {
        clearTimeout(timer);
        resolve(true);
      });
    });
  }

  /** Nothing is sent or kept any more: another tab has taken over, or the session is gone. */
  stop() {
    this.isStopped = true;
    clearTimeout(this._timer);
  }

  /** Forgets what waits. */
  clear() {
    this.queue = [];
    this._write();
  }

  _read() {
    try {
      const list = JSON.parse(localStorage.getItem(this.name) ?? "[]");
      return Array.isArray(list) ? list : [];
    } catch {
      this.isPersistent = false; // no storage, as in some private windows: the page itself keeps the list
      return [];
    }
  }

  _write() {
    try {
      if (this.queue.length) localStorage.setItem(this.name, JSON.stringify(this.queue));
      else localStorage.removeItem(this.name);
    } catch {
      this.isPersistent = false;
    }
    this._tell();
    if (!this.queue.length) this._waiters.splice(0).forEach((resolve) => resolve());
  }

  _tell(waitSeconds = null) {
    // What the player logs goes every two seconds; that it is on its way need not worry anybody.
    const hasAnswers = this.queue.some(({ entry }) => entry.kind !== "events");
    const state = this._failures && this.queue.length ? "waiting" : hasAnswers ? "saving" : "saved";
    this.onstate({ state, count: this.queue.length, waitSeconds, isPersistent: this.isPersistent });
  }

  /** Sends in `ms`, or sooner where that is planned; while the server is away only its own waits count, unless `isForced`. */
  _soon(ms, isForced = false) {
    const due = performance.now() + ms;
    if (this.isStopped) return;
    if (this._timer !== null && !isForced && (this._failures || this._due <= due)) return;
    clearTimeout(this._timer);
    this._due = due;
    this._timer = setTimeout(() => {
      this._timer = null;
      this._flush();
    }, ms);
  }

  _take() {
    const batch = [];
    let size = 0;
    for (const waiting of this.queue.slice(0, this._batch)) {
      size += JSON.stringify(waiting.entry).length;
      if (batch.length && size > Outbox.BATCH_BYTES) break;
      batch.push(waiting);
    }
    return batch;
  }

  async _flush() {
    if (this.isStopped || this._inFlight.size || !this.queue.length) return;
    const batch = this._take();
    this._inFlight = new Set(batch.map(({ id }) => id));
    const refused = [];
    try {
      const results = await this.send(batch.map(({ id, entry }) => ({ id, ...entry })), false);
      const answered = new Map(results.map((result) => [result.id, result]));
      for (const waiting of batch) {
        const result = answered.get(waiting.id);
        if (result?.status === "refused") refused.push([waiting.entry, result.reason]);
      }
      this._failures = 0;
      this._batch = Outbox.BATCH;
      this.queue = this.queue.filter(({ id }) => !answered.has(id));
    } catch (error) {
      if (error.status === 404) {
        this.stop();
        this.onlost();
        return;
      }
      const isOurFault = [400, 413, 415, 422].includes(error.status);
      if (isOurFault && batch.length === 1) {
        refused.push([batch[0].entry, error.message]); // it can never be stored and must not hold up the others
        this.queue = this.queue.filter(({ id }) => id !== batch[0].id);
      } else if (isOurFault) {
        this._batch = Math.ceil(batch.length / 2);
      } else {
        this._failures += 1;
        const wait = Outbox.WAITS_SECONDS[Math.min(this._failures, Outbox.WAITS_SECONDS.length) - 1];
        this._waitSeconds = Math.max(wait, error.retryAfterSeconds || 0);
      }
    } finally {
      this._inFlight = new Set();
    }
    if (this.isStopped) return;
    this._write();
    refused.forEach(([entry, reason]) => this.onrefused(entry, reason));
    if (this._failures) {
      this._tell(this._waitSeconds);
      this._soon(1000 * this._waitSeconds, true);
    } else if (this.queue.length) {
      this._soon(0);
    }
  }

  /** A last attempt while the page goes away; what does not get through is sent when it comes back. */
  _leave() {
    if (this.isStopped || !this.queue.length) return;
    this.send(this._take().map(({ id, entry }) => ({ id, ...entry })), true).catch(() => {});
  }
}
