// One scoring request: as the browser sends it, and as a command that sends the same.

/** The request and its parts. Each picture is an item; all are one group, for rewards that compare. */
function makeCall({ reward, prompt, targets, pictures, sources, completion, metadata }) {
  const parts = [];
  const addPart = (picture, part) => {
    parts.push({ part, picture });
    return { part, media_type: picture.mediaType };
  };
  const sourceRefs = sources.map((picture, n) => addPart(picture, `source${n}`));
  const shared = { prompt };
  if (targets.length) shared.targets = targets;
  if (sourceRefs.length) shared.source_images = sourceRefs;
  if (completion) shared.completion = completion;
  if (Object.keys(metadata).length) shared.metadata = metadata;
  const items = pictures.length
    ? pictures.map((picture, n) => ({ id: `${n}`, ...shared, images: [addPart(picture, `image${n}`)] }))
    : [{ id: "0", ...shared }];
  if (reward.grouped) for (const item of items) item.group_id = "try";
  return { request: { items, reward: reward.name }, parts };
}

function toForm({ request, parts }) {
  const form = new FormData();
  form.append("request", JSON.stringify(request));
  for (const { part, picture } of parts) form.append(part, picture.blob, picture.name);
  return form;
}

/** The same call for a shell. Every text is quoted twice: for the shell, and file names for curl too. */
function toCurl({ request, parts }, url, hasToken) {
  const lines = [`curl -sS ${shellQuote(url)}`];
  if (hasToken) lines.push('-H "Authorization: Bearer $TOKEN"');
  lines.push(`--form-string ${shellQuote(`request=${JSON.stringify(request)}`)}`);
  for (const { part, picture } of parts) {
    const path = picture.name.replace(/[\\"]/g, "\\$&");
    lines.push(`-F ${shellQuote(`${part}=@"${path}"`)}`);
  }
  return lines.join(" \\\n  ");
}

function shellQuote(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Send a call. Returns `{ms, body}`; throws an Error whose `code` says what went wrong. */
async function send(call, token, signal) {
  const started = performance.now();
  const { status, body } = await ask("v1/score", token, { method: "POST", body: toForm(call), signal });
  const ms = performance.now() - started;
  if (status !== 200) throw problem(body?.error?.code ?? `status ${status}`, body?.error?.message, body?.error?.field, status);
  return { ms, body };
}

/** Any request to this service, as `{status, body}`; what is not JSON has the body null. */
async function ask(path, token, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw problem("no_answer", "The service cannot be reached, or it closed the connection.");
  }
  return { status: response.status, body: await response.json().catch(() => null) };
}

function problem(code, message, field, status) {
  return Object.assign(new Error(message ?? "The answer has no explanation."), { code, field, status });
}
