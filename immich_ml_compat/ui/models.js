// What is loaded and where, and the buttons that load and unload.

import { byId, keep, make, say } from "./dom.js";
import { change } from "./server.js";
import { bytes, duration, t } from "./words.js";

const KINDS = {
  "clip/visual": "CLIP, photos",
  "clip/textual": "CLIP, texts",
  "facial-recognition/detection": "faces, detection",
  "facial-recognition/recognition": "faces, recognition",
  "ocr/detection": "OCR, detection",
  "ocr/recognition": "OCR, recognition",
};

const kindOf = ({ task, type }) => t(KINDS[`${task}/${type}`] ?? `${task}/${type}`);

/** Show the server's state: how it is, its workers and their models. */
export function show(status) {
  const parts = [status.trouble ?? t("well; up for {0}", duration(Date.now() / 1000 - status.started_at))];
  if (status.restarts) parts.push(t("{0} worker restarts", status.restarts));
  say(byId("state"), parts.join(" · "), status.trouble !== null);
  const none = { pid: 0, none: true, models: [] };
  const workers = status.workers.length ? status.workers : [none];
  keep(byId("workers"), workers, ({ pid }) => String(pid), createWorker, updateWorker);
  keep(byId("substitutions"), status.substitutions, String, () => make("li"), (li, text) => (li.textContent = text));
}

function createWorker() {
  const where = make("p", {}, make("span", { className: "where" }), " ", make("span"));
  return make("div", { className: "worker" }, where, make("p"), make("ul"), make("ul", { className: "bad" }));
}

function updateWorker(element, worker) {
  const [where, state, list, failures] = element.children;
  if (worker.none) {
    where.lastChild.textContent = t("No worker is running: it starts with the next request.");
    return;
  }
  const [what] = worker.engine.split(":"); // what follows says why
  where.firstChild.textContent = /cuda|gpu/i.test(what) ? "GPU" : "CPU";
  where.lastChild.textContent = worker.engine;
  const parts = [t("worker {0}, device {1}", worker.pid, worker.device_id), bytes(worker.memory_bytes)];
  if (worker.vram_bytes !== null) parts.push(`${t("GPU memory")} ${bytes(worker.vram_bytes)}`);
  if (worker.loading_s >= 1) parts.push(t("loading for {0} s", worker.loading_s.toFixed(0)));
  if (!worker.models.length) parts.push(t("no model yet"));
  state.textContent = parts.join(" · ");
  const keyOf = ({ task, type, name }) => `${task}/${type}/${name}`;
  keep(list, worker.models, keyOf, createModel, updateModel);
  keep(failures, worker.failures, keyOf, () => make("li"), tellFailure);
}

function tellFailure(element, failure) {
  const at = new Date(1000 * failure.at).toLocaleTimeString();
  element.textContent = `${at} ${failure.name} (${kindOf(failure)}): ${failure.detail}`;
}

function createModel(model) {
  const button = make("button", { className: "plain" }, t("Unload"));
  button.addEventListener("click", () => act("unload", model, button));
  const chips = Array.from({ length: 5 }, () => make("span", { className: "chip" }));
  const name = make("strong", {}, model.name);
  return make("li", { className: "model" }, name, ...chips, make("span", { className: "room" }), button);
}

function updateModel(element, model) {
  const [kind, provider, size, use, stays] = element.querySelectorAll(".chip");
  kind.textContent = kindOf(model);
  provider.textContent = model.provider;
  size.textContent = bytes(model.bytes);
  use.textContent = t("in use");
  use.hidden = !model.in_use;
  stays.textContent = t("stays");
  stays.hidden = !model.stays;
}

const DOING = { load: "Loading {0}: this may download it first", unload: "Unloading {0}" };
const DONE = { load: "Loaded {0}", unload: "Unloaded {0}" };

async function act(action, model, button) {
  const said = byId("said");
  const what = `${model.name} (${kindOf(model)})`;
  button.disabled = true;
  say(said, t(DOING[action], what));
  try {
    await change(action, model);
    say(said, t(DONE[action], what));
  } catch (error) {
    say(said, error.message, true);
  } finally {
    button.disabled = false;
  }
}

/** Fill the form to preload with what may be chosen, and let it work. */
export function offerModels(known) {
  const kind = byId("kind");
  for (const [task, { types }] of Object.entries(known))
    for (const type of types) kind.append(make("option", { value: `${task}/${type}` }, kindOf({ task, type })));
  const suggest = () => byId("names").replaceChildren(...options(known[kind.value.split("/")[0]].names));
  kind.addEventListener("change", suggest);
  suggest();
  byId("preload").addEventListener("submit", (event) => {
    event.preventDefault();
    const [task, type] = kind.value.split("/");
    act("load", { task, type, name: byId("name").value.trim() }, event.submitter);
  });
}

/** Return the options of a list of names, those on disk marked. */
export function options(names) {
  return names.map(({ name, here }) =>
    make("option", { value: name, label: `${name} (${here ? t("on disk") : t("to be downloaded")})` }),
  );
}
