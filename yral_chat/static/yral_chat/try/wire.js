/** The panel of requests: what was sent, what came back, event by event. */

import { button, make } from "./elements.js";

const MOST = 50;
const MOST_EVENTS = 400;

export class Wire {
  constructor(list) {
    this.list = list;
  }

  clear() {
    this.list.replaceChildren();
  }

  begin(request) {
    const exchange = new Exchange(request);
    this.list.prepend(exchange.element);
    while (this.list.children.length > MOST) this.list.lastChild.remove();
    return exchange;
  }
}

class Exchange {
  constructor({ method, url, headers, body }) {
    this.started = performance.now();
    this.status = make("b", {}, "…");
    this.took = make("span", { class: "hint" });
    this.answer = make("pre", { tabIndex: 0, ariaLabel: "Answer" });
    const shown = Object.entries(headers).map(([name, value]) => `${name}: ${veiled(name, value)}`);
    const sent = [`${method} ${url}`, ...shown, ...bodyOf(body)].join("\n");
    const summary = make("summary", {}, make("span", {}, `${method} ${url}`), " ", this.status, " ", this.took);
    const copies = () => navigator.clipboard.writeText(curl(method, url, headers, body));
    const copy = navigator.clipboard ? button("Copy as curl", copies) : null; // on https and this machine only
    const details = make("details", {}, summary, make("pre", { tabIndex: 0, ariaLabel: "Request" }, sent), copy, this.answer);
    this.events = 0;
    this.element = make("li", {}, details);
  }

  answered(response) {
    this.status.textContent = `${response.status}`;
    this.status.className = response.ok ? "good" : "bad";
    this.#time();
    const headers = [...response.headers].map(([name, value]) => `${name}: ${value}`);
    this.answer.textContent = `${response.status} ${response.statusText}\n${headers.join("\n")}\n\n`;
  }

  body(text) {
    this.#time();
    this.answer.append(pretty(text));
  }

  event({ id, event, data }) {
    this.events += 1;
    this.#time(this.#counted());
    if (this.events > MOST_EVENTS && event === "token") return;
    this.answer.append(`id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  ended() {
    this.#time(this.#counted());
  }

  #counted() {
    return ` · ${this.events} event${this.events === 1 ? "" : "s"}`;
  }

  failed(error) {
    this.status.textContent = error.name === "AbortError" ? "left" : "lost";
    this.status.className = "bad";
    this.answer.append(`\n(${error.message})`);
    this.#time();
  }

  #time(more = "") {
    this.took.textContent = `${Math.round(performance.now() - this.started)} ms${more}`;
  }
}

function bodyOf(body) {
  if (body === undefined) return [];
  if (!(body instanceof FormData)) return ["", JSON.stringify(body, null, 2)];
  const parts = [...body].map(([name, value]) => `${name}=${value instanceof Blob ? `@${value.name} (${value.size} bytes)` : value}`);
  return ["Content-Type: multipart/form-data", "", ...parts];
}

/** Enough of a token to tell two apart, and too little to use it. */
export function veiled(name, value) {
  return name === "Authorization" ? value.replace(/^(Bearer .{6}).*(.{4})$/, "$1…$2") : value;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(method, url, headers, body) {
  const named = Object.entries(headers).filter(([name]) => name !== "Authorization");
  const words = ["curl", "-X", method, quoted(new URL(url, location.href).href), "-H", '"Authorization: Bearer $TOKEN"'];
  for (const [name, value] of named) words.push("-H", quoted(`${name}: ${value}`));
  if (body instanceof FormData) {
    for (const [name, value] of body) words.push("-F", quoted(`${name}=${value instanceof Blob ? `@${value.name}` : value}`));
  } else if (body !== undefined) words.push("-d", quoted(JSON.stringify(body)));
  return words.join(" ");
}
