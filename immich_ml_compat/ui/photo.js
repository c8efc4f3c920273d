// A photo: what the models find in it, drawn over it, and texts compared with it.

import { byId, draw, make, say } from "./dom.js";
import { options } from "./models.js";
import { predict } from "./server.js";
import { t } from "./words.js";

const TASKS = { ocr: "OCR", "facial-recognition": "Faces", clip: "CLIP" };
const DEFAULTS = { ocr: "PP-OCRv5_mobile", "facial-recognition": "buffalo_l", clip: "ViT-B-32__openai" };

let asking = null; // the request under way, which the next photo replaces
let vector = null; // the photo's, and the model it is of
let vectorModel = null;
let compared = [];

/** Offer the tasks with a model for each, and take photos from the file chooser, a drop or the clipboard. */
export function takePhotos(known) {
  for (const task of Object.keys(TASKS)) byId("tasks").append(choice(task, known[task].names));
  byId("file").addEventListener("change", (event) => {
    if (event.target.files.length) examine(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("paste", (event) => take(event.clipboardData));
  for (const kind of ["dragover", "dragleave", "drop"])
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      byId("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer);
    });
  byId("drop").addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") byId("file").click();
  });
  byId("compare").addEventListener("submit", compare);
}

function take({ files }) {
  if (files.length) examine(files[0]);
}

function choice(task, names) {
  const here = names.filter((model) => model.here).map((model) => model.name);
  const name = here.includes(DEFAULTS[task]) ? DEFAULTS[task] : (here[0] ?? DEFAULTS[task]);
  const box = make("input", { type: "checkbox", id: `do-${task}`, checked: here.length > 0 });
  const list = make("datalist", { id: `names-${task}` }, ...options(names));
  const input = make("input", { id: `model-${task}`, value: name, maxLength: 200, spellcheck: false, ariaLabel: t("Model") });
  input.setAttribute("list", list.id);
  return make("div", {}, make("label", {}, box, ` ${t(TASKS[task])}`), input, list);
}

const modelFor = (task) => ({ modelName: byId(`model-${task}`).value.trim() });

function entriesAsked() {
  const entries = {};
  for (const task of Object.keys(TASKS)) {
    if (!byId(`do-${task}`).checked) continue;
    const model = modelFor(task);
    entries[task] = task === "clip" ? { visual: model } : { detection: model, recognition: model };
  }
  return entries;
}

async function examine(file) {
  asking?.abort();
  const entries = entriesAsked();
  byId("result").hidden = true;
  if (!Object.keys(entries).length) return say(byId("outcome"), t("Choose at least one task"), true);
  const mine = (asking = new AbortController());
  say(byId("outcome"), t("Working on it"));
  try {
    const answer = await predict(entries, { image: file }, mine.signal);
    if (asking === mine) showAnswer(file, answer, entries);
  } catch (error) {
    if (asking === mine) say(byId("outcome"), error.message, true);
  }
}

function showAnswer(file, { body, took, stages }, entries) {
  const lines = linesOf(body);
  const faces = body["facial-recognition"] ?? [];
  const found = [];
  if (body.ocr) found.push(t("lines of text: {0}", lines.length));
  if (body["facial-recognition"]) found.push(t("faces: {0}", faces.length));
  say(byId("outcome"), found.join(" · "));
  const times = Object.entries(stages).map(([task, parts]) => `${t(TASKS[task] ?? task)} ${milliseconds(total(parts))}`);
  times.push(`${t("round trip")} ${milliseconds(took)}`);
  showPicture(file, body, times.join(" · "), [
    ...lines.map((line, index) => lineMark(line, index, body)),
    ...faces.map((face) => faceMark(face, body)),
  ]);
  byId("lines").replaceChildren(...lines.map(({ text, score }) => item(text, score)));
  byId("faces").replaceChildren(...faces.map((face) => item(t("face"), face.score)));
  linkMarks();
  showTimings(stages, took);
  vector = body.clip ? JSON.parse(body.clip) : null;
  vectorModel = entries.clip?.visual;
  compared = [];
  byId("cosines").replaceChildren();
  byId("compare").hidden = vector === null;
  const clip = vector ? ` · CLIP ${t("{0} dimensions", vector.length)}` : "";
  byId("caption").textContent = `${file.name} · ${body.imageWidth} × ${body.imageHeight}${clip}`;
  byId("result").hidden = false;
}

/** Return the lines of an answer: text, score and corners in pixels. */
function linesOf({ ocr, imageWidth, imageHeight }) {
  return (ocr?.text ?? []).map((text, index) => {
    const box = ocr.box.slice(8 * index, 8 * index + 8);
    const corners = box.map((part, axis) => part * (axis % 2 ? imageHeight : imageWidth));
    return { text, score: ocr.textScore[index], corners };
  });
}

function showPicture(file, { imageWidth, imageHeight }, times, marks) {
  const picture = byId("picture");
  const address = URL.createObjectURL(file);
  const photo = make("img", { alt: file.name });
  photo.addEventListener("load", () => URL.revokeObjectURL(address));
  photo.addEventListener("error", () => {
    URL.revokeObjectURL(address);
    photo.remove();
    byId("caption").append(` · ${t("The browser cannot show this format; the server can read it")}`);
  });
  photo.src = address;
  picture.style.aspectRatio = `${imageWidth} / ${imageHeight}`;
  const time = make("span", { className: "time" }, times);
  picture.replaceChildren(photo, draw("svg", { viewBox: `0 0 ${imageWidth} ${imageHeight}` }, ...marks), time);
}

/** Write a label at a corner, in the picture's units, no larger than what it belongs to asks for. */
function label(text, x, y, { imageWidth }) {
  const size = imageWidth / 40;
  return draw("text", { x, y: Math.max(y - size * 0.3, size), "font-size": size, "stroke-width": size / 4 }, text);
}

function lineMark({ text, corners }, index, body) {
  const points = corners.map((part) => part.toFixed(1)).join(" ");
  const shape = draw("polygon", { points });
  return draw("g", { class: "line" }, draw("title", {}, text), shape, label(`${index + 1}`, corners[0], corners[1], body));
}

function faceMark({ boundingBox: { x1, y1, x2, y2 }, score }, body) {
  const shape = draw("rect", { x: Math.min(x1, x2), y: Math.min(y1, y2), width: Math.abs(x2 - x1), height: Math.abs(y2 - y1) });
  return draw("g", { class: "face" }, shape, label(score.toFixed(2), Math.min(x1, x2), Math.min(y1, y2), body));
}

const item = (text, score) => make("li", {}, text, " ", make("span", { className: "score" }, score.toFixed(2)));

/** Light up a mark with its item in the list, and the other way round. */
function linkMarks() {
  const marks = byId("picture").querySelectorAll("g");
  const items = [...byId("lines").children, ...byId("faces").children];
  items.forEach((entry, index) => {
    for (const element of [entry, marks[index]])
      for (const kind of ["pointerenter", "pointerleave"])
        element.addEventListener(kind, () => {
          for (const both of [entry, marks[index]]) both.classList.toggle("lit", kind === "pointerenter");
        });
  });
}

function bar(name, value, most, shown) {
  const meter = make("meter", { max: 1, value: most > 0 ? Math.max(0, value / most) : 0, ariaLabel: name });
  return make("div", { className: "bar" }, make("span", {}, name), make("span", { className: "score" }, shown), meter);
}

const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;

const total = (stages) => Object.values(stages).reduce((sum, value) => sum + value, 0);

/** Show what the server says of each task's time, and how long the page waited. */
function showTimings(tasks, took) {
  const rows = Object.entries(tasks).map(([task, stages]) => {
    const row = bar(t(TASKS[task] ?? task), total(stages), took, milliseconds(total(stages)));
    const parts = Object.entries(stages).map(([stage, value]) => `${t(stage)} ${milliseconds(value)}`);
    row.append(make("span", { className: "stages" }, parts.join(" · ")));
    return row;
  });
  byId("timings").replaceChildren(...rows, bar(t("round trip"), took, took, milliseconds(took)));
}

/** Return the cosine of the angle between two vectors. */
export function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, index) => sum + value * y[index], 0);
  return dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
}

async function compare(event) {
  event.preventDefault();
  const text = byId("query").value;
  const photo = vector;
  const entries = { clip: { textual: { ...vectorModel, options: { language: navigator.language } } } };
  event.submitter.disabled = true;
  try {
    const { body, took } = await predict(entries, { text });
    if (photo !== vector) return; // another photo came meanwhile
    compared = compared.filter((other) => other.text !== text);
    compared.push({ text, took, cosine: cosine(photo, JSON.parse(body.clip)) });
    compared.sort((a, b) => b.cosine - a.cosine);
    const best = Math.max(...compared.map((other) => other.cosine));
    const rows = compared.map((other) => bar(other.text, other.cosine, best, `cos ${other.cosine.toFixed(4)} · ${other.took.toFixed(0)} ms`));
    byId("cosines").replaceChildren(...rows.map((row) => make("li", {}, row)));
    say(byId("outcome"), "");
  } catch (error) {
    say(byId("outcome"), error.message, true);
  } finally {
    event.submitter.disabled = false;
  }
}
