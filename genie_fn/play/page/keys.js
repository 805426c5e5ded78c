// What a key stands for, on every keyboard layout: a game key, an action, or the name of a command's key.

/** The game keys by what the browser calls them. Jumping is up. */
const GAME_KEYS = { ArrowLeft: "LEFT", ArrowRight: "RIGHT", ArrowUp: "UP", ArrowDown: "DOWN", Space: "UP" };

/** Characters of other scripts. Those of scripts in common, such as digits and most punctuation, are on all layouts. */
const OTHER_SCRIPT = /^[^\p{scx=Common}\p{scx=Latin}]$/u;

/** What a US layout has on the keys beside letters that are commands. */
const PUNCTUATION = { BracketLeft: "[", BracketRight: "]", Minus: "-", Equal: "=", Comma: ",", Period: ".", Slash: "?" };

/** The command's key at the place `code` of a US layout; "" if none is there. */
export const atPlace = (code) => /^Key([A-Z])$/.exec(code)?.[1] ?? PUNCTUATION[code] ?? "";

/** Whether `key`, as a browser names it, is a character that no Latin layout has. */
export const isForeign = (key) => OTHER_SCRIPT.test(key);

/** Whether this key press belongs to the browser or to an input method that composes a character. */
export function isReserved(event) {
  const chord = event.ctrlKey || event.metaKey || event.altKey;
  return event.isComposing || event.key === "Dead" || (chord && !event.getModifierState("AltGraph"));
}

/** The game key of a key press, if any: an arrow key, also one of the number pad, or the space bar. */
export const directionOf = ({ code, key }) => GAME_KEYS[code] ?? GAME_KEYS[key];

/**
 * The action, of `actions`, that a key press selects: -1 if none. A digit's key counts whatever its character is (on
 * a French layout "&"); Shift adds ten, or, where there are not so many, may be what types the digit.
 */
export function actionOf(event, actions) {
  const { code, key, shiftKey } = event;
  const [, pad, digit] = /^(Digit|Numpad)(\d)$/.exec(code) ?? [];
  const types = /^\d$/.test(key);
  if (!digit || event.getModifierState("AltGraph") || (pad === "Numpad" && !types)) return -1;
  const first = (Number(digit) + 9) % 10;
  if (shiftKey && first + 10 < actions) return first + 10;
  return first < actions && (!shiftKey || types) ? first : -1;
}

/**
 * The name of a command's key, in capitals: the character that is typed, without the accent that a dead key gave it.
 * Where the layout has another script, or an input method hides the character, it is the key at the same place of a
 * US layout.
 */
export function commandKey(event) {
  const { code, key } = event;
  if (isForeign(key) || key === "Process" || key === "Unidentified") return atPlace(code);
  const typed = key.normalize("NFKC").toUpperCase();
  const accented = code.startsWith("Key") && !event.getModifierState("AltGraph");
  return key.length === 1 && accented ? typed.normalize("NFD")[0] : typed;
}
