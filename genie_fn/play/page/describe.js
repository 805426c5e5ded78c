// The buttons of a world, and texts about it, from the server's description.

import { NO_KEY, canonical, glyph } from "./controls.js";

const ARROWS = [["LEFT", "←", "Left"], ["UP", "↑", "Up, jump"], ["DOWN", "↓", "Down"], ["RIGHT", "→", "Right"]];

/** The key of the n-th action: 1 to 9, 0, then the same with shift. */
const actionKey = (n) => (n < 20 ? `${n < 10 ? "" : "⇧"}${(n + 1) % 10}` : "");

function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}

const SVG = "http://www.w3.org/2000/svg";
const SIDE = 32; // of the picture of a motion
const SHORTEST = 0.4; // an arrow, as a share of the longest

/** The agent's mean motion under an action: an arrow, the longer the faster, or a dot for none. */
function drawMotion({ motion, still }, fastest) {
  const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", `${-SIDE / 2} ${-SIDE / 2} ${SIDE} ${SIDE}`);
  svg.setAttribute("class", "motion");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", still ? "M0 0h0" : arrowPath(...motion, fastest));
  if (still) path.setAttribute("class", "dot");
  svg.append(path);
  return svg;
}

/** The path of an arrow through the middle. */
function arrowPath(dx, dy, fastest) {
  const speed = Math.hypot(dx, dy), angle = Math.atan2(dy, dx);
  const half = (SIDE / 2 - 2) * Math.max(SHORTEST, speed / fastest);
  const at = (radius, turned) =>
    `${(radius * Math.cos(angle + turned)).toFixed(1)} ${(radius * Math.sin(angle + turned)).toFixed(1)}`;
  const head = Math.min(7, half), wing = 0.7 * head;
  const side = Math.atan2(wing, half - head), reach = Math.hypot(wing, half - head);
  return `M${at(-half, 0)}L${at(half, 0)}M${at(reach, side)}L${at(half, 0)}L${at(reach, -side)}`;
}

/** "coinrun-demo: 64×64 pixels, 8×8 tokens of 1,024 × 1,024 codes, 10 latent actions"; a token's code is one of
 * each codebook. */
export function describeWorld({ name, height, width, grid, codes, occurring, kind }) {
  const inferred = kind === "latent" ? "latent actions" : "actions";
  const choices = codes.map((size) => size.toLocaleString("en")).join(" × ");
  const tokens = `${grid[0]}×${grid[1]} tokens of ${choices} codes`;
  return `${name}: ${width}×${height} pixels, ${tokens}, ${occurring.length} ${inferred}`;
}

/** How reliable the game keys are. */
export function describeMap({ kind, map, names, by_motion }) {
  if (kind === "recorded") return "This world was trained on recorded actions: the arrow keys are those of the game.";
  if (by_motion) {
    return "Each arrow key selects an action that moves the agent that way in recorded video.";
  }
  if (!names.length) return "The actions have no names, because this world was trained on video alone.";
  if (!map) return "The arrow keys do nothing in this world until evaluate.py has measured its map of actions.";
  const [right, chance] = [map.agreement, map.chance].map((share) => Math.round(share * 100));
  const better = right > chance ? "hardly" : "not";
  const warning = right - chance < 10 ? ` This is ${better} better than chance, so the arrow keys are unreliable.` : "";
  const accuracy = `The latent action predicts the recorded key in ${right} % of cases`;
  const baseline = `always predicting the most frequent key is right in ${chance} %`;
  return `Each arrow key stands for the latent action that it occurred with. ${accuracy}; ${baseline}.${warning}`;
}

/** The keys that select `action`, as arrows. */
function meanings({ map, names, kind, keys }, action) {
  if (kind === "recorded") return glyph(names[action] ?? "");
  const unmapped = Object.entries(keys);
  const selecting = unmapped.length ? unmapped : (map?.to_latent ?? []).map((latent, i) => [names[i], latent]);
  const glyphs = selecting.flatMap(([name, latent]) => (latent === action ? [glyph(name)] : []));
  const arrows = glyphs.filter((text) => !/^[A-Za-z]/.test(text)); // and not the letters, which few games use
  return [...arrows, ...(glyphs.includes(NO_KEY) ? [NO_KEY] : [])].join(" ");
}

/** One large button per action that occurs in the world's data; `wire(button, action)` makes it work. */
export function buildActions(place, world, wire) {
  const fastest = Math.max(...(world.effects ?? []).map(({ motion }) => Math.hypot(...(motion ?? []))));
  const buttons = world.occurring.map((action) => {
    const meaning = meanings(world, action), key = actionKey(action);
    const named = world.kind === "recorded" && meaning;
    const title = named ? meaning : String(action + 1), below = named ? "" : meaning;
    const effect = world.effects?.[action];
    const head = element("span", { className: "head" });
    head.append(element("b", { className: title.length > 2 ? "word" : "" }, title));
    if (effect?.motion) head.append(drawMotion(effect, fastest));
    const button = element("button", { type: "button", className: "pad" }, head);
    if (below) button.append(element("small", {}, below));
    if (key !== title) button.append(element("kbd", {}, key)); // the number of an action is its key, too
    button.dataset.action = action;
    const described = `Action ${title}${below && `, for ${below}`}${effect ? `: ${effect.text}` : ""}`;
    const spoken = named ? world.names[action] : described;
    button.setAttribute("aria-label", spoken);
    if (key) button.setAttribute("aria-keyshortcuts", key.replace("⇧", "Shift+"));
    wire(button, action);
    return button;
  });
  place.classList.toggle("many", buttons.length > 8);
  place.replaceChildren(...buttons);
}

/** The arrow keys that occur in the names of the world's recorded actions. */
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

/** The contingency table of the map: how often each recorded action occurred with each latent one. */
export function buildTable(place, { map, names }) {
  place.hidden = !map;
  if (!map) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "recorded key"));
  map.table[0].forEach((_, latent) => head.append(element("th", { scope: "col" }, latent + 1)));
  const rows = map.table.flatMap((counts, recorded) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (!total) return []; // a key that was never pressed
    const row = element("tr", {}, element("th", { scope: "row" }, names[recorded]));
    counts.forEach((count, latent) => {
      const cell = element("td", { title: `${count} of ${total}` }, `${Math.round((100 * count) / total)} %`);
      cell.classList.toggle("mapped", latent === map.to_latent[recorded]);
      row.append(cell);
    });
    return [row];
  });
  const text = "For each recorded key, the share of its transitions for which each latent action was inferred";
  const caption = element("caption", {}, text);
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
