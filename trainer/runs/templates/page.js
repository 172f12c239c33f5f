"use strict";
/* What a page does beyond what it says: it follows the runs, filters and sorts its table at once, and counts what is ticked. */
{
  const { events, charts: address, now } = document.body.dataset;
  const live = document.getElementById("live"), said = document.getElementById("said");
  const QUIET_MS = 45_000; // the server says every 15 s that it is there
  const SAID_MS = 30_000; // between words on a run's progress: a reader of the screen is not to be interrupted at each step

  /** Follow the runs while the page is in sight: a browser has few connections to one server, and each follower takes one. */
  function follow() {
    let source = null, asking = false, again = false, heard = 0, told = -Infinity;
    document.addEventListener("visibilitychange", attend);
    setInterval(() => { if (source && performance.now() - heard > QUIET_MS) tell("The server has said nothing for a while; what is shown may be old."); }, 5000);
    attend();
    function attend() {
      if (document.hidden) { source?.close(); source = null; tell("Paused; what is shown may be old."); return; }
      if (source) return;
      heard = performance.now();
      source = new EventSource(events);
      listen(source);
    }
    function listen(source) {
      source.addEventListener("open", () => { heard = performance.now(); tell("Live."); });
      source.addEventListener("error", () => tell("The connection is lost; what is shown may be old."));
      source.addEventListener("beat", () => { heard = performance.now(); if (/old\.$/.test(live.textContent)) tell("Live."); });
      source.addEventListener("message", ({ data }) => {
        heard = performance.now();
        const news = JSON.parse(data);
        announce(news.runs);
        for (const run of news.runs) show(run);
        const unread = document.getElementById("unread");
        if (unread) {
          unread.hidden = !news.unread;
          if (news.unread) unread.firstElementChild.textContent = news.unread;
        }
        if (news.appeared.length) tell(`New: ${news.appeared.join(", ")}. Reload to see them.`);
        if (address && news.runs.length) redraw();
      });
    }
    /** For those who do not see the cells change: other states at once, on a run's own page its step now and then. */
    function announce(runs) {
      const changed = runs.filter((run) => { const shown = cellOf(run.name, "state"); return shown && shown.textContent.trim() !== run.state; });
      if (changed.length) said.textContent = changed.map((run) => `${run.name} is ${run.state} now.`).join(" ");
      else if (address && runs.length && performance.now() - told > SAID_MS) {
        told = performance.now();
        said.textContent = `Step ${runs[0].cells.find(({ key }) => key === "step").text}.`;
      }
    }
    async function redraw() {
      if (asking) { again = true; return; }
      asking = true;
      try {
        const answer = await fetch(address);
        if (answer.ok) for (const { name, numbers } of await answer.json()) charts.update(name, numbers);
        else tell(`The server answers ${answer.status} for the curves; they may be old.`);
      } catch { tell("The server does not answer; what is shown may be old."); }
      asking = false;
      if (again) { again = false; redraw(); }
    }
  }

  const tell = (text) => { if (live.textContent !== text) live.textContent = text; };
  const cellOf = (name, key) => (address && key === "state" ? document.querySelector('[data-fact="state"]')
    : document.querySelector(`[data-run="${CSS.escape(name)}"] [data-cell="${CSS.escape(key)}"] span`));

  /** New cells of a run, wherever the page has them. */
  function show(run) {
    for (const place of document.querySelectorAll(`[data-run="${CSS.escape(run.name)}"]`)) {
      for (const cell of run.cells) {
        const shown = place.querySelector(`[data-cell="${CSS.escape(cell.key)}"]`);
        if (!shown) continue;
        shown.className = cell.kind;
        shown.dataset.order = cell.order;
        if (cell.at != null) shown.dataset.at = cell.at;
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

  /** What was 5 s ago when the page was made is not 5 s ago for ever. By the server's clock, which may not be this machine's. */
  const ahead = Date.now() / 1000 - Number(now);
  const two = (number) => String(number).padStart(2, "0");
  function duration(seconds) {
    const whole = Math.max(0, Math.round(seconds)), minutes = Math.floor(whole / 60);
    return whole < 60 ? `${whole} s` : whole < 3600 ? `${minutes} min ${two(whole % 60)} s` : `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
  }
  function age() {
    if (document.hidden) return;
    for (const cell of document.querySelectorAll("[data-at]")) {
      const text = `${duration(Date.now() / 1000 - ahead - Number(cell.dataset.at))} ago`, shown = cell.querySelector("span");
      if (shown.textContent !== text) shown.textContent = text;
    }
  }

  const table = document.querySelector("table.runs"), body = table?.tBodies[0];
  const filter = document.querySelector("[data-filter]");
  const nameOf = (row) => row.querySelector('th[scope="row"]').textContent.toLowerCase();
  filter?.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of body?.rows ?? []) left += !(row.hidden = !words.every((word) => nameOf(row).includes(word)));
    if (said) said.textContent = `${left} of ${body?.rows.length ?? 0} runs are shown.`;
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
  if (events) { follow(); setInterval(age, 5000); }
}
