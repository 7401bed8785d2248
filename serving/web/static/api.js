// What the page says to the server, and what the server says to the page.

const KEY = "cbn-serve.api-key";

/** A request that was refused or failed; the message is the server's own sentence where there is one. */
export class Refusal extends Error {
  constructor(status, message, requestId = "") {
    super(message);
    this.status = status;
    this.requestId = requestId;
  }
}

/** Keep a key for as long as this tab is open. */
export function useKey(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new Refusal(0, "A key has only letters, digits and signs, and no spaces.");
  sessionStorage.setItem(KEY, key);
}

export const models = () => call("v1/models");

/** Classify an image (a Blob); `question` holds the parameters of /v1/classify that are not at their defaults. */
export function classify(image, name, question, signal) {
  const form = new FormData();
  form.append("image", image, name);
  return call(`v1/classify${query(question)}`, { method: "POST", body: form, signal });
}

/** Whether a key is in use; the command names a variable for it. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** The shell command that asks the same question. */
export function curl(source, question) {
  const address = (path) => quote(new URL(path, document.baseURI).href);
  const key = hasKey() ? ' -H "X-API-Key: $CBN_API_KEY"' : "";
  const ask = (file) => `curl${key} -F ${file} ${address(`v1/classify${query(question)}`)}`;
  if (source.path) return `curl -s ${address(source.path)} | ${ask("image=@-")}`;
  const plain = /^[\w.-]+$/.test(source.name);
  const escaped = source.name.replace(/[\\"]/g, "\\$&");
  return ask(plain ? `image=@${source.name}` : quote(`image=@"${escaped}"`));
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { "X-API-Key": key } : {};
  let response;
  let text;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, headers, cache: "no-store" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "The server cannot be reached, or it closed the connection before it had the whole image.");
  }
  const body = parsed(text);
  if (response.ok && body) return body;
  if (response.status === 401 && key) {
    sessionStorage.removeItem(KEY);
    throw new Refusal(401, "The server does not take this key; look whether it is whole.", body?.request_id);
  }
  throw new Refusal(response.status, body?.detail ?? "The answer is not one of cbn-serve's: is there a proxy between?", body?.request_id);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // a proxy's own page, say
  }
}

function query(question) {
  const text = new URLSearchParams(question).toString();
  return text ? `?${text}` : "";
}

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
