// A talk with a persona's draft, beside what is live. The talk is here alone: each question carries it to the service.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("playground");
  if (!form) return;
  const find = (selector) => form.querySelector(selector);
  const message = find("#message"), fault = find(".fault"), chosen = find(".chosen"), stop = find("[data-do=stop]");
  const token = find("[name=csrfmiddlewaretoken]").value;
  const limits = { messages: Number(form.dataset.messages), pictures: Number(form.dataset.pictures) };
  const sum = { prompt: 0, output: 0, cost: 0, unknown: false };
  let pictures = [], voice = null, running = null;

  const sides = [...form.querySelectorAll(".side")].map((section) => {
    const talk = section.querySelector(".talk");
    const greeting = talk.querySelector("p");
    const first = greeting ? [{ role: "assistant", content: greeting.textContent, pictures: [] }] : [];
    return { section, talk, first, kept: talk.innerHTML, said: [...first], which: section.dataset.which };
  });
  const shown = () => sides.filter((side) => !side.section.hidden);

  class Fault extends Error {}

  async function post(address, fields) {
    const body = new FormData();
    for (const [name, value] of fields) body.append(name, value);
    let answer;
    try {
      answer = await fetch(address, { method: "POST", body, headers: { "X-CSRFToken": token }, signal: running?.signal });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Fault("The service can't be reached. Look at your connection and try again.");
    }
    if (answer.redirected) throw new Fault("You are no longer logged in. Reload the page.");
    if (answer.ok) return answer;
    const json = (answer.headers.get("Content-Type") || "").includes("json");
    const said = json ? (await answer.json()).message : "";
    if (said) throw new Fault(said);
    throw new Fault(answer.status === 413 ? "The files are too large." : `The service answered ${answer.status}. Reload the page and try again.`);
  }

  function tell(text) {
    fault.textContent = text;
    fault.hidden = !text;
  }

  function add(list, kind, text) {
    const item = document.createElement("li");
    item.className = kind;
    const words = document.createElement("p");
    words.className = "as-written";
    words.textContent = text;
    item.append(words);
    list.append(item);
    return { item, words };
  }

  function note(item, text, kind = "how") {
    const line = document.createElement("p");
    line.className = kind;
    line.textContent = text;
    item.append(line);
  }

  function thumbnail(blob, name) {
    const image = document.createElement("img");
    image.alt = name;
    image.className = "thumbnail";
    const reader = new FileReader();
    reader.onload = () => { image.src = reader.result; };
    reader.readAsDataURL(blob);
    return image;
  }

  function price(cost) {
    return cost === null ? "cost unknown" : `$${cost}`;
  }

  function how(done) {
    const { prompt, output, thinking } = done.tokens;
    sum.prompt += prompt;
    sum.output += output + thinking;
    if (done.cost_usd === null) sum.unknown = sum.unknown || prompt + output > 0;
    else sum.cost += Number(done.cost_usd);
    const most = sum.unknown ? "at least " : "";
    find(".sum").textContent = `So far: ${sum.prompt} tokens in, ${sum.output} out, ${most}$${sum.cost.toFixed(6)}.`;
    const thought = thinking ? ` and ${thinking} of thinking` : "";
    const why = done.finish_reason && done.finish_reason !== "STOP" ? `, ended by ${done.finish_reason}` : "";
    return `${prompt} tokens in, ${output} out${thought} · ${done.seconds} s · ${price(done.cost_usd)} · ${done.model}${why}`;
  }

  function showChosen() {
    chosen.replaceChildren();
    const entries = [...pictures.map((blob) => [thumbnail(blob, "Picture"), () => pictures.splice(pictures.indexOf(blob), 1)])];
    if (voice) entries.push([document.createTextNode(`Voice note: ${voice.name} `), () => { voice = null; }]);
    for (const [what, drop] of entries) {
      const item = document.createElement("li"), button = document.createElement("button");
      button.type = "button";
      button.className = "plain";
      button.textContent = "Take out";
      button.addEventListener("click", () => { drop(); showChosen(); });
      item.append(what, button);
      chosen.append(item);
    }
  }

  // What the model sees of the talk: the last messages, and of pictures before the question the last ones.
  function record(side) {
    const rows = side.said.slice(-limits.messages - 1), files = [];
    let left = limits.pictures;
    const made = rows.map((row) => ({ role: row.role, content: row.content, pictures: row.pictures.length, sent: row.pictures.length }));
    for (let place = rows.length - 2; place >= 0; place -= 1) {
      made[place].pictures = Math.min(left, rows[place].pictures.length);
      left -= made[place].pictures;
    }
    rows.forEach((row, place) => files.push(...row.pictures.slice(row.pictures.length - made[place].pictures)));
    return { made, files };
  }

  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const whole = text.split("\n\n");
      text = whole.pop();
      for (const one of whole) {
        const found = /^event: (\w+)\ndata: (.*)$/s.exec(one);
        if (found) yield [found[1], JSON.parse(found[2])];
      }
    }
  }

  async function answered(side) {
    const { made, files } = record(side);
    const { item, words } = add(side.talk, "assistant", "");
    item.setAttribute("aria-busy", "true");
    const fields = [["which", side.which], ["said", JSON.stringify(made)], ["user_name", find("#user_name").value]];
    try {
      const answer = await post(form.dataset.say, [...fields, ...files.map((file) => ["pictures", file])]);
      let end = null;
      for await (const [kind, data] of events(answer)) {
        if (kind === "token") words.textContent += data.text;
        else end = data;
      }
      if (!end) throw new Fault("The answer broke off. Try again.");
      finished(side, item, words, end);
    } catch (error) {
      const text = error.name === "AbortError" ? "Stopped." : error instanceof Fault ? error.message : "The answer broke off. Try again.";
      note(item, text, "wrong");
      if (words.textContent) side.said.push({ role: "assistant", content: words.textContent, pictures: [] });
      else unanswered(side);
    } finally {
      item.removeAttribute("aria-busy");
    }
  }

  function finished(side, item, words, end) {
    if (end.error) {
      note(item, end.error, "wrong");
      unanswered(side);
    } else {
      words.textContent = end.text;
      // A blocked question and its answer don't go to the model again, as in a user's talk.
      if (end.blocked) {
        side.said.pop();
        note(item, "Blocked by the model's safety filter; this is the persona's deflection.", "wrong");
      } else side.said.push({ role: "assistant", content: end.text, pictures: [] });
    }
    note(item, how(end));
  }

  // Asked again, it would stand there twice.
  function unanswered(side) {
    side.said.pop();
  }

  function begun() {
    tell("");
    running = new AbortController();
    stop.hidden = false;
    find("button[type=submit]").disabled = true;
  }

  function ended() {
    running = null;
    stop.hidden = true;
    find("button[type=submit]").disabled = false;
    message.focus();
  }

  async function heard(text) {
    if (!voice) return text;
    const answer = await (await post(form.dataset.listen, [["file", voice], ["caption", text]])).json();
    how(answer);
    if (answer.error) tell(answer.error);
    return answer.text;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const typed = message.value.trim();
    if (running) return;
    if (!typed && !pictures.length && !voice) return tell("Say something first.");
    begun();
    try {
      const content = await heard(typed), mine = pictures;
      for (const side of shown()) {
        side.said.push({ role: "user", content, pictures: mine });
        const { item } = add(side.talk, "user", content);
        item.append(...mine.map((blob) => thumbnail(blob, "Picture that you sent")));
      }
      message.value = "";
      pictures = [];
      voice = null;
      showChosen();
      await Promise.all(shown().map(answered));
    } catch (error) {
      tell(error.name === "AbortError" ? "Stopped." : error instanceof Fault ? error.message : "That didn't work. Try again.");
    } finally {
      ended();
    }
  });

  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => running?.abort());

  find("#picture").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    if (!file) return;
    tell("");
    try {
      pictures.push(await (await post(form.dataset.picture, [["file", file]])).blob());
      showChosen();
    } catch (error) {
      tell(error instanceof Fault ? error.message : "The picture can't be used.");
    }
  });
  find("#voice").addEventListener("change", (event) => {
    voice = event.target.files[0] || null;
    event.target.value = "";
    showChosen();
  });

  function startOver() {
    running?.abort();
    for (const side of sides) {
      side.talk.innerHTML = side.kept;
      side.said = [...side.first];
    }
    tell("");
  }
  find("[data-do=again]").addEventListener("click", startOver);
  find("#beside")?.addEventListener("change", (event) => {
    sides[1].section.hidden = !event.target.checked;
    startOver();
  });
});
