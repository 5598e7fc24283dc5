/** Elements of the page. Whatever users and personas wrote goes in as text, never as HTML. */

export const $ = (id) => document.getElementById(id);

/** make("p", {class: "hint", hidden: true, onclick: f}, "text", anotherElement) */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "list") element[name] = value;
    else if (value !== undefined) element.setAttribute(name === "class" ? "class" : name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

export function button(label, onclick, properties = {}) {
  return make("button", { type: "button", onclick, ...properties }, label);
}
