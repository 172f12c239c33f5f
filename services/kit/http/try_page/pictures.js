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

/** The pictures of a request as files; they are nowhere on this machine, so that the page offers to save them. */
function filesOf(refs, stem) {
  return refs.map((ref, n) => {
    const bytes = Uint8Array.from(atob(ref.data), (letter) => letter.charCodeAt(0));
    const name = `${stem}${n ? `_${n + 1}` : ""}.${SENT_AS_THEY_ARE[ref.media_type]}`;
    return Object.assign(new File([bytes], name, { type: ref.media_type }), { isDrawn: true });
  });
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
        const image = make("img", { src: picture.url, alt: picture.name, title: picture.name });
        image.addEventListener("load", () => image.classList.toggle("small", image.naturalHeight < 80));
        return make("li", {}, image, remove);
      }),
    );
  }
}
