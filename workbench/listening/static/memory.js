/* What the browser remembers of one study beside the outbox: the listener's token, the last revision, and which tab goes on.
 * Where there is no storage, as in some private windows, it lasts as long as the page.
 */
class Memory {
  /** @param {string} studyId */
  constructor(studyId) {
    this.key = `listening:${studyId}`;
    this.outboxName = `${this.key}:outbox`;
    this._tab = randomId();
    this._values = {};
    this._values = this._read();
  }

  get token() {
    return this._values.token;
  }

  get hasBegun() {
    return Boolean(this._values.hasBegun);
  }

  /** From now on it is about this listener. */
  begin(token) {
    this._remove(this.outboxName);
    this._write({ token, rev: 0 });
  }

  startTrials() {
    this._write({ ...this._values, hasBegun: true });
  }

  /** The server knows of these revisions, so the next one has to be higher. */
  knowRevisions(revisions) {
    this._write({ ...this._values, rev: Math.max(this._values.rev ?? 0, ...revisions) });
  }

  nextRev() {
    const rev = Math.max(this._values.rev ?? 0, this._read().rev ?? 0) + 1; // another tab may have counted on
    this._write({ ...this._values, rev });
    return rev;
  }

  /** The newest tab goes on; `ontaken` is called in this one when another does. */
  claimTab(ontaken) {
    const claim = `${this.key}:tab`;
    addEventListener("storage", ({ key, newValue }) => {
      if (key === claim && newValue !== null && newValue !== this._tab) ontaken();
    });
    this._set(claim, this._tab); // without storage the server's revisions still keep the newest value
  }

  forget() {
    for (const name of ["", ":outbox", ":tab"]) this._remove(this.key + name);
    this._values = {};
  }

  _read() {
    try {
      return JSON.parse(localStorage.getItem(this.key)) ?? {};
    } catch {
      return this._values;
    }
  }

  _write(values) {
    this._values = values;
    this._set(this.key, JSON.stringify(values));
  }

  _set(name, text) {
    try {
      localStorage.setItem(name, text);
    } catch {
      // The page goes on; the state of saving says what that means.
    }
  }

  _remove(name) {
    try {
      localStorage.removeItem(name);
    } catch {
      // There is nothing to remove where nothing can be stored.
    }
  }
}
