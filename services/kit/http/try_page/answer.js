// What came back: scores, their parts, what was seen or said, and how long it took.

const BOX_COLOR = "#d6006c";

/** `offScale`: the components that are no part of the range, such as counts, which no bar can show. */
function showAnswer(place, { ms, body }, pictures, offScale) {
  const several = body.results.length > 1;
  const cards = body.results.map((result, n) => makeCard(result, pictures[n], body.scorer, several, offScale));
  const numbers = body.results.filter((result) => result.error === null || result.compute_ms > 0);
  const worst = (name) => milliseconds(Math.max(0, ...numbers.map((result) => result[name])));
  const times = make("dl", { className: "times" });
  const cached = body.results.filter((result) => result.cached).length;
  for (const [name, value] of [
    ["round trip", milliseconds(ms)],
    ["queue", worst("queue_ms")],
    ["compute", worst("compute_ms")],
    ["from the cache", body.results.length === 1 ? (cached ? "yes" : "no") : `${cached} of ${body.results.length}`],
  ]) {
    times.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  }
  place.replaceChildren(...cards, times);
}

function makeCard(result, picture, scorer, several, offScale) {
  const card = make("article", { className: several ? "card compact" : "card" });
  const words = make("div", { className: "words" });
  if (picture) {
    const canvas = make("canvas", { role: "img", "aria-label": picture.name });
    card.append(canvas);
    drawPicture(canvas, picture, boxesOf(result.details));
  }
  card.append(words);
  words.append(result.error === null ? scored(result, scorer, offScale) : failed(result.error));
  const details = detailsOf(result.details);
  if (details) words.append(details);
  return card;
}

function scored(result, scorer, offScale) {
  const block = make("div", { className: "scored" });
  const about = `${scorer.name}, ${rangeText(scorer.range)}, ${scorer.higher_is_better ? "higher" : "lower"} is better`;
  block.append(make("p", { className: "score" }, number(result.score)), meter(result.score, scorer.range, "score"));
  block.append(make("p", { className: "hint" }, about));
  const parts = Object.entries(result.components);
  if (parts.length) {
    const table = make("dl", { className: "parts" });
    for (const [name, value] of parts) {
      const bar = offScale.includes(name) ? "" : meter(value, scorer.range, name);
      table.append(make("dt", {}, name), make("dd", {}, bar, number(value)));
    }
    block.append(table);
  }
  return block;
}

function failed(error) {
  return make(
    "div",
    { className: "failed" },
    make("p", { className: "score" }, "no score"),
    make("p", {}, make("code", {}, error.code), " ", error.message),
  );
}

/** What is placed in the one image: its recognised `lines` or its `objects`; null where a reward gives neither. */
function placedOf(details) {
  const image = details?.images?.[0];
  if (image?.lines) return { title: "Read in the picture", rows: image.lines };
  return image?.objects ? { title: "Found in the picture", rows: image.objects } : null;
}

/** Its lines or objects: `[{text, confidence, box}]`; empty where there are none. */
function linesOf(details) {
  const rows = placedOf(details)?.rows;
  return Array.isArray(rows) ? rows.filter((line) => line && typeof line.text === "string") : [];
}

/** Each line's corners `[[x, y], ...]`; empty where they are not numbers. */
function boxesOf(details) {
  const isPoint = (point) => Array.isArray(point) && point.length === 2 && point.every(Number.isFinite);
  return linesOf(details).map(({ box }) => (Array.isArray(box) && box.every(isPoint) ? box : []));
}

const LEAST_SHOWN = 320; // pixels of a picture's longer side

/** The picture upright as the service reads it, boxes over it; each pixel of a small one becomes several. */
async function drawPicture(canvas, picture, boxes) {
  let image;
  try {
    image = await createImageBitmap(picture.blob);
  } catch {
    canvas.hidden = true; // the service, too, will have said that it cannot read it
    return;
  }
  const scale = Math.max(1, Math.floor(LEAST_SHOWN / Math.max(image.width, image.height)));
  canvas.width = image.width * scale;
  canvas.height = image.height * scale;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = false;
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const unit = Math.max(1, Math.max(canvas.width, canvas.height) / 320);
  boxes.forEach((box, n) => drawBox(pen, box.map(([x, y]) => [x * scale, y * scale]), n + 1, unit));
  canvas.dataset.scale = scale;
  canvas.dataset.boxes = boxes.length;
}

function drawBox(pen, box, label, unit) {
  if (!box.length) return;
  const outline = new Path2D();
  for (const [x, y] of box) outline.lineTo(x, y);
  outline.closePath();
  pen.lineJoin = "round";
  pen.strokeStyle = "#ffffffb0";
  pen.lineWidth = 3 * unit;
  pen.stroke(outline);
  pen.strokeStyle = BOX_COLOR;
  pen.lineWidth = 1.5 * unit;
  pen.stroke(outline);
  const side = 9 * unit;
  const [x, y] = [Math.min(...box.map((point) => point[0])), Math.min(...box.map((point) => point[1]))];
  const top = Math.max(0, y - side);
  pen.fillStyle = BOX_COLOR;
  pen.fillRect(x - 0.75 * unit, top, side, side);
  pen.fillStyle = "white";
  pen.font = `bold ${7 * unit}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(String(label), x - 0.75 * unit + side / 2, top + side / 2);
}

function detailsOf(details) {
  if (!details || !Object.keys(details).length) return null;
  const block = make("div", { className: "seen" });
  const lines = linesOf(details);
  const placed = placedOf(details);
  if (placed) {
    const list = make("ol", { className: "lines" });
    for (const line of lines) {
      const sure = typeof line.confidence === "number" ? `${Math.round(100 * line.confidence)} %` : "";
      list.append(make("li", {}, make("span", {}, line.text), make("span", { className: "hint" }, sure)));
    }
    block.append(make("h2", {}, placed.title), lines.length ? list : make("p", {}, "nothing"));
  }
  const rest = Object.entries(details).filter(([name]) => !(name === "images" && placed));
  if (rest.length) block.append(make("h2", {}, "Details"), tree(Object.fromEntries(rest)));
  return block;
}

/** Any JSON as elements: objects are definition lists, lists are lists, texts keep their line breaks. */
function tree(value) {
  if (Array.isArray(value)) {
    if (!value.length) return make("span", { className: "hint" }, "none");
    return make("ul", { className: "tree" }, ...value.map((each) => make("li", {}, tree(each))));
  }
  if (value !== null && typeof value === "object") {
    const list = make("dl", { className: "tree" });
    for (const [name, each] of Object.entries(value)) list.append(make("dt", {}, name), make("dd", {}, tree(each)));
    return list;
  }
  if (typeof value === "number") return number(value);
  return make("span", { className: "text" }, String(value));
}
