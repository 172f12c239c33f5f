// The pictures to send: chosen, dropped, pasted or drawn here.

const SENT_AS_THEY_ARE = { "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp" };

/** A file as it will be sent. What the service does not take is redrawn as PNG. Throws when it is no picture. */
async function readPicture(file) {
  const known = file.type in SENT_AS_THEY_ARE;
  const blob = known ? file : await redraw(file);
  const stem = (file.name || "picture").replace(/\.[^.]*$/, "");
  const name = known && file.name ? file.name : `${stem}.${SENT_AS_THEY_ARE[blob.type]}`;
  return { blob, name, mediaType: blob.type, isFile: known && !file.isDrawn, url: URL.createObjectURL(blob) };
}

async function redraw(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "What was given"} is not a picture this browser can read.`);
  }
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return toPng(canvas);
}

function toPng(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

const SAMPLE_PROMPT = 'a shop sign that says "FRESH BREAD" in red';

/** A picture for whoever has none at hand. */
async function drawSample(text) {
  const canvas = make("canvas", { width: 512, height: 320 });
  const pen = canvas.getContext("2d");
  const sky = pen.createLinearGradient(0, 0, 0, 320);
  sky.addColorStop(0, "#dfeaf5");
  sky.addColorStop(1, "#f7efe2");
  pen.fillStyle = sky;
  pen.fillRect(0, 0, 512, 320);
  pen.fillStyle = "#8a6f57";
  pen.fillRect(120, 20, 6, 80);
  pen.fillRect(386, 20, 6, 80);
  pen.fillStyle = "#fffdf8";
  pen.strokeStyle = "#8a6f57";
  pen.lineWidth = 6;
  pen.beginPath();
  pen.roundRect(44, 92, 424, 130, 16);
  pen.fill();
  pen.stroke();
  pen.fillStyle = "#d21f1f";
  pen.font = "bold 54px Arial, Helvetica, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, 256, 160, 380);
  const file = new File([await toPng(canvas)], `${text.toLowerCase().replace(" ", "_")}.png`, { type: "image/png" });
  file.isDrawn = true;
  return file;
}

/** A field that holds pictures. `onProblem` gets a sentence when something is no picture. */
class PictureField {
  constructor(place, { label, several, onProblem }) {
    this.pictures = [];
    this.several = several;
    this.onProblem = onProblem;
    this.input = make("input", { type: "file", accept: "image/*", multiple: several, className: "unseen" });
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = "";
    });
    this.hint = make("span", { className: "hint" }, "drop, paste or choose");
    this.list = make("ul", { className: "thumbs" });
    place.append(make("label", { className: "drop" }, this.input, make("b", {}, label), " ", this.hint), this.list);
  }

  async add(files) {
    // Copied, because the browser empties its own list when the event is over.
    for (const file of [...files]) {
      try {
        const picture = await readPicture(file);
        if (!this.several) this.clear();
        this.pictures.push(picture);
      } catch (error) {
        this.onProblem(error.message);
      }
    }
    this.show();
  }

  clear() {
    for (const picture of this.pictures) URL.revokeObjectURL(picture.url);
    this.pictures = [];
    this.show();
  }

  remove(picture) {
    URL.revokeObjectURL(picture.url);
    this.pictures = this.pictures.filter((other) => other !== picture);
    this.show();
    this.input.focus();
  }

  show() {
    this.list.replaceChildren(
      ...this.pictures.map((picture) => {
        const remove = make("button", { type: "button", "aria-label": `Remove ${picture.name}` }, "×");
        remove.addEventListener("click", () => this.remove(picture));
        return make("li", {}, make("img", { src: picture.url, alt: picture.name, title: picture.name }), remove);
      }),
    );
  }
}
