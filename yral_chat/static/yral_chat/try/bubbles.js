/** Messages as they are shown. */

import { make } from "./elements.js";

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

/** `message` as the API tells it; of one that isn't stored yet only content, media_urls and audio_url. */
export function bubble(message, persona) {
  const mine = message.role === "user";
  const said = make("p", { class: "said", dir: "auto" }, message.content ?? "");
  const body = make("div", { class: "bubble" }, said, ...pictures(message.media_urls ?? []), sound(message.audio_url));
  const item = make("li", { class: mine ? "mine" : "theirs" }, make("span", { class: "unseen" }, mine ? "You:" : `${persona}:`), body, make("p", { class: "about hint" }));
  item.id = message.id ? `message-${message.id}` : "";
  item.said = said;
  told(item, message);
  return item;
}

function told(item, message) {
  const notes = [message.created_at && time.format(new Date(message.created_at))];
  if (message.blocked) notes.push("blocked by a filter");
  if (message.away) notes.push("the persona is away");
  if (message.stopped) notes.push("stopped");
  if (message.token_count) notes.push(`${message.token_count} tokens`);
  note(item, notes.filter(Boolean).join(" · "));
}

export function note(item, text) {
  item.querySelector(".about").textContent = text;
}

function pictures(urls) {
  return urls.map((url, at) => {
    const image = make("img", { src: url, alt: `Picture ${at + 1} of ${urls.length}`, loading: "lazy" });
    image.onerror = () => image.replaceWith(make("p", { class: "hint" }, "This picture can't be shown. Its link may be over: pick the persona again."));
    return image;
  });
}

function sound(url) {
  return url ? make("audio", { src: url, controls: true, preload: "none", ariaLabel: "Voice note" }) : null;
}
