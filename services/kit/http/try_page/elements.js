// Building blocks. Whatever the server says becomes text, never markup.

const byId = (id) => document.getElementById(id);

/** An element with properties (or attributes, where the name has a dash or is `role`) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** A number for people; the exact one is the element's `value`. */
function number(value, digits = 4) {
  const size = Math.abs(value);
  const rough = size !== 0 && (size < 0.001 || size >= 1e6) ? value.toExponential(3) : String(+value.toFixed(digits));
  return make("data", { value: String(value), title: String(value) }, rough.replace("-", "−"));
}

function milliseconds(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return value >= 100 ? `${Math.round(value)} ms` : `${+value.toFixed(1)} ms`;
}

/** How far a value is along a range; nothing where the range has no end or the value lies outside of it. */
function meter(value, [low, high], label) {
  if (low === null || high === null || !(low <= value && value <= high) || low === high) return "";
  const fill = make("span");
  fill.style.inlineSize = `${(100 * (value - low)) / (high - low)}%`;
  return make(
    "div",
    { className: "meter", role: "meter", "aria-label": label, "aria-valuemin": low, "aria-valuemax": high, "aria-valuenow": value },
    fill,
  );
}

function rangeText([low, high]) {
  if (low === null && high === null) return "unbounded";
  if (low === null) return `at most ${high}`;
  return high === null ? `at least ${low}` : `${low} to ${high}`;
}
