/** A turn: a question goes out, and its answer comes in, as events of which the last one is `done` or `error`.
 *
 * The server writes an answer to its end whether or not anybody listens, so a lost connection loses nothing:
 * X-Message-ID is the question's id, and with it and the last event's id the rest can be fetched.
 */

import { ApiError } from "./api.js";

const MOST_ATTEMPTS = 8;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Headers of a message: its key makes a resend the same message, and the scene is the failure simulator's. */
function headersOf({ key, scene }) {
  return { "Idempotency-Key": key, ...(scene && { "X-Chat-Scenario": scene }) };
}

/** Streams the answer. `line` has a signal that cuts the connection; `onQuestion` hears the question's id early. */
export async function* streamedTurn(api, conversation, body, { key, scene, line, onQuestion, onLost }) {
  const path = `/chat/conversations/${conversation}/messages/stream`;
  const headers = headersOf({ key, scene });
  const { headers: head, events } = await api.stream("POST", path, { body, headers, signal: line.signal });
  const question = head.get("X-Message-ID");
  onQuestion(question);
  yield* untilItEnds(api, conversation, question, { events, line, onLost });
}

/** Joins an answer that is being written, or replays one that was. */
export async function* joinedTurn(api, conversation, question, { line, onQuestion, onLost }) {
  onQuestion(question);
  yield* untilItEnds(api, conversation, question, { events: [], line, onLost });
}

async function* untilItEnds(api, conversation, question, { events, line, onLost }) {
  let last = "";
  for (let attempt = 0; attempt < MOST_ATTEMPTS; attempt += 1) {
    try {
      for await (const event of events) {
        attempt = 0;
        last = event.id || last;
        yield event;
        if (event.event === "done" || event.event === "error") return;
      }
    } catch (error) {
      if (line.left) throw error;
    }
    if (attempt > 0 || last) {
      onLost(attempt + 1);
      await pause(Math.min(8000, 250 * 2 ** attempt));
    }
    events = await rejoined(api, conversation, question, last, line);
  }
  throw new Error("The connection was lost too often.");
}

async function rejoined(api, conversation, question, last, line) {
  const path = `/chat/conversations/${conversation}/messages/${question}/stream`;
  const headers = last ? { "Last-Event-ID": last } : {};
  try {
    return (await api.stream("GET", path, { headers, signal: line.renewed() })).events;
  } catch (error) {
    if (error instanceof ApiError && error.status < 500) throw error;
    return []; // away: the next attempt may find it
  }
}

/** Without a stream: one event, when the whole answer is there. */
export async function* wholeTurn(api, conversation, body, { key, scene, line }) {
  const options = { headers: headersOf({ key, scene }), signal: line.signal };
  const data = await api.post(`/chat/conversations/${conversation}/messages`, body, options);
  yield { event: "done", data };
}

/** A connection that can be cut, and left for good. */
export class Line {
  left = false;
  #controller = new AbortController();

  get signal() {
    return this.#controller.signal;
  }

  renewed() {
    if (!this.left) this.#controller = new AbortController();
    return this.signal;
  }

  cut() {
    this.#controller.abort();
  }

  leave() {
    this.left = true;
    this.cut();
  }
}
