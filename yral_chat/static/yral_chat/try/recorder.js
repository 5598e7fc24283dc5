/** A voice note from the microphone. */

// What browsers record and the service takes: Chromium and Firefox WebM or Ogg, Safari MP4.
const FORMATS = { "audio/webm;codecs=opus": "webm", "audio/ogg;codecs=opus": "ogg", "audio/mp4": "m4a", "audio/webm": "webm" };

export class Recorder {
  #recorder = null;

  static get isPossible() {
    return Boolean(navigator.mediaDevices?.getUserMedia && globalThis.MediaRecorder);
  }

  get isRunning() {
    return this.#recorder?.state === "recording";
  }

  get seconds() {
    return (performance.now() - this.started) / 1000;
  }

  /** Asks for the microphone; fails if that is refused. `most`: seconds, after which it ends by itself. */
  async start(most, onEnd) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const mimeType = Object.keys(FORMATS).find((type) => MediaRecorder.isTypeSupported(type));
    const pieces = [];
    const recorder = (this.#recorder = new MediaRecorder(stream, mimeType && { mimeType }));
    recorder.ondataavailable = ({ data }) => pieces.push(data);
    recorder.onstop = () => {
      clearTimeout(over);
      stream.getTracks().forEach((track) => track.stop()); // the browser's sign of a recording goes out
      const type = recorder.mimeType;
      if (!recorder.isDropped) onEnd(new File(pieces, `voice.${FORMATS[type] ?? "webm"}`, { type }));
    };
    this.started = performance.now();
    recorder.start();
    const over = setTimeout(() => this.stop(), (most - 1) * 1000);
  }

  stop() {
    if (this.isRunning) this.#recorder.stop();
  }

  /** The microphone is given back, and what it heard is thrown away. */
  drop() {
    if (this.isRunning) this.#recorder.isDropped = true;
    this.stop();
  }
}
