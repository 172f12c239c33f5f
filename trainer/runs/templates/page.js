"use strict";
/* What a page does beyond what it says: it follows the runs, filters and sorts its table at once, and counts what is ticked. */
{
  const { events, charts: address } = document.body.dataset;
  const live = document.getElementById("live");

  /** Follow the runs while the page is in sight: a browser has few connections to one server, and each follower takes one. */
  function follow() {
    let source = null, asking = false, again = false;
    document.addEventListener("visibilitychange", attend);
    attend();
    function attend() {
      if (document.hidden) { source?.close(); source = null; return; }
      if (source) return;
      source = new EventSource(events);
      listen(source);
    }
    function listen(source) {
      source.addEventListener("open", () => { live.textContent = "Live."; });
      source.addEventListener("error", () => { live.textContent = "The connection is lost; what is shown may be old."; });
      source.addEventListener("message", ({ data }) => {
        const told = JSON.parse(data);
        for (const run of told.runs) show(run);
        const unread = document.getElementById("unread");
        if (unread) {
          unread.hidden = !told.unread;
          if (told.unread) unread.firstElementChild.textContent = told.unread;
        }
        if (told.appeared.length) live.textContent = `New: ${told.appeared.join(", ")}. Reload to see them.`;
        if (address && told.runs.length) redraw();
      });
    }
    async function redraw() {
      if (asking) { again = true; return; }
      asking = true;
      try {
        const answer = await fetch(address);
        if (answer.ok) for (const { name, numbers } of await answer.json()) charts.update(name, numbers);
      } catch { live.textContent = "The server does not answer; what is shown may be old."; }
      asking = false;
      if (again) { again = false; redraw(); }
    }
  }

  /** New cells of a run, wherever the page has them. */
  function show(run) {
    for (const place of document.querySelectorAll(`[data-run="${CSS.escape(run.name)}"]`)) {
      for (const cell of run.cells) {
        const shown = place.querySelector(`[data-cell="${CSS.escape(cell.key)}"]`);
        if (!shown) continue;
        shown.className = cell.kind;
        shown.dataset.order = cell.order;
        shown.querySelector("span").textContent = cell.text;
        let fine = shown.querySelector("small");
        if (!fine && cell.fine) shown.append(fine = document.createElement("small"));
        if (fine) fine.textContent = cell.fine;
        if (cell.key === "state") shown.title = run.sentence;
      }
    }
    for (const [name, text] of [["state", run.state], ["sentence", run.sentence]]) {
      const fact = document.querySelector(`[data-fact="${name}"]`);
      if (fact) { fact.textContent = text; if (name === "state") fact.className = `state ${text}`; }
    }
  }

  const table = document.querySelector("table.runs"), body = table?.tBodies[0];
  const filter = document.querySelector("[data-filter]");
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of body?.rows ?? []) row.hidden = !words.every((word) => row.cells[row.cells[0].tagName === "TD" ? 1 : 0].textContent.toLowerCase().includes(word));
  });

  const order = (row, at) => { const text = row.cells[at].dataset.order ?? row.cells[at].textContent; return text === "" || isNaN(text) ? (text.endsWith("inf") ? -Infinity : text) : Number(text); };
  for (const link of table?.querySelectorAll("a[data-sort]") ?? []) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const head = link.closest("th"), at = head.cellIndex, falling = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.tHead.rows[0].cells) { other.removeAttribute("aria-sort"); other.querySelector("a span")?.remove(); }
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const mark = document.createElement("span");
      mark.ariaHidden = "true";
      mark.textContent = falling ? " ▼" : " ▲";
      link.append(mark);
      const sign = falling ? -1 : 1;
      body.append(...[...body.rows].sort((a, b) => { const [x, y] = [order(a, at), order(b, at)]; return sign * (x < y ? -1 : x > y ? 1 : 0); }));
    });
  }

  const ticked = document.querySelector("[data-ticked]");
  body?.addEventListener("change", () => {
    if (ticked) ticked.textContent = `${body.querySelectorAll("input:checked").length} ticked.`;
  });
  if (events) follow();
}
