// Before the theme's own scripts start: what they need to work under our policy, and with the keyboard alone.

// The policy forbids styles written as text. Set one by one they are allowed, and look the same.
const setAttribute = Element.prototype.setAttribute;
Element.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else setAttribute.call(this, name, value);
};
htmx.config.includeIndicatorStyles = false;

// Names of buttons that are only a picture, by the picture.
const NAMES = {
  add: "Add",
  arrow_back: "Back",
  close: "Close",
  computer: "Colours as the system's",
  dark_mode: "Dark colours",
  dock_to_right: "Show or hide the navigation",
  light_mode: "Light colours",
  search: "Search",
};
// What can be clicked, and yet not reached with Tab.
const CLICKED = "[x-on\\:click]:not(a[href], button, input, select, textarea, [tabindex], [id$=-close], .resize)";

const give = (element, name, value) => element.hasAttribute(name) || setAttribute.call(element, name, value);

function withKeys(element) {
  if (element.querySelector("a, button, input, form") || !element.textContent.trim()) return;
  give(element, "tabindex", "0");
  give(element, "role", "button");
  element.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    element.click();
  });
}

function withName(button) {
  const pictures = [button, ...button.querySelectorAll("*")].filter((one) => one.matches(".material-symbols-outlined"));
  const words = pictures.reduce((rest, picture) => rest.replace(picture.textContent.trim(), ""), button.textContent).trim();
  if (pictures.length && !words && !button.title) give(button, "aria-label", NAMES[pictures[0].textContent.trim()] || "More");
}

function forEverybody() {
  document.querySelectorAll(CLICKED).forEach(withKeys);
  document.querySelectorAll("a, button, [role=button]").forEach(withName);
  for (const picture of document.querySelectorAll(".material-symbols-outlined:not([role])")) give(picture, "aria-hidden", "true");
  for (const input of document.querySelectorAll("input[placeholder]")) {
    if (!input.labels.length) give(input, "aria-label", input.placeholder);
  }
  for (const hint of document.querySelectorAll(".help-tooltip[aria-label]")) give(hint, "role", "img");
}

document.addEventListener("DOMContentLoaded", forEverybody);
window.addEventListener("load", () => setTimeout(forEverybody)); // what Django's scripts made by then
