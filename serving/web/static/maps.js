// Which Gaussian claims which pixel, layer by layer.

import { node } from "./nodes.js";

// The layer stays chosen from one answer to the next.
let chosen = null;

/** The card of an image's posterior maps. */
export function maps({ explanation, occupancy }, legend, { image, model }) {
  const layers = explanation.maps;
  const first = Math.max(0, layers.findIndex(({ layer }) => layer === chosen));
  const picture = node("img", { class: "map" });
  const caption = node("figcaption");
  const label = node("label", { for: "layer" });
  const shares = node("ul", { class: "shares", "aria-label": "Share of the pixels of each Gaussian" });
  const slider = node("input", { type: "range", id: "layer", min: 0, max: layers.length - 1, step: 1, value: first });
  const thumbnails = layers.map(({ layer, png }, index) => {
    const small = node("img", { alt: "", src: address(png), width: 44, height: 44 });
    // The slider does the same from the keyboard, without a hundred stops on the way.
    const button = node("button", { type: "button", tabindex: "-1", title: layer, "aria-label": `Layer ${layer}` }, small);
    button.addEventListener("click", () => choose(index));
    return button;
  });

  function choose(index) {
    const { layer, png, height, width } = layers[index];
    chosen = layer;
    slider.value = index;
    slider.setAttribute("aria-valuetext", layer);
    label.textContent = `Layer ${index + 1} of ${layers.length}`;
    picture.src = address(png);
    picture.alt = `Gaussians of the layer ${layer}: ${spoken(occupancy[layer])}`;
    caption.textContent = `${layer}, ${width} × ${height}`;
    shares.replaceChildren(...occupancy[layer].map((value, component) => share(value, legend[component])));
    thumbnails.forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
  }

  slider.addEventListener("input", () => choose(Number(slider.value)));
  choose(first);
  const pair = node(
    "div",
    { class: "pair" },
    node("figure", {}, seen(image, model), node("figcaption", {}, "What the model sees")),
    node("figure", {}, picture, caption),
    node("div", {}, shares, node("p", { class: "note" }, "Pure colour: this Gaussian alone explains the pixel. Grey: it could be any.")),
  );
  pair.style.setProperty("--ratio", `${model.input_width} / ${model.input_height}`);
  return node(
    "section",
    { class: "card", "aria-labelledby": "maps-title" },
    node("h2", { id: "maps-title" }, "Which Gaussian claims which pixel"),
    pair,
    ...(layers.length > 1 ? [label, slider, node("div", { class: "thumbnails" }, ...thumbnails)] : []),
  );
}

/** The image as the model's preprocessing places it, so that the maps lie where they belong. */
function seen(image, { input_width: width, input_height: height, input_resize_shorter: shorter }) {
  const picture = node("img", { alt: "The image", src: image.url });
  picture.addEventListener("load", () => {
    if (shorter === null) return;
    const scale = shorter / Math.min(picture.naturalWidth, picture.naturalHeight);
    picture.style.setProperty("width", `${(100 * picture.naturalWidth * scale) / width}%`);
    picture.style.setProperty("height", `${(100 * picture.naturalHeight * scale) / height}%`);
  });
  return node("div", { class: "map" }, picture);
}

function share(value, { component, colour }) {
  const swatch = node("i", { class: "swatch fade" });
  swatch.style.setProperty("--colour", colour);
  const bar = node("span", { class: "bar", "aria-hidden": "true" }, node("i"));
  bar.firstChild.style.setProperty("--share", value);
  return node("li", {}, swatch, node("span", {}, `Gaussian ${component + 1}`), bar, node("b", {}, whole(value)));
}

const whole = (value) => `${(100 * value).toFixed(0)} %`;

const spoken = (shares) => shares.map((value, component) => `Gaussian ${component + 1} ${whole(value)}`).join(", ");

const address = (png) => `data:image/png;base64,${png}`;
