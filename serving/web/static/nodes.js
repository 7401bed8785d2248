// Elements.

/** An element with attributes and children; strings become text. */
export function node(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A command with a button that copies it. */
export function copyable(text) {
  const code = node("code", {}, text);
  const button = node("button", { type: "button" }, "Copy");
  const said = node("span", { class: "note", role: "status" });
  button.addEventListener("click", async () => {
    const done = await copy(text, code);
    said.textContent = done ? "Copied." : "Selected: copy it with the keyboard.";
  });
  const shell = node("pre", { tabindex: "0", "aria-label": "Command" }, code);
  return node("div", { class: "copyable" }, shell, node("p", {}, button, " ", said));
}

/** Browsers give pages from plain http other than this machine's no clipboard: then the text is selected. */
async function copy(text, element) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}
