/** The page: logging in, picking a persona, writing. What is below it knows the API; this knows the screen. */

import { Api } from "./api.js";
import { Attachments } from "./attachments.js";
import { Chat } from "./chat.js";
import { $, button, make } from "./elements.js";
import { clearProblem, showProblem } from "./problems.js";
import { Recorder } from "./recorder.js";
import { Speaker } from "./speaker.js";
import { Wire } from "./wire.js";

const known = JSON.parse($("known").textContent); // what the server told
const wire = new Wire($("exchanges"));
const api = new Api(known.base, wire, showLimits);
const speaker = new Speaker($("speaker"));
const attachments = new Attachments(api, $("attachments"), $("attaching"), known, (problem) => showProblem($("problem"), problem));
const recorder = new Recorder();
const chat = new Chat({
  api,
  page: { history: $("history"), messages: $("messages"), older: $("older"), problem: $("problem") },
  speaker,
  options: { scene: () => $("scene")?.value ?? "", streams: () => $("streaming").checked },
  onBusy: showBusy,
  onRefused: ({ body }) => ($("message").value ||= body.content ?? ""),
  onUnauthorized: (problem) => logOut(problem),
  onSuggestions: showSuggestions,
});
let persona = null;

// Who it is

const claimsOf = (token) => {
  try {
    const bytes = Uint8Array.from(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return {}; // the service will say what is wrong with it
  }
};

function logIn(token) {
  api.token = token;
  sessionStorage.setItem("token", token);
  const { user_id: user, sub } = claimsOf(token);
  $("user").textContent = user ?? sub ?? "somebody";
  $("login").hidden = true;
  for (const id of ["who", "views", "personas", "chat", "wire"]) $(id).hidden = false;
  clearProblem($("login-problem"));
  show("personas");
  $("personas-title").focus();
  listPersonas();
}

function logOut(problem = null) {
  chat.leave();
  api.token = "";
  sessionStorage.clear();
  $("login").hidden = false;
  for (const id of ["who", "views", "personas", "chat", "wire"]) $(id).hidden = true;
  if (problem) showProblem($("login-problem"), problem);
  wire.clear();
  nobodyIsPicked();
  $("token").value = "";
  ($("name") ?? $("token")).focus();
}

$("get-token")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const headers = { "X-CSRFToken": known.tokens.csrf };
  try {
    const answer = await fetch(known.tokens.url, { method: "POST", headers, body: new URLSearchParams({ user: $("name").value }) });
    if (answer.ok) logIn((await answer.json()).token);
    else showProblem($("login-problem"), { code: "no_token", status: answer.status, message: answer.status === 403 ? "This page is too old. Load it again." : (await answer.json()).message });
  } catch {
    showProblem($("login-problem"), { code: "unreachable", message: "The service can't be reached." });
  }
});

$("use-token").addEventListener("submit", (event) => {
  event.preventDefault();
  logIn($("token").value.trim().replace(/^Bearer\s+/i, ""));
});

$("log-out").onclick = () => logOut();

// Which part is shown where there is room for one

function show(view) {
  document.body.dataset.view = view;
  for (const one of document.querySelectorAll("[data-shows]")) one.setAttribute("aria-pressed", one.dataset.shows === view);
}

for (const one of document.querySelectorAll("[data-shows]")) one.onclick = () => show(one.dataset.shows);
$("clear-wire").onclick = () => wire.clear();

function showLimits(headers) {
  const of = (kind) => `${headers.get(`X-RateLimit-Remaining-${kind}`)} of ${headers.get(`X-RateLimit-Limit-${kind}`)}`;
  if (headers.has("X-RateLimit-Limit-Minute")) $("limits").textContent = `Requests left: ${of("Minute")} this minute, ${of("Hour")} this hour`;
}

// Personas

let listed = 0;

async function listPersonas(offset = 0) {
  try {
    const page = await api.get(`/influencers?limit=50&offset=${offset}`);
    clearProblem($("personas-problem"));
    if (!offset) $("persona-list").replaceChildren();
    $("persona-list").append(...page.influencers.map(personaItem));
    listed = offset + page.influencers.length;
    $("more-personas").hidden = listed >= page.total;
  } catch (problem) {
    showProblem($("personas-problem"), problem, () => listPersonas(offset));
  }
}

$("more-personas").onclick = () => listPersonas(listed);

function personaItem(one) {
  const isHere = one.is_active === "active";
  const name = make("b", {}, one.display_name);
  const about = make("span", { class: "hint" }, isHere ? one.description : one.is_active.replace("_", " "));
  const pick = button("", () => open(one), { class: "persona", disabled: !isHere });
  pick.dataset.id = one.id;
  pick.append(avatar(one), make("span", {}, name, about));
  return make("li", {}, pick);
}

function avatar({ avatar_url: url, display_name: name }) {
  const initial = make("span", { class: "avatar", ariaHidden: "true" }, name.slice(0, 1));
  if (!url.startsWith(location.origin)) return initial; // the policy shows no pictures of other sites
  const image = make("img", { class: "avatar", src: url, alt: "" });
  image.onerror = () => image.replaceWith(initial);
  return image;
}

async function open(one) {
  persona = one;
  nothingIsAttached();
  for (const pick of document.querySelectorAll(".persona")) pick.setAttribute("aria-current", pick.dataset.id === one.id);
  $("chat-title").textContent = one.display_name;
  $("chat-about").textContent = one.description;
  show("chat");
  try {
    await chat.open(one);
    $("composer").hidden = $("delete").hidden = false;
    if (matchMedia("(pointer: fine)").matches) $("message").focus();
    else $("chat-title").focus(); // a phone's keyboard would hide what was said
  } catch (problem) {
    if (problem.status === 401) logOut(problem);
    else if (persona === one) showProblem($("problem"), problem);
  }
}

function nothingIsAttached() {
  recorder.drop();
  showRecording(false);
  attachments.clear();
}

function nobodyIsPicked() {
  persona = null;
  nothingIsAttached();
  $("chat-title").textContent = "No persona is picked";
  $("chat-about").textContent = "Pick one to begin.";
  $("composer").hidden = $("delete").hidden = true;
}

$("delete").onclick = () => $("sure").showModal();
$("sure").onclose = async () => {
  if ($("sure").returnValue !== "yes") return;
  try {
    const count = await chat.delete();
    await open(persona); // as the apps do: there is a fresh greeting at once
    speaker.say(`${count} messages were deleted. The conversation begins anew.`);
  } catch (problem) {
    showProblem($("problem"), problem);
  }
};

function showSuggestions(suggestions) {
  $("suggestions").hidden = !suggestions.length;
  $("suggestions").replaceChildren(...suggestions.map((text) => button(text, () => chat.send({ message_type: "text", content: text }))));
}

// Writing

let isBusy = false;

function showBusy(busy, { stops = false, drops = false } = {}) {
  const hadFocus = document.activeElement === $("stop") || document.activeElement === $("drop-line");
  isBusy = busy;
  $("send").hidden = busy;
  $("stop").hidden = !stops;
  $("drop-line").hidden = !drops || !$("scene");
  if (!busy && hadFocus) $("message").focus();
}

/** The message that the composer holds; null if that is none. */
function written() {
  const content = $("message").value.trim();
  const { pictures, sound } = attachments;
  if (sound) return { message_type: "audio", content, audio_url: sound.key, audio_duration_seconds: Math.round(sound.seconds) };
  if (pictures.length) return { message_type: content ? "multimodal" : "image", content, media_urls: pictures };
  return content ? { message_type: "text", content } : null;
}

function send() {
  const body = written();
  if (!body || isBusy || attachments.isUploading) return;
  const { previews } = attachments;
  $("message").value = "";
  attachments.clear();
  $("attaching").textContent = "";
  chat.send(body, previews);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
  $("message").focus();
});

$("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // Enter also ends a word in Hindi or Japanese
  event.preventDefault();
  send();
});

$("stop").onclick = () => chat.stop();
$("drop-line").onclick = () => chat.dropTheLine();

// Pictures and voice

const picturesOf = (files) => [...files].filter((file) => file.type.startsWith("image/"));

for (const [pick, input] of [["pick-pictures", "pictures"], ["take-photo", "photo"]]) {
  $(pick).onclick = () => $(input).click();
  $(input).onchange = async () => {
    await attachments.add([...$(input).files], "image");
    $(input).value = ""; // so that the same picture can be picked again
  };
}

$("message").addEventListener("paste", (event) => {
  const files = picturesOf(event.clipboardData.files);
  if (!files.length) return;
  event.preventDefault();
  attachments.add(files, "image");
});

for (const kind of ["dragover", "drop"]) {
  $("chat").addEventListener(kind, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if (kind === "drop" && persona) attachments.add(picturesOf(event.dataTransfer.files), "image");
  });
}

$("record").hidden = !Recorder.isPossible;
$("record").onclick = async () => {
  if (recorder.isRunning) return recorder.stop();
  try {
    await recorder.start(known.mostSeconds, recorded);
  } catch {
    return showProblem($("problem"), { code: "no_microphone", message: "The microphone can't be used. Allow it in the browser, or plug one in." });
  }
  showRecording(true);
  speaker.say("Recording.");
  tick();
};

function tick() {
  if (!recorder.isRunning) return;
  $("record").textContent = `Stop recording (${Math.floor(recorder.seconds)} s)`;
  setTimeout(tick, 250);
}

function showRecording(isOn) {
  $("record").setAttribute("aria-pressed", isOn);
  if (!isOn) $("record").textContent = "Voice";
}

function recorded(file) {
  showRecording(false);
  attachments.add([file], "audio");
}

// The failure simulator

if ($("scene")) {
  $("scene").append(...Object.keys(known.scenes).map((name) => make("option", { value: name }, name)));
  $("scene").onchange = () => ($("scene-says").textContent = known.scenes[$("scene").value] ?? "");
}

const kept = sessionStorage.getItem("token");
if (kept) logIn(kept);
else ($("name") ?? $("token")).focus();
