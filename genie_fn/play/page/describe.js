// What a world's description becomes: its buttons, and sentences about it.

import { NO_KEY, canonical, glyph } from "./controls.js";

const ARROWS = [["LEFT", "←", "Left"], ["UP", "↑", "Up, jump"], ["DOWN", "↓", "Down"], ["RIGHT", "→", "Right"]];

/** The key of the n-th action: 1 to 9, 0, then the same with shift. */
const actionKey = (n) => (n < 20 ? `${n < 10 ? "" : "⇧"}${(n + 1) % 10}` : "");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** "coinrun-demo: 64×64 pixels, 8×8 tokens of 1,024 codes, 6 actions". */
export function describeWorld({ run, height, width, grid, codes, actions, kind }) {
  const found = kind === "latent" ? "actions it found by itself" : "actions";
  const tokens = `${grid[0]}×${grid[1]} tokens of ${codes.toLocaleString("en")} codes`;
  return `${run}: ${width}×${height} pixels, ${tokens}, ${actions} ${found}`;
}

/** How far the game keys can be trusted. */
export function describeMap({ kind, map, names }) {
  if (kind === "true") return "This world was trained on the game's own actions: every key is what it says.";
  if (!names.length) return "The actions have no names: nothing but the video was seen. Try them out.";
  if (!map) return "The arrow keys do nothing in this world until evaluate.py has measured what they mean in it.";
  const [right, chance] = [map.agreement, map.chance].map((share) => Math.round(share * 100));
  const better = right > chance ? "hardly" : "no";
  const worth = right - chance < 10 ? ` That is ${better} better, so do not expect much of the arrows.` : "";
  const told = `From the action that the network sees, the real key is told right in ${right} of 100 cases`;
  return `The arrow keys are a measured guess. ${told}; naming the commonest key is right in ${chance}.${worth}`;
}

/** The real actions that lead to latent action `action`, as arrows. */
function meanings({ map, names, kind }, action) {
  if (kind === "true") return glyph(names[action] ?? "");
  if (!map) return "";
  const glyphs = map.to_latent.flatMap((latent, real) => (latent === action ? [glyph(names[real])] : []));
  const arrows = glyphs.filter((text) => !/^[A-Za-z]/.test(text)); // and not the letters, which few games use
  return [...arrows, ...(glyphs.includes(NO_KEY) ? [NO_KEY] : [])].join(" ");
}

/** One large button per action; `wire(button, action)` makes it work. */
export function buildActions(place, world, wire) {
  const buttons = Array.from({ length: world.actions }, (_, action) => {
    const meaning = meanings(world, action), key = actionKey(action);
    const named = world.kind === "true" && meaning;
    const title = named ? meaning : String(action + 1), below = named ? "" : meaning;
    const button = element("button", { type: "button", className: "pad" }, element("b", {}, title));
    if (below) button.append(element("small", {}, below));
    if (key !== title) button.append(element("kbd", {}, key)); // the number of an action is its key, too
    button.dataset.action = action;
    const spoken = named ? world.names[action] : `Action ${title}${below && `, which ${below} leads to`}`;
    button.setAttribute("aria-label", spoken);
    if (key) button.setAttribute("aria-keyshortcuts", key.replace("⇧", "Shift+"));
    wire(button, action);
    return button;
  });
  place.classList.toggle("many", buttons.length > 8);
  place.replaceChildren(...buttons);
}

/** The arrow keys that occur in the names of the world's real actions. */
export function buildArrows(place, names, wire) {
  const used = new Set(names.flatMap((name) => canonical(name).split("+")));
  const shown = ARROWS.filter(([direction]) => used.has(direction));
  place.hidden = !shown.length;
  place.replaceChildren(
    ...shown.map(([direction, arrow, label]) => {
      const button = element("button", { type: "button", className: "pad" }, element("b", {}, arrow));
      button.dataset.direction = direction;
      button.setAttribute("aria-label", label);
      if (direction === "UP") button.append(element("kbd", {}, "space"));
      wire(button, direction);
      return button;
    }),
  );
}

/** The contingency table of the map: how often each real action went with each latent one. */
export function buildTable(place, { map, names }) {
  place.hidden = !map;
  if (!map) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "real key"));
  map.table[0].forEach((_, latent) => head.append(element("th", { scope: "col" }, latent + 1)));
  const rows = map.table.flatMap((counts, real) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (!total) return []; // a key that was never pressed
    const row = element("tr", {}, element("th", { scope: "row" }, names[real]));
    counts.forEach((count, latent) => {
      const cell = element("td", { title: `${count} of ${total}` }, `${Math.round((100 * count) / total)} %`);
      cell.classList.toggle("mapped", latent === map.to_latent[real]);
      row.append(cell);
    });
    return [row];
  });
  const meaning = "Of the transitions with each real key, the share that the network takes for each of its actions";
  const caption = element("caption", {}, meaning);
  place.querySelector(".scroll").replaceChildren(
    element("table", {}, caption, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

/** The list in the help: [keys, what they do]. */
export function buildHelp(place, rows) {
  place.replaceChildren(
    ...rows.map(([keys, text]) => {
      const term = element("dt");
      keys.forEach((key) => term.append(element("kbd", {}, key), " "));
      return element("div", {}, term, element("dd", {}, text));
    }),
  );
}
