/** Calls of the API: the token, the one shape of errors, and a record of everything for the panel of requests. */

import { eventsOf } from "./events.js";

const PATIENCE = 30_000; // milliseconds till an answer begins

/** An answer of the service that is no success. `code` is what programs branch on, `message` is for people. */
export class ApiError extends Error {
  constructor(response, body) {
    super(body.message ?? `The service answered ${response.status}.`);
    this.status = response.status;
    this.code = body.error ?? "unreadable";
    this.details = body.details ?? {};
    this.retryAfter = Number(response.headers.get("Retry-After")) || 0; // seconds
    this.correlationId = response.headers.get("X-Correlation-ID") ?? "";
  }
}

/** There was no answer at all: no network, or a service that is away. */
export class Unreachable extends Error {
  constructor(cause) {
    super("The service can't be reached. Check your connection.", { cause });
    this.code = "unreachable";
  }
}

export class Api {
  token = "";

  /** `base` is the path before /api; `wire` records; `onLimits` hears of the rate limits with every answer. */
  constructor(base, wire, onLimits = () => {}) {
    this.base = `${base}/api/v1`;
    this.wire = wire;
    this.onLimits = onLimits;
  }

  get = (path, options) => this.json("GET", path, options);
  post = (path, body, options) => this.json("POST", path, { ...options, body });
  delete = (path, options) => this.json("DELETE", path, options);

  async json(method, path, options) {
    const { response, exchange } = await this.#ask(method, path, options);
    return this.#read(response, exchange);
  }

  /** The answer's headers, and its events as they come. What is refused is refused before: an ApiError. */
  async stream(method, path, options) {
    const { response, exchange } = await this.#ask(method, path, options);
    const events = recorded(eventsOf(response), exchange);
    return { headers: response.headers, events };
  }

  async #ask(method, path, { body, headers = {}, signal } = {}) {
    const sent = { ...headers };
    if (this.token) sent.Authorization = `Bearer ${this.token}`;
    const isForm = body instanceof FormData; // the browser writes a form's Content-Type, with its boundary
    if (body !== undefined && !isForm) sent["Content-Type"] = "application/json";
    const url = this.base + path;
    const exchange = this.wire.begin({ method, url, headers: sent, body });
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Error("No answer came in time.")), PATIENCE);
    const ends = AbortSignal.any([late.signal, ...(signal ? [signal] : [])]);
    let response;
    try {
      response = await fetch(url, { method, headers: sent, body: isForm ? body : JSON.stringify(body), signal: ends });
    } catch (error) {
      exchange.failed(error);
      throw signal?.aborted ? error : new Unreachable(error);
    } finally {
      clearTimeout(timer);
    }
    exchange.answered(response);
    this.onLimits(response.headers);
    if (!response.ok) throw new ApiError(response, await this.#read(response, exchange));
    return { response, exchange };
  }

  /** JSON; {} for an answer that isn't ours, such as a proxy's. */
  async #read(response, exchange) {
    try {
      const text = await response.text();
      exchange.body(text);
      return JSON.parse(text);
    } catch (error) {
      if (response.ok) throw new Unreachable(error);
      return {};
    }
  }
}

async function* recorded(events, exchange) {
  try {
    for await (const event of events) {
      exchange.event(event);
      yield event;
    }
    exchange.ended();
  } catch (error) {
    exchange.failed(error);
    throw error;
  }
}
