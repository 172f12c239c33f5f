/* What helps to read a page: an image with `data-enlarge` is looked at large, with the ones before and after it; folds open for
   paper; what scrolls can be reached by keys. Nothing is written as markup. */
{
  const every = () => [...document.querySelectorAll("img[data-enlarge]")];

  const button = (text, label, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    if (label) made.setAttribute("aria-label", label);
    made.addEventListener("click", act);
    return made;
  };

  function look(first) {
    const stage = document.createElement("dialog"), figure = document.createElement("figure"), keys = document.createElement("div");
    const image = document.createElement("img"), told = document.createElement("figcaption"), all = every();
    let at = all.indexOf(first);
    const show = (step) => {
      at = (at + step + all.length) % all.length;
      image.src = all[at].src;
      image.alt = told.textContent = all[at].alt;
      image.classList.toggle("pixelated", all[at].classList.contains("pixelated") || !!all[at].closest(".pixelated"));
    };
    stage.className = "stage";
    stage.setAttribute("aria-label", "Enlarged image");
    figure.className = "picture";
    told.setAttribute("role", "status");
    keys.append(button("←", "the image before", () => show(-1)), button("→", "the next image", () => show(1)), button("Close", "", () => stage.close()));
    figure.append(keys, image, told);
    stage.append(figure);
    stage.addEventListener("keydown", ({ key }) => { if (key === "ArrowLeft") show(-1); if (key === "ArrowRight") show(1); });
    stage.addEventListener("close", () => { stage.remove(); all[at].closest("button").focus(); });
    document.body.append(stage);
    show(0);
    stage.showModal();
  }

  /** What scrolls in itself can be scrolled by keys once it can be focused. */
  function reach() {
    for (const box of document.querySelectorAll(".scroll, pre, .prompt, .reply p, .said, .thought")) {
      if (box.scrollWidth <= box.clientWidth && box.scrollHeight <= box.clientHeight) continue;
      if (box.tabIndex === 0) continue;
      box.tabIndex = 0;
      if (box.matches(".scroll")) { box.setAttribute("role", "group"); box.setAttribute("aria-label", "table, can be scrolled"); }
    }
  }

  function begin() {
    for (const image of every()) {
      const around = button("", `enlarge ${image.alt}`, () => look(image));
      around.className = "enlarge-picture";
      image.replaceWith(around);
      around.append(image);
    }
    reach();
    addEventListener("resize", reach);
    document.addEventListener("toggle", reach, true);
    let opened = [];
    addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; for (const fold of opened) fold.open = true; });
    addEventListener("afterprint", () => { for (const fold of opened) fold.open = false; });
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin); else begin();
}
