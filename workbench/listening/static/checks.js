/* Sounds and tasks of the checks before a test: is the listener wearing headphones?
 *
 * Two tasks that are easy with one ear at each channel and hard in a room: the Huggins pitch (Milne et al. 2020: a tone that
 * exists only between the ears) and tones of which one is in antiphase and cancels in the air (Woods et al. 2017).
 */
const HeadphoneTones = {
  INTERVAL_SECONDS: 1,
  PAUSE_SECONDS: 0.4,
  PITCH_HZ: 600,
  PITCH_BAND: 0.06, // of the centre frequency, to either side
  TONE_HZ: 200,
  QUIETER_DB: 6,

  /** [left, right] of noise; with `hasPitch` a narrow band of the right ear is turned by 180 degrees. */
  huggins(sampleRate, hasPitch, random = Math.random) {
    const length = Math.round(this.INTERVAL_SECONDS * sampleRate);
    const left = Float32Array.from({ length }, () => 0.1 * gaussian(random));
    const right = left.slice();
    if (hasPitch) {
      const edges = [1 - this.PITCH_BAND, 1 + this.PITCH_BAND].map((factor) => this.PITCH_HZ * factor);
      bandOf(left, sampleRate, ...edges).forEach((sample, k) => (right[k] -= 2 * sample));
    }
    return [left, right].map((wav) => faded(wav, sampleRate));
  },

  /** [left, right] of a tone; the quiet one is in phase and 6 dB down, of the others one is in antiphase. */
  tone(sampleRate, { isQuiet = false, isAntiphase = false }) {
    const length = Math.round(this.INTERVAL_SECONDS * sampleRate);
    const level = 0.25 * (isQuiet ? 10 ** (-this.QUIETER_DB / 20) : 1);
    const left = Float32Array.from({ length }, (_, k) => level * Math.sin((2 * Math.PI * this.TONE_HZ * k) / sampleRate));
    const right = left.map((sample) => (isAntiphase ? -sample : sample));
    return [left, right].map((wav) => faded(wav, sampleRate));
  },

  /** Three intervals, of which `target` is the one to be found. */
  round(kind, sampleRate, target, random = Math.random) {
    if (kind === "huggins") return [0, 1, 2].map((k) => this.huggins(sampleRate, k === target, random));
    const others = [0, 1, 2].filter((k) => k !== target);
    const turned = others[Math.floor(random() * others.length)];
    return [0, 1, 2].map((k) => this.tone(sampleRate, { isQuiet: k === target, isAntiphase: k === turned }));
  },
};

/** One sample of a normal distribution (Box and Muller). */
function gaussian(random) {
  return Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
}

/** What of `wav` lies between two frequencies: its Fourier components there, so that subtracting it twice turns their phase
 * by 180 degrees and changes no level, which one ear could hear. */
function bandOf(wav, sampleRate, lowHz, highHz) {
  const { length } = wav;
  const band = new Float64Array(length);
  const [first, last] = [lowHz, highHz].map((hz) => Math.round((hz / sampleRate) * length));
  for (let bin = first; bin <= last; bin++) {
    const step = (2 * Math.PI * bin) / length;
    const [cos, sin] = [Math.cos(step), Math.sin(step)];
    let [re, im, x, y] = [0, 0, 1, 0]; // (x, y) turns by one step a sample
    for (let n = 0; n < length; n++) {
      re += wav[n] * x;
      im += wav[n] * y;
      [x, y] = [x * cos - y * sin, x * sin + y * cos];
    }
    [x, y] = [1, 0];
    for (let n = 0; n < length; n++) {
      band[n] += (2 / length) * (re * x + im * y);
      [x, y] = [x * cos - y * sin, x * sin + y * cos];
    }
  }
  return band;
}

function faded(wav, sampleRate) {
  const edge = Math.round(0.05 * sampleRate);
  const curve = SyncPlayer.raisedCosine(edge);
  for (let k = 0; k < edge; k++) {
    wav[k] *= curve[k];
    wav[wav.length - 1 - k] *= curve[k];
  }
  return wav;
}

/** The page with the task: six rounds, of which five have to be right (1.8 % of guessers get that far). */
class HeadphoneCheck {
  static ROUNDS = ["huggins", "antiphase", "huggins", "antiphase", "huggins", "antiphase"];
  static ENOUGH = 5;
  static RATE = 44100;
  static TASKS = {
    huggins: "You will hear three bursts of noise. In one of them there is a faint tone. Which one?",
    antiphase: "You will hear three tones. Which one is the quietest?",
  };

  /** @param {(results: {correct: number, rounds: number, attempts: number, passed: boolean}) => void} done */
  constructor(done) {
    this.done = done;
    this.attempts = 0;
    this.context = new AudioContext({ sampleRate: HeadphoneCheck.RATE });
    this.element = make("section", "card check");
    this._begin();
  }

  dispose() {
    this.context.close();
  }

  _begin() {
    this.attempts += 1;
    this.answers = [];
    this._ask();
  }

  _ask() {
    const number = this.answers.length;
    this.kind = HeadphoneCheck.ROUNDS[number];
    this.target = Math.floor(Math.random() * 3);
    this.intervals = HeadphoneTones.round(this.kind, HeadphoneCheck.RATE, this.target);
    this.hasPlayed = false;
    this.play = makeButton("primary", "Play", () => this._play());
    this.choices = [0, 1, 2].map((k) => {
      const button = makeButton("answer big", String(k + 1), () => this._answer(k));
      button.disabled = true;
      return button;
    });
    this.element.replaceChildren(
      make("h1", "", "Headphone check"),
      make("p", "quiet", `Round ${number + 1} of ${HeadphoneCheck.ROUNDS.length}. Please put on your headphones.`),
      make("p", "task", HeadphoneCheck.TASKS[this.kind]),
      block("div", "center", this.play),
      block("div", "answers three", ...this.choices),
    );
  }

  _play() {
    this.context.resume();
    this.play.disabled = true;
    const start = this.context.currentTime + 0.1;
    const period = HeadphoneTones.INTERVAL_SECONDS + HeadphoneTones.PAUSE_SECONDS;
    this.intervals.forEach(([left, right], k) => {
      const buffer = this.context.createBuffer(2, left.length, HeadphoneCheck.RATE);
      buffer.copyToChannel(left, 0);
      buffer.copyToChannel(right, 1);
      const source = this.context.createBufferSource();
      source.buffer = buffer;
      source.connect(this.context.destination);
      source.start(start + k * period);
      setTimeout(() => this.choices[k].classList.add("sounding"), 1000 * (0.1 + k * period));
      source.onended = () => {
        this.choices[k].classList.remove("sounding");
        if (k < 2) return;
        this.play.disabled = false;
        this.play.textContent = "Play again";
        this.choices.forEach((button) => (button.disabled = false));
      };
    });
  }

  _answer(choice) {
    this.answers.push(choice === this.target);
    if (this.answers.length < HeadphoneCheck.ROUNDS.length) return this._ask();
    const correct = this.answers.filter(Boolean).length;
    const results = {
      correct,
      rounds: this.answers.length,
      attempts: this.attempts,
      passed: correct >= HeadphoneCheck.ENOUGH,
    };
    if (results.passed) return this.done(results);
    this.element.replaceChildren(
      make("h1", "", "That did not sound like headphones"),
      make("p", "", `${correct} of ${results.rounds} were right. Are they plugged in, on both ears, and not in mono?`),
      block(
        "div",
        "go",
        makeButton("soft", "Go on without headphones", () => this.done(results)),
        makeButton("primary", "Try again", () => this._begin()),
      ),
    );
  }
}
