"use strict";
/* What the page does beyond what it says: it follows the looks, and draws their curves again. Nothing is written as markup. */
{
  const live = document.getElementById("live");
  const QUIET_MS = 45_000; // the server says every 15 s at least that it is there
  let source = null, asking = false, again = false, heard = 0;

  /** A browser has few connections to one server: a page out of sight takes none. */
  function attend() {
    if (document.hidden) { source?.close(); source = null; tell(live, "Paused; what is shown may be old."); return; }
    if (source) return;
    heard = performance.now();
    source = new EventSource("/events");
    source.addEventListener("open", hear);
    source.addEventListener("error", () => tell(live, "The connection is lost; what is shown may be old."));
    source.addEventListener("beat", hear);
    source.addEventListener("message", ({ data }) => { hear(); show(JSON.parse(data)); });
  }

  function hear() { heard = performance.now(); tell(live, "Live."); }

  /** Written only where it is another text, so that what reads aloud is not told the same again. */
  function tell(place, text) { if (place.textContent !== text) place.textContent = text; }

  function show(look) {
    for (const name of ["summary", "at", "over"]) tell(document.getElementById(name), look[name]);
    look.rows.forEach((row, n) => {
      const line = document.querySelector(`[data-row="${n}"]`);
      tell(line.querySelector("[data-name]"), row.name);
      fill(line, "state", { text: row.state, fine: row.remarks.join("\n"), kind: row.kind });
      for (const [key, cell] of Object.entries(row.cells)) fill(line, key, cell);
    });
    redraw();
  }

  function fill(line, key, cell) {
    const place = line.querySelector(`[data-cell="${key}"]`);
    place.className = cell.kind;
    tell(place.querySelector("span"), cell.text);
    tell(place.querySelector("small"), cell.fine);
  }

  async function redraw() {
    if (asking) { again = true; return; }
    asking = true;
    try {
      const answer = await fetch("/charts");
      if (answer.ok) for (const { name, numbers } of await answer.json()) charts.update(name, numbers);
    } catch { tell(live, "The server does not answer; what is shown may be old."); }
    asking = false;
    if (again) { again = false; redraw(); }
  }

  document.addEventListener("visibilitychange", attend);
  setInterval(() => { if (source && performance.now() - heard > QUIET_MS) tell(live, "The server has said nothing for a while; what is shown may be old."); }, 5000);
  attend();
}
