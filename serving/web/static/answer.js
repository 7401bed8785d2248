// An answer of /v1/classify as elements. Text goes in as text: nothing here makes HTML.

import { hasKey } from "./api.js";
import { maps } from "./maps.js";
import { copyable, node } from "./nodes.js";

const STAGES = [
  ["decode_ms", "Decode", "decode"],
  ["queue_ms", "Queue", "queue"],
  ["inference_ms", "Inference", "inference"],
];

/** The answer's cards; `shown` has the image, the model, the round trip in ms and the command that asks the same. */
export function render(answer, shown) {
  const [result] = answer.results;
  const cards = [ranking(result, answer), time(answer.timing, shown.roundTrip), command(shown.command)];
  if (result.explanation) cards.splice(1, 0, maps(result, answer.legend, shown));
  return cards;
}

/** The answer in a sentence, for a screen reader. */
export function summary({ predictions: [best], rejected }) {
  const verdict = rejected ? "Rejected: too unlike the images that the model knows. " : "";
  return `${verdict}${best.label}, ${percent(best.probability)}, ${shots(best)}.`;
}

function ranking(result, answer) {
  const rows = result.predictions.map(({ label, probability, shot_group }) => {
    const bar = node("span", { class: "bar", "aria-hidden": "true" }, node("i"));
    bar.firstChild.style.setProperty("--share", probability);
    return node(
      "li",
      { class: "rank" },
      node("span", { class: "label" }, label),
      node("span", { class: `badge ${shot_group}` }, shots({ shot_group })),
      node("span", { class: "number" }, percent(probability)),
      bar,
    );
  });
  return node(
    "section",
    { class: "card", "aria-labelledby": "ranking-title" },
    node("h2", { id: "ranking-title" }, "Ranking"),
    ...verdict(result),
    node("ol", { class: "ranking", "aria-labelledby": "ranking-title" }, ...rows),
    facts(result, answer),
    node("p", { class: "note" }, "Training images a class: many-shot over 100, medium-shot 20 to 100, few-shot under 20."),
  );
}

function verdict({ rejected, reject_reason: reason }) {
  if (rejected === null) return [];
  const words = rejected ? ["Rejected.", reason] : ["Familiar.", "The image is like those that the model knows."];
  return [node("p", { class: `verdict ${rejected ? "bad" : "good"}` }, node("strong", {}, words[0]), ` ${words[1]}`)];
}

function facts(result, answer) {
  const threshold = result.energy_threshold === null ? "" : `, at most ${fixed(result.energy_threshold)} to be familiar`;
  const list = [
    ["Energy", `${fixed(result.energy)}${threshold}`],
    ["Probabilities", answer.calibrated ? "calibrated" : "as the network gives them, not calibrated"],
    ["Classes expected", assumed(answer.prior)],
  ];
  const entries = list.flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]);
  return node("dl", { class: "facts" }, ...entries);
}

function assumed(prior) {
  switch (prior?.kind) {
    case undefined:
      return "as trained";
    case "estimate":
      if (!prior.applied) return `as trained: an estimate needs ${prior.needed} images, there are ${prior.images}`;
      return `estimated from ${prior.images} images: ${frequent(prior.probabilities)}`;
    default:
      return { uniform: "all equally", train: "as among the training images" }[prior.kind];
  }
}

function frequent(probabilities) {
  const best = Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, 3);
  return `${best.map(([label, share]) => `${label} ${percent(share)}`).join(", ")}${best.length > 2 ? ", …" : ""}`;
}

function time(timing, roundTrip) {
  const known = STAGES.map(([key, name, kind]) => [name, kind, timing[key]]);
  const rest = Math.max(0, roundTrip - known.reduce((sum, [, , value]) => sum + value, 0));
  const parts = [...known, ["The rest: network, HTTP, pictures", "rest", rest]];
  const bar = node("div", { class: "stack", "aria-hidden": "true" });
  const list = node("ul", { class: "keys", "aria-label": "Stages" });
  for (const [name, kind, value] of parts) {
    const part = node("i", { class: kind });
    part.style.setProperty("--part", value);
    bar.append(part);
    list.append(node("li", {}, node("i", { class: `swatch ${kind}` }), `${name} `, node("b", {}, `${value.toFixed(1)} ms`)));
  }
  const together = timing.batch_size > 1 ? ` It ran together with ${timing.batch_size - 1} others.` : "";
  return node(
    "section",
    { class: "card", "aria-labelledby": "time-title" },
    node("h2", { id: "time-title" }, "Time"),
    node("p", {}, node("b", {}, `${roundTrip.toFixed(0)} ms`), ` from this browser to the server and back.${together}`),
    bar,
    list,
  );
}

function command(text) {
  return node(
    "section",
    { class: "card", "aria-labelledby": "command-title" },
    node("h2", { id: "command-title" }, "The same from a shell"),
    copyable(text),
    ...(hasKey() ? [node("p", { class: "note" }, "CBN_API_KEY is a variable of your shell with your key.")] : []),
  );
}

const shots = ({ shot_group: group }) => `${group}-shot`;

/** A share as text: never 0 % or 100 % unless it is. */
function percent(share) {
  if (share > 0 && share < 0.0005) return "< 0.1 %";
  if (share < 1 && share >= 0.9995) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

const fixed = (value) => value.toFixed(2).replace("-", "−");
