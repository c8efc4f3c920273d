// The page: asks for the server's state once a second while it is seen.

import { byId, say } from "./dom.js";
import { offerModels, show } from "./models.js";
import { takePhotos } from "./photo.js";
import { plot } from "./plots.js";
import { models, status } from "./server.js";
import { t, translate } from "./words.js";

const EVERY_MS = 1000;

let timer = null;

async function look() {
  timer = null;
  try {
    const now = await status();
    show(now);
    plot(now);
  } catch {
    say(byId("state"), t("no answer from the server"), true);
  }
  if (!document.hidden && timer === null) timer = setTimeout(look, EVERY_MS);
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  timer = document.hidden ? null : setTimeout(look, 0);
});

translate();
look();
try {
  const known = await models();
  offerModels(known);
  takePhotos(known);
} catch (error) {
  say(byId("said"), error.message, true);
}
