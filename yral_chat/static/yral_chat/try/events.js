/** Server-sent events from the body of an answer: https://html.spec.whatwg.org/multipage/server-sent-events.html
 *
 * The browser's own EventSource can neither POST nor send a token, so the body is read here.
 */

const MOST_SILENCE = 30_000; // milliseconds: the service says something every ten seconds

/** Yields {id, event, data}, with `data` parsed. Comments, which keep the connection alive, are left out. A
 *  connection on which nothing comes any more is given up: a phone that changes its network isn't told that it is dead. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await within(MOST_SILENCE, reader.read());
      if (done) return;
      const blocks = (rest + value).split("\n\n"); // an event ends with an empty line
      rest = blocks.pop();
      for (const block of blocks) {
        const event = eventIn(block);
        if (event) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading closes the connection
  }
}

async function within(milliseconds, promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("Nothing came for too long.")), milliseconds);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function eventIn(block) {
  const event = { id: "", event: "message" };
  const data = [];
  for (const line of block.split("\n")) {
    const [, field, value] = line.match(/^([^:]*): ?(.*)$/) ?? [null, line, ""];
    if (field === "data") data.push(value);
    else if (field === "id" || field === "event") event[field] = value;
  }
  return data.length ? { ...event, data: JSON.parse(data.join("\n")) } : null;
}
