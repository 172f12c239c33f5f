// The API's page: get the document, with a token where one is needed, and let Swagger UI show it.

const byId = (id) => document.getElementById(id);

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();

function say(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

/** The document, or null when it needs another token. Throws an Error with a sentence. */
async function getDocument(token) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch("openapi.json", { headers, cache: "no-store", redirect: "error" });
  } catch {
    throw new Error("The service cannot be reached, or it closed the connection.");
  }
  const body = await response.json().catch(() => null);
  if (response.status === 401) return null;
  if (response.status !== 200 || !body) throw new Error(body?.error?.message ?? `status ${response.status}`);
  return body;
}

/** Swagger UI, a megabyte and a half: only once there is something to show. */
function loadSwaggerUi() {
  return new Promise((resolve, reject) => {
    if (globalThis.SwaggerUIBundle) resolve();
    const script = document.createElement("script");
    script.src = "docs/swagger-ui.js";
    script.addEventListener("load", resolve);
    script.addEventListener("error", () => reject(new Error("Swagger UI could not be loaded; below is the same as a list.")));
    document.head.append(script);
  });
}

async function show(token) {
  say("");
  let tree;
  try {
    tree = await getDocument(token);
  } catch (error) {
    say(error.message);
    return;
  }
  if (!tree) {
    byId("token-form").hidden = false;
    byId("document").hidden = true; // a link cannot carry a token
    if (token) say("The service does not know this token.");
    else byId("token").focus();
    return;
  }
  byId("token-form").hidden = true;
  try {
    await loadSwaggerUi();
  } catch (error) {
    say(error.message);
    return;
  }
  byId("plain").hidden = true;
  // Calls go to this page's own service, whatever the document says of others: the page's policy admits no other.
  tree.servers = [{ url: new URL(".", document.baseURI).href.replace(/\/$/, "") }];
  const ui = SwaggerUIBundle({
    spec: tree,
    domNode: byId("api"),
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    deepLinking: true,
    displayRequestDuration: true,
    defaultModelsExpandDepth: 0,
    tryItOutEnabled: true,
    validatorUrl: null,
    onComplete: () => {
      if (token) ui.preauthorizeApiKey("bearer", token);
    },
  });
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  show(byId("token").value.trim());
});
show("");
