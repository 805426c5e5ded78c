// Which action the player wants now: keys and buttons that are held, a timer, and one remembered tap.

const HOLD = 220; // ms that a key is held before it repeats, so that a tap is exactly one frame
const CLICK = 500; // ms within which a browser reports the end of a touch as a click

const ARROWS = { LEFT: "←", RIGHT: "→", UP: "↑", DOWN: "↓" };
const DIAGONALS = { "LEFT+UP": "↖", "RIGHT+UP": "↗", "LEFT+DOWN": "↙", "RIGHT+DOWN": "↘" };
export const NO_KEY = "no\u00a0key";
const GLYPHS = { ...ARROWS, ...DIAGONALS, NOOP: NO_KEY };

/** One spelling per combination, as for "JUMP+RIGHT" and "RIGHT+UP": left or right first, then up or down. */
export function canonical(name) {
  const parts = name.toUpperCase().split("+").map((part) => (part === "JUMP" ? "UP" : part));
  return parts.sort((a, b) => /^(UP|DOWN)$/.test(a) - /^(UP|DOWN)$/.test(b)).join("+");
}

/** A recorded action as a symbol: an arrow, "no key", or its name. */
export const glyph = (name) => GLYPHS[canonical(name)] ?? name;

/** The request of the button of action `action`: in a world of recorded actions, a recorded one. */
export const choice = ({ kind }, action) => (kind === "recorded" ? { recorded: action } : { action });

/** The request of the n-th key that `keyNames` lists. */
export const keyChoice = ({ keys }, n) =>
  Object.keys(keys).length ? { action: Object.values(keys)[n] } : { recorded: n };

/** The number of the key name that the held directions combine to, or the nearest that exists; -1 if none. */
export function recordedAction(directions, names) {
  const both = (a, b) => (directions.has(a) === directions.has(b) ? "" : directions.has(a) ? a : b);
  const across = both("LEFT", "RIGHT"), along = both("UP", "DOWN");
  const known = names.map(canonical);
  for (const name of [[across, along].filter(Boolean).join("+"), across, along, "NOOP"]) {
    if (name && known.includes(name)) return known.indexOf(name);
  }
  return -1;
}

/**
 * The player's input. `ready()` says whether the last frame has arrived, `send(choice)` requests the next with
 * {action} or {recorded}, `names()` lists the names of the game keys, `key(n)` is the choice of the n-th of these, and
 * `idle()` that without a key.
 */
export function player({ ready, send, names, key, idle }) {
  const held = new Map(); // source of the press → {action}, {recorded} or {direction}
  let tap = null, pressedAt = 0, sentAt = 0, interval = 0, running = false, timer = 0;

  function wanted() {
    const presses = [...held.values()];
    const button = presses.findLast((press) => !press.direction);
    if (button) return button;
    const directions = new Set(presses.map((press) => press.direction));
    const recorded = presses.length ? recordedAction(directions, names()) : -1;
    if (recorded >= 0) return key(recorded);
    return running ? idle() : null;
  }

  /** Request a frame if one is wanted and due. Called after everything that may change either. */
  function pump() {
    clearTimeout(timer);
    if (!ready() || !(tap || held.size || running)) return;
    const now = performance.now();
    const wait = Math.max(sentAt + interval, tap || running ? 0 : pressedAt + HOLD) - now;
    if (wait > 1) return void (timer = setTimeout(pump, wait));
    const choice = tap ?? wanted();
    tap = null;
    sentAt = now;
    if (choice) send(choice);
  }

  function press(source, what) {
    if (!held.size) pressedAt = performance.now();
    held.set(source, what);
    tap = wanted(); // even if the key is released before the requested frame arrives
    pump();
  }

  function release(source) {
    held.delete(source);
  }

  return {
    press,
    release,
    pump,
    tap(what) {
      press("tap", what);
      release("tap");
    },
    releaseAll() {
      held.clear();
      tap = null;
    },
    run(on) {
      running = on;
      pump();
    },
    limit(perSecond) {
      interval = perSecond ? 1000 / perSecond : 0;
    },
    get running() {
      return running;
    },
  };
}

/** Make `button` a pad: pressed while a finger or the mouse is on it, one tap from keyboard or assistive technology. */
export function pad(button, what, input) {
  let touched = -Infinity; // when a pointer last did something here: the click that follows is not another tap
  button.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId);
    touched = Infinity;
    input.press(`pointer ${event.pointerId}`, what);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    button.addEventListener(end, (event) => {
      touched = event.timeStamp;
      input.release(`pointer ${event.pointerId}`);
    });
  }
  button.addEventListener("click", (event) => {
    if (event.timeStamp - touched > CLICK) input.tap(what);
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press is a held button
}
