/** Pictures and a voice note on their way into a message: uploaded at once, sent by their storage keys. */

import { button, make } from "./elements.js";

const MOST = 10;
const MB = 1024 * 1024;

export class Attachments {
  #items = []; // {kind, name, key, seconds, element}
  #uploading = 0;

  /** `list` shows them, `status` tells what happens, `most` has the service's limits, `onProblem` hears failures. */
  constructor(api, list, status, most, onProblem) {
    Object.assign(this, { api, list, status, most, onProblem });
  }

  get pictures() {
    return this.#items.filter(({ kind }) => kind === "image").map(({ key }) => key);
  }

  get sound() {
    return this.#items.find(({ kind }) => kind === "audio");
  }

  get previews() {
    return this.#items.map(({ kind, url }) => ({ kind, url }));
  }

  /** Files of one kind: image or audio. */
  async add(files, kind) {
    for (const file of files) {
      const wrong = this.#whatIsWrong(file, kind);
      if (wrong) this.onProblem({ code: "not_uploaded", message: wrong });
      else await this.#upload(file, kind);
    }
  }

  clear() {
    this.#items = [];
    this.list.replaceChildren();
  }

  /** The service says no to these as well; said here, nobody uploads 20 MB to be told. */
  #whatIsWrong(file, kind) {
    const most = kind === "image" ? this.most.mostImageMB : this.most.mostAudioMB;
    if (file.size > most * MB) return `${file.name} is larger than ${most} MB.`;
    if (kind === "image" && (this.pictures.length >= MOST || this.sound)) {
      return this.sound ? "A voice note goes without pictures." : `A message has at most ${MOST} pictures.`;
    }
    if (kind === "audio" && this.#items.length) return "A voice note goes alone. Remove the other files first.";
    return "";
  }

  get isUploading() {
    return this.#uploading > 0;
  }

  async #upload(file, kind) {
    const form = new FormData();
    form.append("file", file);
    form.append("type", kind);
    this.status.textContent = `Uploading ${file.name} …`;
    this.#uploading += 1;
    try {
      const { storage_key: key, duration_seconds: seconds, url } = await this.api.post("/media/upload", form);
      this.#show({ kind, name: file.name, key, seconds, url });
      this.status.textContent = kind === "image" ? `${file.name} is attached.` : `A voice note of ${seconds.toFixed(1)} s is attached.`;
    } catch (error) {
      this.status.textContent = "";
      this.onProblem(error);
    } finally {
      this.#uploading -= 1;
    }
  }

  #show(item) {
    const seen = item.kind === "image" ? make("img", { src: item.url, alt: item.name }) : make("audio", { src: item.url, controls: true, ariaLabel: "Your voice note" });
    const element = make("li", {}, seen, button("Remove", () => this.#remove(item), { ariaLabel: `Remove ${item.name}` }));
    this.#items.push({ ...item, element });
    this.list.append(element);
  }

  #remove({ key }) {
    this.#items.find((item) => item.key === key).element.remove();
    this.#items = this.#items.filter((item) => item.key !== key);
    this.status.textContent = "Removed.";
  }
}
