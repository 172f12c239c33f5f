// The page: its state, its fields, and what happens when.

const page = { info: null, sending: null };

const pictures = new PictureField(byId("pictures"), { label: "Pictures", several: true, onProblem: showProblem });
const sources = new PictureField(byId("sources"), { label: "Source picture", several: false, onProblem: showProblem });
const form = new RowsForm(byId("rows"));
byId("pictures").querySelector(".drop").after(byId("sample"));

/** What is chosen; the token is kept nowhere else. */
const token = () => byId("token").value.trim();
const reward = () => page.info?.rewards.find((each) => each.name === byId("reward").value);

function showProblem(text, code) {
  const place = byId("problem");
  place.replaceChildren(...(code ? [make("code", {}, code), " "] : []), text);
  place.hidden = !text;
}

/** Learn what the service offers; ask for a token when it wants one. */
async function loadInfo() {
  let answer;
  try {
    answer = await ask("v1/info", token());
  } catch (error) {
    showProblem(error.message, error.code);
    return;
  }
  if (answer.status === 401) {
    page.info = null;
    byId("token-field").hidden = false;
    if (token()) showProblem("The service does not know this token.", "unauthorized");
    else byId("token").focus();
    return;
  }
  if (answer.status !== 200 || !answer.body) {
    showProblem(answer.body?.error?.message ?? `status ${answer.status}`, answer.body?.error?.code);
    return;
  }
  showProblem("");
  page.info = answer.body;
  byId("reward").replaceChildren(...page.info.rewards.map((each) => make("option", { value: each.name }, each.name)));
  byId("reward").value = page.info.default_reward;
  form.describe(page.info.about.form);
  showReward();
}

function showReward() {
  const chosen = reward();
  if (!chosen) return;
  const direction = chosen.higher_is_better ? "higher is better" : "lower is better";
  byId("reward-hint").textContent = `Range: ${rangeText(chosen.range)}, ${direction}.`;
  pictures.hint.textContent = chosen.grouped
    ? "drop, paste or choose two or more: they are compared"
    : "drop, paste or choose; each gets a score";
}

/** Say whether the service can score, and look again until it can. */
async function watchReady() {
  const state = byId("state");
  let answer;
  try {
    answer = await ask("ready");
  } catch {
    answer = { status: 0 };
  }
  state.dataset.ready = String(answer.status === 200);
  state.textContent = answer.status === 200 ? "ready" : answer.status === 503 ? "not ready yet" : "not reachable";
  state.title = answer.body?.error?.message ?? "";
  setTimeout(watchReady, answer.status === 200 ? 5000 : 2000);
}

/** The form's contents. Throws an Error with what to do when something is missing or wrong. */
function readForm() {
  const metadataText = byId("metadata").value.trim();
  let metadata = {};
  try {
    metadata = metadataText ? JSON.parse(metadataText) : {};
  } catch (error) {
    throw new Error(`Metadata is not JSON: ${error.message}`);
  }
  if (metadata === null || typeof metadata !== "object" || Array.isArray(metadata)) {
    throw new Error('Metadata must be a JSON object, such as {"color": "red"}.');
  }
  const completion = byId("completion").value;
  const filled = form.values();
  const twice = Object.keys(filled).find((name) => name in metadata);
  if (twice) throw new Error(`Metadata has "${twice}", and so has the form above: leave it out of one.`);
  if (!pictures.pictures.length && !completion) throw new Error("Give a picture first, or use the sample.");
  const targets = byId("targets").value.split("\n").map((line) => line.trim()).filter(Boolean);
  return {
    reward: reward(), prompt: byId("prompt").value, targets, completion, metadata: { ...metadata, ...filled },
    pictures: [...pictures.pictures], sources: [...sources.pictures],
  };
}

async function score() {
  showProblem("");
  if (!page.info) {
    await loadInfo();
    if (!page.info) {
      if (!token()) showProblem("This service needs a token: type it above.", "unauthorized");
      return;
    }
  }
  let inputs;
  try {
    inputs = readForm();
  } catch (error) {
    showProblem(error.message);
    return;
  }
  page.sending?.abort();
  const sending = (page.sending = new AbortController());
  const call = makeCall(inputs);
  showCurl(call);
  const stopClock = startClock();
  try {
    const answer = await send(call, token(), sending.signal);
    showAnswer(byId("answer"), answer, inputs.pictures, page.info.about.off_scale ?? []);
    showRaw(answer.body);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("answer").replaceChildren(make("p", { className: "empty" }, "No score."));
    byId("raw").hidden = true;
    showProblem(error.field ? `${error.field}: ${error.message}` : error.message, error.code);
    if (error.status === 401) byId("token-field").hidden = false;
  } finally {
    if (page.sending === sending) stopClock();
  }
}

/** Judges take a while: say for how long it has been. */
function startClock() {
  const button = byId("send");
  const started = performance.now();
  const tick = () => {
    button.textContent = `Scoring, ${((performance.now() - started) / 1000).toFixed(1)} s`;
  };
  clearInterval(page.clock);
  page.clock = setInterval(tick, 200);
  button.setAttribute("aria-busy", "true");
  return () => {
    clearInterval(page.clock);
    button.removeAttribute("aria-busy");
    button.textContent = "Score";
  };
}

function showCurl(call) {
  const url = new URL("v1/score", document.baseURI).href;
  byId("command").textContent = toCurl(call, url, Boolean(token()));
  const hint = byId("curl-hint");
  const made = call.parts.filter(({ picture }) => !picture.isFile).map(({ picture }) => picture);
  hint.replaceChildren(call.parts.length ? "Run it in the folder of the pictures. " : "");
  for (const picture of made) {
    hint.append(make("a", { href: picture.url, download: picture.name }, `Save ${picture.name}`), " ");
  }
  byId("curl").hidden = false;
}

function showRaw(body) {
  byId("json").textContent = JSON.stringify(body, null, 2);
  byId("raw").hidden = false;
}

async function copyCommand() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("command")); // browsers copy for https and localhost only
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

/** Fill the form with the request that the service says scores well: everything in it, and nothing else. */
async function useSample() {
  showProblem("");
  if (!page.info) await loadInfo();
  if (!page.info) return;
  let answer;
  try {
    answer = await ask(`v1/sample?reward=${encodeURIComponent(byId("reward").value)}`, token());
  } catch (error) {
    showProblem(error.message, error.code);
    return;
  }
  if (answer.status !== 200 || !answer.body) {
    showProblem(answer.body?.error?.message ?? `status ${answer.status}`, answer.body?.error?.code);
    return;
  }
  const { items } = answer.body;
  const { prompt, targets, completion, metadata, source_images: before } = items[0];
  byId("prompt").value = prompt;
  byId("targets").value = (targets ?? []).join("\n");
  byId("completion").value = completion ?? "";
  const left = form.fill(metadata);
  byId("metadata").value = Object.keys(left).length ? JSON.stringify(left) : "";
  byId("more").open = Boolean(targets?.length || completion || before?.length || Object.keys(left).length);
  pictures.clear();
  sources.clear();
  await pictures.add(filesOf(items.flatMap((item) => item.images ?? []), "sample"));
  await sources.add(filesOf(before ?? [], "sample_before"));
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
byId("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) score();
});
byId("token").addEventListener("change", loadInfo);
byId("reward").addEventListener("change", showReward);
byId("copy").addEventListener("click", copyCommand);
byId("sample").addEventListener("click", async () => {
  byId("sample").setAttribute("aria-busy", "true");
  try {
    await useSample();
  } finally {
    byId("sample").removeAttribute("aria-busy");
  }
});

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) pictures.add(event.clipboardData.files);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  const field = byId("sources").contains(event.target) ? sources : pictures;
  field.add(event.dataTransfer.files);
});

loadInfo();
watchReady();
