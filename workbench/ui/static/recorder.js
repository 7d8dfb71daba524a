/* Audio that the server cannot get by itself: the microphone, and formats that only the browser decodes. */

/** 16-bit mono wav, as a File. */
function wavFile(samples, sampleRate, name) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((letter, k) => view.setUint8(at + k, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, sampleRate, true);
  view.setUint32(28, 2 * sampleRate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, k) => {
    view.setInt16(44 + 2 * k, Math.max(-32768, Math.min(32767, Math.round(value * 32768))), true);
  });
  return new File([view], name, { type: "audio/wav" });
}

/** Decodes what the browser can (m4a, webm ...) and averages the channels. */
async function decodedFile(file) {
  const context = new AudioContext();
  try {
    const audio = await context.decodeAudioData(await file.arrayBuffer());
    const mono = new Float32Array(audio.length);
    for (let channel = 0; channel < audio.numberOfChannels; channel++) {
      audio.getChannelData(channel).forEach((value, k) => (mono[k] += value / audio.numberOfChannels));
    }
    return wavFile(mono, audio.sampleRate, file.name.replace(/\.[^.]*$/, "") + ".wav");
  } finally {
    context.close();
  }
}

/** The microphone as it is: no echo cancelling, noise suppression or gain control, which would change the speech. */
class Recorder {
  static CONSTRAINTS = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  static WORKLET = `registerProcessor("tap", class extends AudioWorkletProcessor {
    process([[channel]]) { if (channel) this.port.postMessage(channel.slice()); return true; }
  });`;

  /** @param {(seconds: number, peak: number) => void} onprogress */
  constructor(onprogress) {
    this.onprogress = onprogress;
    this.blocks = [];
    this.numSamples = 0;
  }

  /** Why this page cannot record, or "" if it can. */
  static obstacle() {
    if (navigator.mediaDevices && window.AudioWorkletNode) return "";
    return "Browsers lend the microphone only to pages opened over https or on this computer (localhost).";
  }

  /** Size of the file so far. */
  get numBytes() {
    return 44 + 2 * this.numSamples;
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: Recorder.CONSTRAINTS });
    this.context = new AudioContext();
    const url = URL.createObjectURL(new Blob([Recorder.WORKLET], { type: "text/javascript" }));
    await this.context.audioWorklet.addModule(url);
    URL.revokeObjectURL(url);
    const tap = new AudioWorkletNode(this.context, "tap", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
    tap.port.onmessage = ({ data }) => {
      this.blocks.push(data);
      this.numSamples += data.length;
      this.onprogress(this.numSamples / this.context.sampleRate, Math.max(...data.map(Math.abs)));
    };
    this.context.createMediaStreamSource(this.stream).connect(tap);
    await this.context.resume();
  }

  /** Ends the recording and gives it as a wav File. */
  stop() {
    this.stream.getTracks().forEach((track) => track.stop());
    const samples = new Float32Array(this.numSamples);
    this.blocks.reduce((at, block) => (samples.set(block, at), at + block.length), 0);
    const file = wavFile(samples, this.context.sampleRate, "recording.wav");
    this.context.close();
    return file;
  }
}
