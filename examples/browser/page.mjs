// The page: images become model input as manifest.json says, every image lands in the lane of the stage that answered it.
//
// index.html?export=OUT/&images=images/list.json&budget=0.5&report=result
//   images: JSON {"files": [names beside it], "classes": [names, optional]}, answered on loading
//   report: gets the answers in a POST (the test uses it)

import { Dispatcher } from "./dispatcher.mjs";

const query = new URLSearchParams(location.search);
const $ = (id) => document.getElementById(id);
const make = (tag, parent, className = "", text = "") => {
  const element = parent.appendChild(document.createElement(tag));
  element.className = className;
  element.textContent = text;
  return element;
};
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const size = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

const FITS = ["crop", "stretch", "pad", "pad-right"]; // how an image gets the model's size; the first is meant where nothing is said
const ORDERS = ["RGB", "BGR", "GRAY"];
const LIMITS = { sigmoid: 0.5, sigmoid_logits: 0 }; // kinds of output that give labels, each by itself

const answers = []; // {file, said, stage, confidence, output, ms}
const fetched = []; // {stage, bytes, ms, image}: image counts from 1
let classes = [];
let dispatcher;

/** The pixels of an image file as the model takes them: the same float32 numbers as s2d_convert's preprocessing. */
async function modelInput(blob) {
  const { size, mean, std, scale, channels, layout, dtype, order, fill = 0 } = dispatcher.manifest.preprocess;
  const [height, width] = size;
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = `rgb(${fill} ${fill} ${fill})`;
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, ...placeOf(image, dispatcher.manifest.preprocess));
  const rgba = context.getImageData(0, 0, width, height).data;
  const grey = order === "GRAY" ? (at) => (rgba[at] * 19595 + rgba[at + 1] * 38470 + rgba[at + 2] * 7471 + 32768) >> 16 : null;
  const out = new (dtype === "uint8" ? Uint8Array : Float32Array)(channels * height * width);
  for (let c = 0; c < channels; c++) {
    const factor = Math.fround(scale / std[c]);
    const offset = Math.fround(-mean[c] / std[c]);
    const from = order === "BGR" ? channels - 1 - c : c;
    for (let p = 0; p < height * width; p++) {
      const pixel = grey ? grey(4 * p) : rgba[4 * p + from];
      const at = layout === "NCHW" ? c * height * width + p : p * channels + c;
      out[at] = dtype === "uint8" ? pixel : Math.fround(Math.fround(pixel * factor) + offset);
    }
  }
  return out;
}

/** Where the whole image is drawn, as x, y, width and height: what lies outside is cut away, what is left free is padding. */
function placeOf(image, { size, fit = "crop", crop_ratio = 1 }) {
  const [height, width] = size;
  const larger = Math.max(width / image.width, height / image.height) / crop_ratio;
  const smaller = Math.min(width / image.width, height / image.height);
  const [across, down] = {
    crop: [larger, larger],
    stretch: [width / image.width / crop_ratio, height / image.height / crop_ratio],
    pad: [smaller, smaller],
    "pad-right": [smaller, smaller],
  }[fit];
  const [w, h] = [image.width * across, image.height * down];
  return fit === "pad-right" ? [0, 0, w, h] : [(width - w) / 2, (height - h) / 2, w, h];
}

/** What an output says: its class, or every label that is given; a label is given above LIMITS. */
function inWords(output) {
  const name = (k) => classes[k] ?? `class ${k}`;
  const limit = LIMITS[dispatcher.manifest.output.kind];
  if (limit === undefined) return name(output.indexOf(Math.max(...output)));
  return output.flatMap((value, k) => (value > limit ? [name(k)] : [])).join(", ") || "no label";
}

async function answer(file, blob) {
  const pixels = await modelInput(blob);
  const before = performance.now();
  const found = await dispatcher.run(pixels, Number($("budget").value));
  const ms = performance.now() - before;
  const fresh = fetched.filter((one) => one.image === answers.length + 1).length > 0; // then ms holds the download
  const said = inWords(found.output);
  answers.push({ file, said, ms: fresh ? null : ms, ...found });
  const figure = make("figure", $(`lane${found.stage}`).querySelector(".images"));
  make("img", figure).src = URL.createObjectURL(blob);
  make("figcaption", figure, "", said);
  make("small", figure, "", `${(100 * found.confidence).toFixed(0)} %`);
  draw();
}

function draw() {
  dispatcher.manifest.stages.forEach((stage, k) => {
    const here = answers.filter((one) => one.stage === k + 1);
    const times = here.map((one) => one.ms).filter((ms) => ms !== null);
    const loaded = fetched.find((one) => one.stage === k + 1);
    const lane = $(`lane${k + 1}`);
    lane.classList.toggle("asleep", !loaded);
    lane.querySelector(".state").textContent = loaded
      ? `${size(loaded.bytes)}, fetched ${k ? `at image ${loaded.image}` : "first"}`
      : "not fetched";
    lane.querySelector(".share").textContent = answers.length ? `${Math.round((100 * here.length) / answers.length)} %` : "";
    lane.querySelector(".bar i").style.width = `${(100 * here.length) / Math.max(1, answers.length)}%`;
    const each = times.length ? `, ${median(times).toFixed(1)} ms each` : "";
    lane.querySelector(".count").textContent = answers.length ? `${here.length} of ${answers.length} images${each}` : "";
  });
}

function start() {
  const { manifest } = dispatcher;
  for (const policy of [...manifest.policies].sort((a, b) => a.budget - b.budget)) {
    const option = make("option", $("budget"), "", `${policy.budget}`);
    option.value = policy.budget;
  }
  $("budget").value = dispatcher.policyFor(Number(query.get("budget") ?? manifest.default_budget)).budget;
  manifest.stages.forEach((stage, k) => {
    const lane = $("lanes").appendChild($("lane").content.firstElementChild.cloneNode(true));
    lane.id = `lane${k + 1}`;
    lane.style.setProperty("--hue", [145, 218, 32, 320][k % 4]);
    lane.querySelector("h2").textContent = `Stage ${k + 1}`;
  });
  dispatcher.onfetch = (loaded) => {
    fetched.push({ ...loaded, image: answers.length + 1 });
    draw();
  };
  draw();
  $("files").onchange = async (event) => {
    for (const file of event.target.files) await answer(file.name, file);
  };
}

async function main() {
  dispatcher = await Dispatcher.open(query.get("export") ?? "OUT/");
  const preprocess = dispatcher.manifest.preprocess;
  if (!preprocess) throw new Error("manifest.json: no preprocessing; convert with images to have one");
  if (preprocess.known === false)
    throw new Error("manifest.json: the model was converted with arrays as they are; convert again and say with --preprocess what pixels become");
  for (const [key, known] of Object.entries({ fit: FITS, order: ORDERS }))
    if (!known.includes(preprocess[key] ?? known[0]))
      throw new Error(`manifest.json: preprocess, ${key}: got ${preprocess[key]}; this page knows ${known.join(", ")}`);
  start();
  await dispatcher.ready();
  const list = query.get("images");
  if (list) {
    const url = new URL(list, document.baseURI);
    const { files, classes: names = [] } = await (await fetch(url)).json();
    classes = names;
    for (const file of files) await answer(file, await (await fetch(new URL(file, url))).blob());
  }
}

let problem = null;
try {
  await main();
} catch (error) {
  problem = error.message;
  $("problem").textContent = problem;
}
document.body.dataset.done = "true";
if (query.get("report")) {
  await fetch(query.get("report"), { method: "POST", body: JSON.stringify({ problem, answers, fetched }) });
}
