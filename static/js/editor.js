// The editor page: Monaco over the form's own textarea, shortcuts, and the guard against losing text.
// The textarea stays the truth: without this file, or in plain text mode, every button works just the same.

const byId = (id) => document.getElementById(id);
const form = byId("editor");
const area = byId("code");
const box = byId("code-box");
const settings = form.dataset;
const PLAIN = "plain-text";
const DRAFT = `draft:${document.body.dataset.person}:${settings.bot}`; // the code only: the input may hold patient data
let editor = null;
let saved = area.defaultValue;

// --- unsaved text ---------------------------------------------------------------------------------------------
const text = () => area.value;
const dirty = () => text() !== saved;

function changed() {
  byId("saved-mark")?.classList.toggle("unsaved", dirty());
  byId("deploy-now").textContent = dirty() ? "Save and deploy" : "Deploy";
  if (dirty() && !("signedOut" in document.body.dataset)) sessionStorage.setItem(DRAFT, JSON.stringify({ text: text(), base: saved }));
  else sessionStorage.removeItem(DRAFT);
}
function setText(value) {
  area.value = value;
  editor?.setValue(value);
  changed();
}
let leaving = false;
addEventListener("beforeunload", (event) => { if (dirty() && !leaving) event.preventDefault(); });
document.addEventListener("click", (event) => {
  if (event.target.closest?.("[data-discard]")) {
    leaving = true;
    sessionStorage.removeItem(DRAFT);
  }
});
area.addEventListener("input", changed);

function offerDraft() {
  const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "null");
  if (!draft || draft.text === text()) return;
  const bar = document.createElement("div");
  bar.className = "note warn";
  bar.append("Unsaved text of yours was found on this tab.");
  for (const [label, act] of [["Use it", () => setText(draft.text)], ["Discard", () => sessionStorage.removeItem(DRAFT)]]) {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "btn btn-sm", textContent: label });
    button.addEventListener("click", () => { act(); bar.remove(); });
    bar.append(button);
  }
  byId("said").after(bar);
}

// --- requests -------------------------------------------------------------------------------------------------
// Buttons outside of the form belong to it; htmx sends the one that was pressed.
let sent = null;
let saving = null; // the text on its way to being saved
form.addEventListener("htmx:beforeRequest", (event) => {
  const action = event.detail.requestConfig.parameters.action ?? event.detail.requestConfig.formData?.get("action");
  sent = text();
  saving = action === "save" ? sent : null;
  if (action === "execute") byId("result").setAttribute("aria-busy", "true");
});
form.addEventListener("htmx:afterRequest", () => { saving = null; });
document.addEventListener("htmx:oobAfterSwap", (event) => {
  if (event.detail.target.id !== "state") return;
  if (byId("state").dataset.clean && sent !== null) saved = sent; // what was sent is what is stored now
  changed();
});

// --- Monaco ---------------------------------------------------------------------------------------------------
const isPlain = () => localStorage.getItem(PLAIN) === "1" || matchMedia("(max-width: 767px)").matches;
const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark"
  || (!document.documentElement.dataset.bsTheme && matchMedia("(prefers-color-scheme: dark)").matches);

async function start() {
  const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet", href: settings.monacoCss });
  const styled = new Promise((done) => { sheet.onload = sheet.onerror = done; });
  document.head.append(sheet);
  const workers = { json: settings.workerJson, typescript: settings.workerTs, javascript: settings.workerTs };
  self.MonacoEnvironment = {
    getWorker: (_module, label) => new Worker(workers[label] ?? settings.workerEditor, { type: "module", name: label }),
  };
  const monaco = await import(settings.monaco);
  await styled;
  if (settings.language !== "python") teach(monaco);
  const host = document.createElement("div");
  host.className = "monaco";
  box.append(host);
  const suffix = settings.filename.split(".").pop();
  const uri = monaco.Uri.parse(`file:///bot.${suffix}`);
  monaco.editor.getModel(uri)?.dispose();
  editor = monaco.editor.create(host, {
    model: monaco.editor.createModel(text(), settings.language, uri),
    ariaLabel: "Code", automaticLayout: true, minimap: { enabled: false }, fontSize: 13, tabSize: 2,
    scrollBeyondLastLine: false, theme: isDark() ? "vs-dark" : "vs", fixedOverflowWidgets: true, padding: { top: 8 },
    fontFamily: getComputedStyle(area).fontFamily, renderLineHighlight: "line", overviewRulerLanes: 1, lineNumbersMinChars: 3,
    glyphMargin: false, editContext: false, // the text area tells what is inserted before it happens
  });
  box.classList.add("rich");
  editor.onDidChangeModelContent(() => { area.value = editor.getValue(); changed(); });
  escapeRoute(editor, monaco);
  host.addEventListener("beforeinput", insertWhole, true);
  watchProblems(monaco, uri);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => monaco.editor.setTheme(isDark() ? "vs-dark" : "vs"));
}

/** Completion for the SDK and the FHIR types, from our own server. */
async function teach(monaco) {
  const { typescriptDefaults, javascriptDefaults, ScriptTarget, ModuleKind, ModuleResolutionKind } = monaco.typescript;
  const options = {
    target: ScriptTarget.ESNext, module: ModuleKind.ESNext, moduleResolution: ModuleResolutionKind.NodeJs,
    allowNonTsExtensions: true, allowJs: true, lib: ["esnext", "dom"], types: [], skipLibCheck: true,
  };
  const files = [["core", settings.typesCore], ["fhirtypes", settings.typesFhir]];
  const texts = await Promise.all(files.map(([, url]) => fetch(url).then((answer) => (answer.ok ? answer.text() : ""))));
  for (const defaults of [typescriptDefaults, javascriptDefaults]) {
    defaults.setCompilerOptions(options);
    defaults.setEagerModelSync(true);
    defaults.setExtraLibs(files.map(([name], i) => ({ content: texts[i], filePath: `file:///node_modules/@medplum/${name}/index.d.ts` })));
  }
}

/** Lines that come at once (dictation, other input methods) are text as it is: no brackets added, nothing indented. */
function insertWhole(event) {
  const inserted = event.data;
  if (!inserted?.includes("\n") || inserted === "\n") return;
  event.preventDefault();
  event.stopImmediatePropagation();
  editor.trigger("insert", "paste", { text: inserted, pasteOnNewLine: false });
}

/** Tab indents, unless Escape came before it: then it leaves the code (WCAG 2.1.2). */
function escapeRoute(instance, monaco) {
  instance.onKeyDown((event) => {
    if (event.keyCode === monaco.KeyCode.Escape) instance.updateOptions({ tabFocusMode: true });
    else if (event.keyCode !== monaco.KeyCode.Tab && event.keyCode !== monaco.KeyCode.Shift) instance.updateOptions({ tabFocusMode: false });
  });
  instance.onDidBlurEditorText(() => instance.updateOptions({ tabFocusMode: false }));
}

function watchProblems(monaco, uri) {
  const list = document.createElement("details");
  list.id = "editor-problems";
  list.hidden = true;
  byId("problems").after(list);
  monaco.editor.onDidChangeMarkers((uris) => {
    if (!uris.some((one) => one.toString() === uri.toString())) return;
    const found = monaco.editor.getModelMarkers({ resource: uri }).filter((marker) => marker.severity >= 4);
    const errors = found.filter((marker) => marker.severity === 8).length;
    const summary = document.createElement("summary");
    summary.textContent = `${errors} ${errors === 1 ? "error" : "errors"}, ${found.length - errors} ${found.length - errors === 1 ? "warning" : "warnings"} seen while typing`;
    const lines = document.createElement("ul");
    lines.className = "plain";
    for (const marker of found.slice(0, 50)) {
      const link = Object.assign(document.createElement("a"), { href: "#code", textContent: `Line ${marker.startLineNumber}` });
      Object.assign(link.dataset, { line: marker.startLineNumber, column: marker.startColumn });
      const entry = document.createElement("li");
      entry.className = "problem";
      entry.append(link, ` ${marker.message}`);
      lines.append(entry);
    }
    list.replaceChildren(summary, lines);
    list.hidden = found.length === 0;
  });
}

function goTo(line, column = 1) {
  if (editor) {
    editor.revealLineInCenter(line);
    editor.setPosition({ lineNumber: line, column });
    return editor.focus();
  }
  const start = text().split("\n").slice(0, line - 1).reduce((sum, part) => sum + part.length + 1, 0);
  area.focus();
  area.setSelectionRange(start + column - 1, start + column - 1);
}
document.addEventListener("click", (event) => {
  const place = event.target.closest?.("[data-line]");
  if (!place) return;
  event.preventDefault();
  goTo(Number(place.dataset.line), Number(place.dataset.column ?? 1));
});

// --- buttons and keys -----------------------------------------------------------------------------------------
byId("deploy").addEventListener("click", (event) => {
  const { deployed, first } = byId("state").dataset;
  const clean = !dirty() || text() === saving; // requests wait for each other
  if (clean && (deployed || first)) return; // nothing to deploy, as the server says; or nothing to compare and confirm
  event.preventDefault();
  event.stopPropagation();
  changed();
  byId("deploy-dialog").showModal();
  window.htmx?.trigger(byId("deploy-diff"), "opened");
});

const mode = byId("mode");
mode.hidden = matchMedia("(max-width: 767px)").matches;
const nameMode = () => { mode.querySelector("span").textContent = editor ? "Plain text mode" : "Rich editor"; };
mode.addEventListener("click", async () => {
  if (editor) {
    localStorage.setItem(PLAIN, "1");
    editor.dispose();
    editor = null;
    box.classList.remove("rich");
    box.querySelector(".monaco").remove();
    byId("editor-problems").remove();
    area.focus();
  } else {
    localStorage.removeItem(PLAIN);
    await start();
  }
  nameMode();
});
const split = byId("split");
split.hidden = false;
split.addEventListener("click", () => {
  const even = form.classList.toggle("even");
  const detail = even ? "Code and result share the width." : "The code has two thirds of the width.";
  document.dispatchEvent(new CustomEvent("announce", { detail }));
});

const press = (id) => byId(id).click();
document.addEventListener("keydown", (event) => {
  const command = event.ctrlKey || event.metaKey;
  let id = null;
  if (command && !event.altKey && event.key.toLowerCase() === "s") id = "save";
  else if (command && event.key === "Enter") id = event.shiftKey ? "deploy" : "execute";
  if (id) {
    event.preventDefault();
    event.stopPropagation();
    return press(id);
  }
  if (event.altKey && !command && ["Digit1", "Digit2", "Digit3"].includes(event.code)) {
    event.preventDefault();
    if (event.code === "Digit1") return editor ? editor.focus() : area.focus();
    return byId(event.code === "Digit2" ? "input" : "result").focus();
  }
  const inField = event.target.closest?.("input, textarea, select, .monaco-editor");
  if (event.key === "?" && !inField && byId("single-keys").checked) byId("keys").showModal();
}, true);

byId("single-keys").checked = localStorage.getItem("single-keys") !== "0";
byId("single-keys").addEventListener("change", (event) => localStorage.setItem("single-keys", event.target.checked ? "1" : "0"));
offerDraft();
if (isPlain()) nameMode();
else (window.requestIdleCallback ?? setTimeout)(() => start().then(nameMode));
