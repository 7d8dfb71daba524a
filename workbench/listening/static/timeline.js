/* Time, playhead and loop of a SyncPlayer on one strip; click to seek, drag to loop. */
class Timeline {
  static DRAG_PIXELS = 6;

  /**
   * @param {SyncPlayer} player
   * @param {Float32Array|null} wav  drawn as a waveform; null for a plain strip, where a picture could give a sound away
   */
  constructor(player, wav) {
    this.player = player;
    this.wav = wav;
    this.element = make("div", "timeline");
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "slider");
    this.element.setAttribute("aria-label", "Position");
    this.element.setAttribute("aria-valuemin", "0");
    this.element.setAttribute("aria-valuemax", player.duration.toFixed(2));
    this.canvas = make("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.shade = make("div", "loop-shade");
    this.head = make("div", "playhead");
    this.element.append(this.canvas, this.shade, this.head);
    this.observer = new ResizeObserver(() => this._draw());
    this.observer.observe(this.element);
    this._listen();
    this.update();
  }

  dispose() {
    this.observer.disconnect();
    this.player = null;
  }

  update() {
    const { player } = this;
    if (!player?.numFrames) return;
    const [start, end] = [player.region.start / player.sampleRate, player.region.end / player.sampleRate];
    this._shadeFrom(start, end);
    this.shade.hidden = !player.isLooping;
    this._move();
    this.element.setAttribute("aria-valuenow", player.position.toFixed(2));
    this.element.setAttribute("aria-valuetext", `${player.position.toFixed(1)} of ${player.duration.toFixed(1)} seconds`);
    if (player.isPlaying && !this.isTicking) this._tick();
  }

  /** A place outside the loop leaves the loop. */
  seek(seconds) {
    const { region, sampleRate } = this.player;
    if (seconds < region.start / sampleRate || seconds >= region.end / sampleRate) this.player.setLoop();
    this.player.seek(seconds);
  }

  _tick() {
    this.isTicking = true;
    requestAnimationFrame(() => {
      this.isTicking = false;
      if (!this.player?.isPlaying) return;
      this._move();
      this._tick();
    });
  }

  _move() {
    this.head.style.left = `${(100 * this.player.position) / this.player.duration}%`;
  }

  _shadeFrom(from, to) {
    const { duration } = this.player;
    this.shade.hidden = false;
    this.shade.style.left = `${(100 * Math.min(from, to)) / duration}%`;
    this.shade.style.width = `${(100 * Math.abs(to - from)) / duration}%`;
  }

  _listen() {
    const secondsAt = (event) => {
      const box = this.element.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * this.player.duration;
    };
    let from = null;
    this.element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = { x: event.clientX, seconds: secondsAt(event), isDrag: false };
      this.element.setPointerCapture(event.pointerId);
    });
    this.element.addEventListener("pointermove", (event) => {
      if (!from) return;
      from.isDrag ||= Math.abs(event.clientX - from.x) > Timeline.DRAG_PIXELS;
      if (from.isDrag) this._shadeFrom(from.seconds, secondsAt(event));
    });
    this.element.addEventListener("pointerup", (event) => {
      if (!from) return;
      const { seconds, isDrag } = from;
      from = null;
      if (isDrag) this.player.setLoop(seconds, secondsAt(event));
      else this.seek(seconds);
    });
    this.element.addEventListener("pointercancel", () => {
      from = null;
      this.update();
    });
  }

  _draw() {
    const { canvas, wav } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !this.player) return;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.fillStyle = getComputedStyle(this.element).getPropertyValue("--wave").trim();
    if (!wav) return context.fillRect(0, height / 2 - 1, width, 2);
    const peak = wav.reduce((top, sample) => Math.max(top, Math.abs(sample)), 0.02);
    for (let x = 0; x < width; x++) {
      let [low, high] = [0, 0];
      for (let k = Math.floor((x * wav.length) / width); k < ((x + 1) * wav.length) / width && k < wav.length; k++) {
        if (wav[k] < low) low = wav[k];
        if (wav[k] > high) high = wav[k];
      }
      const top = (0.5 - (0.46 * high) / peak) * height;
      context.fillRect(x, top, 1, Math.max(1, (0.5 - (0.46 * low) / peak) * height - top));
    }
  }
}
