/* What a listener did and what the machine failed to do, while one SyncPlayer plays: the events of the player, blur, sleep,
 * gaps in the sound, and how long each version was heard. Everything works on a plain http page.
 */
class ListeningLog {
  static CHECK_MS = 250;
  // Between two checks the audio clock may lag behind the wall by its block and the timers' jitter, but not by this much.
  static GAP_SECONDS = 0.06;

  /**
   * @param {SyncPlayer} player
   * @param {(event: {kind: string, version: number, position: number, time: number, body: object}) => void} tell
   */
  constructor(player, tell) {
    this.player = player;
    this.tell = tell;
    this.heard = player.versions.map(() => 0); // seconds, up to the last event
    this._since = null; // context time from which the active version is heard
    player.onevent = (event) => this._onEvent(event);
    this._onBlur = () => player.isPlaying && this._log("blur");
    this._onVisibility = () => document.hidden && this._onBlur();
    this._onState = () => this._log("resume", { state: player.context.state }); // also asleep: "suspended", "interrupted"
    window.addEventListener("blur", this._onBlur);
    document.addEventListener("visibilitychange", this._onVisibility);
    player.context.addEventListener("statechange", this._onState);
    this._clocks = null;
    this._timer = setInterval(() => this._check(), ListeningLog.CHECK_MS);
  }

  /** Seconds for which `version` has sounded. */
  secondsOf(version) {
    const isNow = this._since !== null && version === this._version;
    return this.heard[version] + (isNow ? Math.max(0, this.player.context.currentTime - this._since) : 0);
  }

  dispose() {
    clearInterval(this._timer);
    window.removeEventListener("blur", this._onBlur);
    document.removeEventListener("visibilitychange", this._onVisibility);
    this.player.context.removeEventListener("statechange", this._onState);
    this.player.onevent = () => {};
  }

  _onEvent({ kind, version, frame, position }) {
    const time = frame / this.player.sampleRate;
    if (this._since !== null) {
      this.heard[this._version] += Math.max(0, time - this._since);
      this._since = null;
    }
    if (this.player.isPlaying) [this._since, this._version] = [time, version];
    const { region, sampleRate, isLooping } = this.player;
    const body = kind === "loop" && isLooping ? { start: region.start / sampleRate, end: region.end / sampleRate } : {};
    this.tell({ kind: kind === "pause" ? "stop" : kind, version, position, time, body });
  }

  _log(kind, body = {}) {
    const { active, position, context } = this.player;
    this.tell({ kind, version: active, position, time: context.currentTime, body });
  }

  /** The audio clock stands still where the device was not fed; timers that come late do not disturb the comparison. */
  _check() {
    const { context, isPlaying } = this.player;
    if (!isPlaying || context.state !== "running") {
      this._clocks = null;
      return;
    }
    const now = { wall: performance.now() / 1000, audio: context.currentTime };
    if (this._clocks) {
      const lag = now.wall - this._clocks.wall - (now.audio - this._clocks.audio);
      if (lag > ListeningLog.GAP_SECONDS) this._log("underrun", { seconds: lag });
    }
    this._clocks = now;
  }
}
