// What the page asks the server. All addresses are relative, so that it works below an access token too.

import { t } from "./words.js";

/** An answer that is an error; its message is what the server says. */
export class Refused extends Error {}

async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Refused(t("the network broke off"));
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(explain(body.detail) ?? `HTTP ${response.status}`);
  return { body, timing: response.headers.get("Server-Timing") };
}

function explain(detail) {
  if (typeof detail === "string") return detail;
  return Array.isArray(detail) ? detail.map((part) => part.msg).join("; ") : undefined;
}

export const status = async () => (await ask("ui/status")).body;

export const models = async () => (await ask("ui/models")).body;

/** Load or unload a model; returns when it is done. */
export async function change(action, { task, type, name }) {
  const body = JSON.stringify({ action, task, type, name });
  await ask("ui/models", { method: "POST", headers: { "Content-Type": "application/json" }, body });
}

/** Ask for everything in `entries` of a photo or a text, as Immich does; return the answer and the time it took. */
export async function predict(entries, { image, text }, signal) {
  const form = new FormData();
  form.set("entries", JSON.stringify(entries));
  if (image) form.set("image", image, "blob");
  else form.set("text", text);
  const start = performance.now();
  const { body, timing } = await ask("predict", { method: "POST", body: form, signal });
  return { body, took: performance.now() - start, stages: stages(timing) };
}

/** Read a `Server-Timing` header: {task: {stage: milliseconds}}. */
function stages(header) {
  const tasks = {};
  for (const [, task, stage, value] of (header ?? "").matchAll(/([\w-]+)\.([\w-]+);dur=([\d.]+)/g))
    (tasks[task] ??= {})[stage] = Number(value);
  return tasks;
}
