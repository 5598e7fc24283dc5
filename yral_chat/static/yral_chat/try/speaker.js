/** Tells screen readers of an answer, whole sentences at a time: word by word nobody could follow. */

const END = /[.!?…。！？।]["'”’)\]*]*\s|\n/g;

export class Speaker {
  #rest = "";

  /** `region` is an aria-live region that nobody sees. */
  constructor(region) {
    this.region = region;
  }

  say(sentence) {
    const said = document.createElement("p");
    said.textContent = sentence;
    this.region.append(said);
    while (this.region.children.length > 20) this.region.firstChild.remove();
  }

  /** A piece of an answer: what it completes is said, the rest waits. */
  hear(piece) {
    this.#rest += piece;
    const end = [...this.#rest.matchAll(END)].at(-1);
    if (!end) return;
    const at = end.index + end[0].length;
    this.#say(this.#rest.slice(0, at));
    this.#rest = this.#rest.slice(at);
  }

  /** The answer is over, or taken back. */
  finish({ takenBack = false } = {}) {
    if (!takenBack) this.#say(this.#rest);
    this.#rest = "";
  }

  #say(text) {
    if (text.trim()) this.say(text.trim());
  }
}
