// Which action the player wants now: keys and buttons that are held, a clock that runs on, one remembered tap.

const HOLD = 220; // ms that a key is held before it repeats, so that a tap is exactly one frame
const CLICK = 500; // ms within which a browser reports the end of a touch as a click

/** The game keys by what the browser calls them. Jumping is up. */
export const GAME_KEYS = { ArrowLeft: "LEFT", ArrowRight: "RIGHT", ArrowUp: "UP", ArrowDown: "DOWN", Space: "UP" };
const ARROWS = { LEFT: "←", RIGHT: "→", UP: "↑", DOWN: "↓" };
const DIAGONALS = { "LEFT+UP": "↖", "RIGHT+UP": "↗", "LEFT+DOWN": "↙", "RIGHT+DOWN": "↘" };
export const NO_KEY = "no\u00a0key";
const GLYPHS = { ...ARROWS, ...DIAGONALS, NOOP: NO_KEY };

/** "JUMP+RIGHT" and "RIGHT+UP" are one thing: left or right first, then up or down. */
export function canonical(name) {
  const parts = name.toUpperCase().split("+").map((part) => (part === "JUMP" ? "UP" : part));
  return parts.sort((a, b) => /^(UP|DOWN)$/.test(a) - /^(UP|DOWN)$/.test(b)).join("+");
}

/** A real action as a person would draw it: an arrow, "no key", or its name. */
export const glyph = (name) => GLYPHS[canonical(name)] ?? name;

/** What a button of action `action` asks for: in a world of true actions, a real one. */
export const choice = ({ kind }, action) => (kind === "true" ? { real: action } : { action });

/** The number of the real action that the held directions make together, the nearest there is; -1 if none. */
export function realAction(directions, names) {
  const both = (a, b) => (directions.has(a) === directions.has(b) ? "" : directions.has(a) ? a : b);
  const across = both("LEFT", "RIGHT"), along = both("UP", "DOWN");
  const known = names.map(canonical);
  for (const name of [[across, along].filter(Boolean).join("+"), across, along, "NOOP"]) {
    if (name && known.includes(name)) return known.indexOf(name);
  }
  return -1;
}

/**
 * The player's wishes. `ready()` says whether the last frame is back, `send(choice)` asks for the next with
 * {action} or {real}, `names()` lists the real actions that keys can mean, `idle()` is the choice without a key.
 */
export function player({ ready, send, names, idle }) {
  const held = new Map(); // source of the press → {action}, {real} or {direction}
  let tap = null, pressedAt = 0, sentAt = 0, interval = 0, running = false, timer = 0;

  function wanted() {
    const presses = [...held.values()];
    const button = presses.findLast((press) => !press.direction);
    if (button) return button;
    const real = presses.length ? realAction(new Set(presses.map((press) => press.direction)), names()) : -1;
    return real >= 0 ? { real } : running ? idle() : null;
  }

  /** Ask for a frame if one is wanted and due. Called after everything that may change either. */
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
    tap = wanted(); // even if it is let go before the frame that is under way is back
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
export function pad(button, what, wishes) {
  let touched = -Infinity; // when a pointer last did something here: the click that follows is not another tap
  button.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId);
    touched = Infinity;
    wishes.press(`pointer ${event.pointerId}`, what);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    button.addEventListener(end, (event) => {
      touched = event.timeStamp;
      wishes.release(`pointer ${event.pointerId}`);
    });
  }
  button.addEventListener("click", (event) => {
    if (event.timeStamp - touched > CLICK) wishes.tap(what);
  });
  button.addEventListener("contextmenu", (event) => event.preventDefault()); // a long press is a held button
}
