// The page: what is asked, when it is asked, and what is shown meanwhile.

import { Refusal, classify, curl, models, useKey } from "./api.js";
import { EXAMPLES } from "./examples.js";
import { render, summary } from "./answer.js";

const PRIORS = {
  "": "The probabilities assume what the model learned to assume.",
  uniform: "Every class is as likely as any other before the image is seen.",
  train: "Classes are as frequent as they were among the training images.",
  estimate: "Classes are as frequent as they seem to be among the images that this server got last.",
};
const TOPS = [5, 10, 20];
const DEFAULT_TOP = 5;
const LOOK_AGAIN_MS = 3000;
const SLOW_MS = 1000;

const at = (id) => document.getElementById(id);
let served = [];
let image = null;
let asking = null;

const model = () => served[at("model").selectedIndex];
const prior = () => document.querySelector("input[name=prior]:checked").value;

function question() {
  const { name, version, labels, rejects, explains } = model();
  const parameters = {};
  if (new Set(served.map((one) => one.name)).size > 1) parameters.model = name;
  if (served.find((one) => one.name === name) !== model()) parameters.version = version;
  const top = Number(at("top").value);
  if (top !== DEFAULT_TOP && labels.length > DEFAULT_TOP) parameters.top_k = top;
  if (prior()) parameters.prior = prior();
  if (rejects && at("reject").checked) parameters.reject = "true";
  if (explains && at("explain").checked) parameters.explain = "true";
  return parameters;
}

async function ask() {
  if (!image || !model()) return;
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  at("answer").setAttribute("aria-busy", "true");
  const slow = setTimeout(() => { at("status").textContent = "Waiting for the answer."; }, SLOW_MS);
  try {
    const started = performance.now();
    const asked = question();
    const answer = await classify(image.blob, image.name, asked, mine.signal);
    const roundTrip = performance.now() - started;
    mine.signal.throwIfAborted();
    at("results").replaceChildren(...render(answer, { image, model: model(), roundTrip, command: curl(image, asked) }));
    show("results");
    reveal();
    at("status").textContent = summary(answer.results[0]);
  } catch (error) {
    if (error.name !== "AbortError") refuse(error);
  } finally {
    clearTimeout(slow);
    if (asking === mine) at("answer").removeAttribute("aria-busy");
  }
}

function show(which) {
  for (const id of ["problem", "empty", "results"]) at(id).hidden = id !== which;
}

/** On a small screen the answer to a new image lies below it: go there, once. */
function reveal() {
  if (image.revealed) return;
  image.revealed = true;
  if (at("answer").getBoundingClientRect().top < innerHeight * 0.75) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  at("answer").scrollIntoView({ behavior: calm ? "auto" : "smooth" });
}

function refuse(error) {
  if (!(error instanceof Refusal)) throw error;
  at("problem-title").textContent = error.status ? `No answer (${error.status})` : "No answer";
  // Of a text that is set again, a screen reader would speak again.
  if (at("problem-text").textContent !== error.message) at("problem-text").textContent = error.message;
  at("problem-id").textContent = error.requestId ? `Request ${error.requestId}` : "";
  at("status").textContent = "";
  show("problem");
  if (image) reveal();
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("key").focus();
  }
}

function take(blob, name, path = null) {
  if (image) URL.revokeObjectURL(image.url);
  image = { blob, name, path, url: URL.createObjectURL(blob) };
  at("preview").src = image.url;
  at("file-name").textContent = name;
  for (const button of at("example-list").children) {
    button.setAttribute("aria-pressed", String(button.dataset.path === path));
  }
  ask();
}

function takeFirst(files) {
  const first = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (first) take(first, first.name || "image.png");
}

async function takeExample(path, name) {
  try {
    const response = await fetch(new URL(path, document.baseURI));
    if (!response.ok) throw new Refusal(response.status, "The example is gone; choose an image of your own.");
    take(await response.blob(), name, path);
  } catch (error) {
    refuse(error instanceof Refusal ? error : new Refusal(0, "The server cannot be reached."));
  }
}

async function loadModels() {
  try {
    const { models: ready, versions } = await models();
    served = ready;
    at("key-form").hidden = true;
    at("options").hidden = !ready.length;
    if (!ready.length) {
      throw new Refusal(503, `No model is ready. ${versions.map(absence).join(" ")}`.trim());
    }
    const absent = versions.filter(({ state }) => state !== "READY");
    at("absent").hidden = !absent.length;
    at("absent").textContent = `Not answering: ${absent.map(absence).join(" ")}`;
  } catch (error) {
    if (error.status !== 401) setTimeout(loadModels, LOOK_AGAIN_MS);
    refuse(error);
    return;
  }
  const many = new Map();
  for (const { name } of served) many.set(name, (many.get(name) ?? 0) + 1);
  const title = ({ name, version }) => (many.get(name) > 1 ? `${name}, version ${version}` : name);
  at("model").replaceChildren(...served.map((one) => new Option(title(one))));
  at("model-field").hidden = served.length < 2;
  show("empty");
  fit();
  ask();
}

/** Why a version does not answer. */
function absence({ name, version, reason, state }) {
  return `${name}${version === "1" ? "" : `, version ${version}`}: ${reason || `${state.toLowerCase()}.`}`;
}

/** Show what the chosen model can do. */
function fit() {
  const { name, architecture, components, labels, input_width, input_height, ...can } = model();
  const gaussians = components ? `, ${components} Gaussians a layer` : "";
  at("serving").textContent = `${name}: ${architecture}${gaussians} · ${can.runtime}, ${can.kernel_path} kernels`;
  const size = `${input_width} × ${input_height} pixels`;
  at("model-facts").textContent = `${labels.length} labels, seen at ${size}.`;
  const kept = Number(at("top").value) || DEFAULT_TOP;
  const tops = [...TOPS.filter((top) => top < labels.length), labels.length];
  const title = (top) => (top === labels.length ? `all ${top}` : `${top}`);
  at("top").replaceChildren(...tops.map((top) => new Option(title(top), top, false, top === kept)));
  at("reject-field").hidden = !can.rejects;
  at("explain-field").hidden = !can.explains;
  offerExamples(labels);
}

function offerExamples(labels) {
  const fits = EXAMPLES.find((set) => set.fit(labels));
  at("examples").hidden = !fits;
  if (!fits) return;
  at("examples-title").textContent = fits.title;
  at("examples-source").textContent = fits.source;
  const buttons = fits.files.map(({ path, description }) => {
    const button = document.createElement("button");
    const picture = new Image();
    Object.assign(button, { type: "button" });
    Object.assign(picture, { src: path, alt: description, width: 48, height: 48 });
    button.dataset.path = path;
    button.setAttribute("aria-pressed", String(image?.path === path));
    button.append(picture);
    button.addEventListener("click", () => takeExample(path, path.split("/").at(-1)));
    return button;
  });
  at("example-list").replaceChildren(...buttons);
}

at("file").addEventListener("change", (event) => {
  takeFirst(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
at("preview").addEventListener("load", () => { at("preview").hidden = false; });
at("preview").addEventListener("error", () => { at("preview").hidden = true; });
at("model").addEventListener("change", fit);
at("options").addEventListener("change", () => {
  at("prior-help").textContent = PRIORS[prior()];
  ask();
});
at("options").addEventListener("submit", (event) => event.preventDefault());
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    useKey(at("key").value.trim());
    at("key").value = "";
    loadModels();
  } catch (error) {
    refuse(error);
  }
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) takeFirst(event.clipboardData.files);
});
for (const kind of ["dragenter", "dragover"]) {
  window.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) at("drop").classList.remove("over");
});
window.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  takeFirst(event.dataTransfer.files);
});

at("prior-help").textContent = PRIORS[prior()];
loadModels();
