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

/** Swagger UI's parts without its own `main`: this page is one already. */
const layout = ({ React: { createElement: make } }) => ({
  components: {
    PageLayout: ({ getComponent, specSelectors }) => {
      const part = (name) => make(getComponent(name, true));
      const authorize = make("div", { className: "scheme-container" }, make("div", { className: "schemes wrapper" }, part("AuthorizeBtnContainer")));
      return make("div", { className: "swagger-ui" }, make(getComponent("SvgAssets")), part("errors"), part("InfoContainer"),
        specSelectors.securityDefinitions() ? authorize : null, part("operations"), part("Models"));
    },
  },
});

const NAMES = { "textarea.body-param__text": "Request body", ".examples-select-element": "Example" };

/** Give names to fields that Swagger UI leaves without one, and the keyboard a way to what scrolls. */
function mend() {
  const each = (selector, change) => byId("api").querySelectorAll(selector).forEach(change);
  each(".opblock-summary-control a[href]", (link) => link.removeAttribute("href")); // in a button, which does the same
  each("pre:not([tabindex])", (box) => box.setAttribute("tabindex", "0"));
  each("[role=region]:not([aria-label])", (region) => region.setAttribute("aria-label", region.id.replaceAll("_", " ")));
  for (const [selector, name] of Object.entries(NAMES)) each(`${selector}:not([aria-label])`, (field) => field.setAttribute("aria-label", name));
  each("tr :is(input, textarea, select):not([aria-label])", (field) => {
    const name = field.closest("tr").querySelector(".parameter__name")?.firstChild?.textContent;
    if (name && !field.labels?.length) field.setAttribute("aria-label", name);
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
  byId("routes").hidden = false;
  new MutationObserver(mend).observe(byId("api"), { childList: true, subtree: true });
  // Calls go to this page's own service, whatever the document says of others: the page's policy admits no other.
  tree.servers = [{ url: new URL(".", document.baseURI).href.replace(/\/$/, "") }];
  const ui = SwaggerUIBundle({
    spec: tree,
    domNode: byId("api"),
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [layout],
    layout: "PageLayout",
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
