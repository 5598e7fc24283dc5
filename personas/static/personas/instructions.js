// Above each large text field: how long it is now, in characters and (about) tokens.
// Gemini counts roughly four characters a token in English and fewer in most other scripts.
document.addEventListener("DOMContentLoaded", () => {
  const fields = document.querySelectorAll("textarea.instructions");
  for (const field of fields) {
    const line = document.createElement("p");
    line.className = "instructions-size help";
    line.setAttribute("aria-live", "polite");
    field.insertAdjacentElement("beforebegin", line);
    const tell = () => {
      const characters = [...field.value].length;
      const wide = [...field.value].filter((c) => c.codePointAt(0) > 0x2ff).length;
      const tokens = Math.ceil((characters - wide) / 4 + wide / 1.5);
      line.textContent = `${characters.toLocaleString("en")} characters, about ${tokens.toLocaleString("en")} tokens`;
    };
    field.addEventListener("input", tell);
    tell();
  }

  // Leaving with unsaved text asks first.
  const form = fields.length ? fields[0].form : null;
  if (!form) return;
  let unsaved = false;
  form.addEventListener("input", () => { unsaved = true; });
  form.addEventListener("submit", () => { unsaved = false; });
  window.addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
  const first = document.getElementById("id_display_name");
  if (first && !first.value) first.focus();
});
