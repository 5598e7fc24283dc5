/** Server-sent events from the body of an answer: https://html.spec.whatwg.org/multipage/server-sent-events.html
 *
 * The browser's own EventSource can neither POST nor send a token, so the body is read here.
 */

/** Yields {id, event, data}, with `data` parsed. Comments, which keep the connection alive, are left out. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
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
