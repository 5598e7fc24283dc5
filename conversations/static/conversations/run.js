// A run goes on as long as its page is open: one request a test, so that none lasts long.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("run");
  if (!form || !form.dataset.goesOn) return;
  const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
  const fault = form.querySelector(".fault"), bar = form.querySelector("progress"), said = form.querySelector(".said");
  const pause = (seconds) => new Promise((done) => { setTimeout(done, seconds * 1000); });

  function tell(text) {
    fault.textContent = text;
    fault.hidden = !text;
  }

  function show(json) {
    bar.value = json.done;
    said.textContent = `${json.done} of ${json.total}, ${json.red} red`;
    if (!json.step) return;
    const section = document.querySelector(`[data-place="${json.step.place}"]`), outcome = section.querySelector(".outcome");
    outcome.textContent = json.step.state;
    outcome.className = `outcome ${json.step.state}`;
    section.querySelector("div.as-written").textContent = json.step.answer;
  }

  async function step() {
    const answer = await fetch(form.dataset.next, { method: "POST", headers: { "X-CSRFToken": token } });
    if (answer.redirected) throw new Error("You are no longer logged in. Reload the page.");
    if (answer.status === 429) {
      const json = await answer.json();
      tell(`${json.message} The run goes on by itself.`);
      await pause(json.retry_after);
      return true;
    }
    if (!answer.ok) throw new Error(`The service answered ${answer.status}. Reload the page to go on.`);
    tell("");
    const json = await answer.json();
    show(json);
    if (json.done === json.total) return false;
    if (!json.step) await pause(2); // somebody else has the rest
    return true;
  }

  (async () => {
    try {
      while (await step());
      location.reload();
    } catch (error) {
      tell(error instanceof TypeError ? "The service can't be reached. Reload the page to go on." : error.message);
    }
  })();
});
