/** One conversation with a persona: its history, its turns, and what may go wrong in them. */

import { bubble, note } from "./bubbles.js";
import { make } from "./elements.js";
import { clearProblem, showProblem } from "./problems.js";
import { Line, joinedTurn, streamedTurn, wholeTurn } from "./turn.js";

const PAGE = 20;
// What is refused like this was never stored: it goes back to where it was written.
const REFUSED = ["bad_request", "validation_error", "forbidden", "not_found", "payload_too_large", "unsupported_media_type"];

export class Chat {
  #line = null; // of the turn under way
  #question = null; // its id
  #shown = new Map(); // id of a stored message → its element, in order
  #total = 0;
  #last = null; // the last message that is stored, as the API tells it

  /** `page` has the elements; `onRefused` gets back what was never stored; `onUnauthorized` asks for a token. */
  constructor({ api, page, speaker, options, onBusy, onRefused, onUnauthorized, onSuggestions }) {
    Object.assign(this, { api, page, speaker, options, onBusy, onRefused, onUnauthorized, onSuggestions });
    page.older.onclick = () => this.older();
    page.history.onscroll = () => page.history.scrollTop < 40 && !page.older.hidden && this.older();
  }

  /** Opening is also how an app comes back: the service answers 201 with the conversation that is there. */
  async open(persona) {
    this.leave();
    const visit = this.visit;
    const conversation = await this.api.post("/chat/conversations", { influencer_id: persona.id });
    if (this.visit !== visit) return; // another persona was picked meanwhile
    this.id = conversation.id;
    this.persona = conversation.influencer.display_name;
    this.#total = conversation.message_count;
    for (const message of conversation.recent_messages.toReversed()) this.#show(message);
    this.#offerOlder();
    this.#offer(conversation.influencer.suggested_messages);
    this.#toTheEnd();
    if (this.#last?.role === "user") this.#join(this.#last.id); // its answer is being written, or failed
  }

  /** Nobody listens any more; the server goes on writing. */
  leave() {
    this.visit = Symbol(); // what was asked for before, is for a page that is gone
    this.#line?.leave();
    this.#line = this.#question = this.#last = null;
    this.#shown.clear();
    this.page.messages.replaceChildren();
    this.page.older.hidden = true;
    this.speaker.finish({ takenBack: true });
    clearProblem(this.page.problem);
    this.onSuggestions([]);
    this.onBusy(false);
  }

  async send(body, previews = []) {
    await this.#ask({ body, previews, key: newKey(), scene: this.options.scene() });
  }

  /** The same body with the same key: the same message, once, whatever the service made of the first try. */
  async #ask(draft, mine = this.#pending(draft)) {
    remember(this.id, draft);
    this.onSuggestions([]);
    const turn = this.options.streams() ? streamedTurn : wholeTurn;
    const drops = turn === streamedTurn;
    await this.#run((options) => turn(this.api, this.id, draft.body, { ...draft, ...options }), { mine, draft, drops });
  }

  async #join(question) {
    const draft = remembered(this.id);
    await this.#run((options) => joinedTurn(this.api, this.id, question, options), { mine: this.#shown.get(question), draft, drops: true });
  }

  async #run(start, { mine, draft, drops }) {
    const line = (this.#line = new Line());
    const answer = this.#emptyAnswer();
    this.#withdrawAnother();
    clearProblem(this.page.problem);
    this.#busy(true, { drops });
    try {
      const onQuestion = (id) => {
        this.#question = id;
        this.#busy(true, { drops });
      };
      const onLost = (attempt) => note(answer, `The connection was lost. Joining again (${attempt}) …`);
      for await (const event of start({ line, onQuestion, onLost })) await this.#take(event, { mine, answer, draft });
    } catch (error) {
      answer.remove();
      if (!line.left) this.#failed(error, { mine, draft });
    }
    if (!line.left) this.#busy(false);
  }

  #take({ event, data }, { mine, answer, draft }) {
    if (event === "token") return this.#token(data.text, answer);
    answer.remove();
    if (event === "done") return this.#done(data, mine);
    this.speaker.finish({ takenBack: true });
    if (data.code === "BLOCKED_CONTENT") return this.#takenBack(data, mine);
    this.#failed(data, { mine, draft: data.retryable ? draft : null });
  }

  #token(text, answer) {
    const atEnd = this.#isAtEnd();
    answer.said.append(text);
    note(answer, "");
    answer.classList.remove("waiting");
    this.speaker.hear(text);
    if (atEnd) this.#toTheEnd();
  }

  #done(turn, mine) {
    const said = turn.assistant_message;
    if (this.#line && this.options.streams()) this.speaker.finish();
    else if (said) this.speaker.say(said.content);
    mine?.remove();
    this.#shown.delete(turn.user_message.id);
    for (const message of [turn.user_message, said].filter(Boolean)) this.#show(message, { isNew: true });
    if (turn.stopped && !said) this.speaker.say("Stopped before there was an answer.");
    this.#offerAnother();
    forget(this.id);
    this.#toTheEnd();
  }

  /** A filter stopped the answer after some of it was shown: it is gone, and the deflection is stored instead. */
  async #takenBack(problem, mine) {
    showProblem(this.page.problem, problem);
    forget(this.id);
    const visit = this.visit;
    const { messages } = await this.api.get(this.#page(0, 2));
    if (this.visit !== visit) return;
    mine?.remove();
    for (const message of messages.toReversed()) this.#show(message, { isNew: true });
    this.#offerAnother();
    this.#toTheEnd();
  }

  #failed(problem, { mine, draft }) {
    this.speaker.finish({ takenBack: true });
    if (problem.status === 401) this.onUnauthorized(problem);
    if (draft && REFUSED.includes(problem.code)) {
      mine?.remove();
      forget(this.id);
      this.onRefused(draft);
      this.#offerAnother();
    } else if (mine) note(mine, "not answered");
    const again = draft && !REFUSED.includes(problem.code) ? () => this.#ask({ ...draft, scene: this.options.scene() }, mine) : null;
    showProblem(this.page.problem, problem, again);
    this.#toTheEnd();
  }

  /** The text so far is kept, and the stream ends with `done` and `stopped`. */
  async stop() {
    try {
      if (this.#question) await this.api.post(`/chat/conversations/${this.id}/messages/${this.#question}/stop`);
    } catch (problem) {
      showProblem(this.page.problem, problem);
    }
  }

  /** As if a phone went through a tunnel: the rest of the answer comes by Last-Event-ID. */
  dropTheLine() {
    this.#line?.cut();
  }

  async regenerate(question, old) {
    const line = (this.#line = new Line());
    this.#question = question;
    clearProblem(this.page.problem);
    this.#withdrawAnother();
    this.#busy(true);
    note(old, "Another answer is being written …");
    try {
      const scene = this.options.scene();
      const path = `/chat/conversations/${this.id}/messages/${question}/regenerate`;
      const options = { headers: scene ? { "X-Chat-Scenario": scene } : {}, signal: line.signal };
      const turn = await this.api.post(path, undefined, options);
      const place = this.#shown.get(old.message.id);
      this.#shown.delete(old.message.id);
      place.remove();
      this.#total -= 1;
      this.#show(turn.assistant_message, { isNew: true });
      this.speaker.say(turn.assistant_message.content);
    } catch (problem) {
      if (line.left) return;
      note(old, "");
      showProblem(this.page.problem, problem);
    }
    this.#offerAnother();
    this.#busy(false);
    this.#toTheEnd();
    if (document.activeElement === document.body) this.page.messages.querySelector(".another")?.focus(); // the button pressed is gone
  }

  /** The page before; what is in view stays where it is. Offsets count from the newest message. */
  async older() {
    const { history, older, messages } = this.page;
    if (this.isPaging || older.hidden) return;
    this.isPaging = true;
    const visit = this.visit;
    try {
      const page = await this.api.get(this.#page(this.#shown.size, PAGE));
      if (this.visit !== visit) return;
      this.#total = page.total;
      const fromEnd = history.scrollHeight - history.scrollTop;
      const isNews = ({ id }) => !this.#shown.has(id);
      const before = page.messages.toReversed().filter(isNews).map((message) => this.#element(message));
      messages.prepend(...before);
      this.#offerOlder();
      history.scrollTop = history.scrollHeight - fromEnd;
      this.speaker.say(`${before.length} older messages.`);
    } catch (problem) {
      if (this.visit === visit) showProblem(this.page.problem, problem);
    } finally {
      this.isPaging = false;
    }
  }

  async delete() {
    const { deleted_messages_count: count } = await this.api.delete(`/chat/conversations/${this.id}`);
    forget(this.id);
    return count;
  }

  #page(offset, limit) {
    return `/chat/conversations/${this.id}/messages?limit=${limit}&offset=${offset}&order=desc`;
  }

  #show(message, { isNew = false } = {}) {
    if (this.#shown.has(message.id)) return;
    this.page.messages.append(this.#element(message));
    this.#last = message;
    if (isNew) this.#total += 1;
  }

  #element(message) {
    const element = bubble(message, this.persona);
    element.message = message;
    this.#shown.set(message.id, element);
    return element;
  }

  #pending({ body, previews }) {
    const urls = previews.filter(({ kind }) => kind === "image").map(({ url }) => url);
    const sound = previews.find(({ kind }) => kind === "audio")?.url;
    const element = bubble({ role: "user", content: body.content, media_urls: urls, audio_url: sound }, this.persona);
    element.classList.add("pending");
    this.page.messages.append(element);
    this.#toTheEnd();
    return element;
  }

  #emptyAnswer() {
    const element = bubble({ role: "assistant", content: "" }, this.persona);
    element.classList.add("waiting");
    note(element, `${this.persona} is thinking …`);
    this.speaker.say(`${this.persona} is answering.`);
    this.page.messages.append(element);
    this.#toTheEnd();
    return element;
  }

  /** Only the last answer can be replaced. */
  #offerAnother() {
    this.#withdrawAnother();
    const [question, answer] = [...this.page.messages.children].slice(-2);
    if (question?.message?.role !== "user" || answer?.message?.role !== "assistant") return;
    const again = () => this.regenerate(question.message.id, answer);
    answer.append(make("button", { type: "button", class: "another", onclick: again }, "Another answer"));
  }

  #withdrawAnother() {
    this.page.messages.querySelectorAll(".another").forEach((old) => old.remove());
  }

  #offerOlder() {
    this.page.older.hidden = this.#shown.size >= this.#total;
    this.#offerAnother();
  }

  /** Null once something was said. */
  #offer(suggestions) {
    this.onSuggestions(suggestions ?? []);
  }

  /** A turn can be stopped once its question's id is known: without a stream that is when its answer is there. */
  #busy(isBusy, { drops = false } = {}) {
    this.page.messages.setAttribute("aria-busy", isBusy);
    if (!isBusy) this.#question = null;
    this.onBusy(isBusy, { stops: Boolean(this.#question), drops });
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.page.history;
    return scrollHeight - scrollTop - clientHeight < 60;
  }

  #toTheEnd() {
    this.page.history.scrollTop = this.page.history.scrollHeight;
  }
}

/** randomUUID is there on https and localhost only, and a phone may try this by the machine's address. */
function newKey() {
  return crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// A message without an answer survives a reload of the page, so that it can be sent again as the same one.
const remember = (id, { body, key }) => sessionStorage.setItem(`draft ${id}`, JSON.stringify({ body, key, previews: [] }));
const remembered = (id) => JSON.parse(sessionStorage.getItem(`draft ${id}`));
const forget = (id) => sessionStorage.removeItem(`draft ${id}`);
