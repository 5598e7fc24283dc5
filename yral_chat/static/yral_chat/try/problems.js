/** What went wrong, as people read it: the code, the sentence, what to do. */

import { button, make } from "./elements.js";

// Of the events `error` of a stream and of what this page itself finds out; the service's own sentences are shown as they are.
const ADVICE = {
  unauthorized: "Log in again with another token.",
  conflict: "Wait for the answer under way, or write something else.",
  rate_limit_exceeded: "Wait; what you wrote is kept here.",
  ai_service_unavailable: "Your message is kept. Send it again.",
  internal_server_error: "Tell the operators the correlation id.",
  TRANSIENT: "Your message is kept. Send it again.",
  NO_PROVIDER: "Tell the operators: the model refuses the service.",
  UNKNOWN: "Something else went wrong.",
};

/** Shows `problem` (an ApiError, or {code, message, retryable}) in `place`; `again` is what a button does. */
export function showProblem(place, problem, again = null) {
  const known = problem.details?.errors ?? [];
  const lines = known.map(({ loc, msg }) => make("li", {}, `${loc.join(" › ")}: ${msg}`));
  const reason = problem.details?.reason ?? problem.details?.limit_type;
  const box = make(
    "div",
    { class: "problem" },
    make("p", {}, make("code", {}, [problem.status, problem.code, reason].filter(Boolean).join(" · ")), " ", problem.message),
    lines.length ? make("ul", {}, ...lines) : null,
    ADVICE[problem.code] ? make("p", { class: "hint" }, ADVICE[problem.code]) : null,
    problem.correlationId ? make("p", { class: "hint" }, `Correlation id ${problem.correlationId}`) : null,
  );
  if (again) box.append(retry(problem.retryAfter ?? 0, again));
  place.replaceChildren(box);
  return box;
}

export function clearProblem(place) {
  place.replaceChildren();
}

/** A button that waits as long as Retry-After says. The seconds are no live text: they would be read out one by one. */
function retry(seconds, again) {
  const press = button("Send again", again);
  if (!seconds) return press;
  const left = make("span", { class: "hint", ariaHidden: "true" });
  const row = make("div", { class: "row" }, press, left);
  const over = Date.now() + seconds * 1000;
  press.disabled = true;
  const tick = () => {
    const remaining = Math.ceil((over - Date.now()) / 1000);
    press.disabled = remaining > 0;
    left.textContent = remaining > 0 ? `in ${remaining} s` : "";
    if (remaining > 0 && (row.isConnected || Date.now() < over - seconds * 1000 + 1000)) setTimeout(tick, 250);
  };
  tick();
  return row;
}
