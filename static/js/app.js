// Enhancements for every page. Without this file each link and each form still works.

const byId = (id) => document.getElementById(id);

// Unsaved code is kept in this tab for the person who wrote it, and for nobody who comes after.
// A session that merely expired has no person on its page: then the text waits for the same one.
const here = document.body.dataset;
const leavings = new BroadcastChannel("sign-out");
function forgetDrafts(kept) {
  for (const key of Object.keys(sessionStorage)) {
    if (key.startsWith("draft:") && !(kept && key.startsWith(kept))) sessionStorage.removeItem(key);
  }
}
if ("signedOut" in here) {
  forgetDrafts();
  leavings.postMessage(null);
} else if (here.person) forgetDrafts(`draft:${here.person}:`);
leavings.addEventListener("message", () => { // another tab has signed out
  here.signedOut = "";
  forgetDrafts();
});

/** Say something through the polite live region, without moving the focus. */
function announce(text) {
  const live = byId("live");
  live.textContent = "";
  requestAnimationFrame(() => { live.textContent = text; });
}
// Other scripts ask by an event: file names carry hashes, so modules cannot import each other by name.
document.addEventListener("announce", (event) => announce(event.detail));

document.addEventListener("htmx:sendError", () => {
  announce("Connection lost. Your text is safe on this page.");
  toast("Connection lost. Try again in a moment. Your text is safe on this page.");
});

/** Show a failure until it is closed. */
function toast(text) {
  const box = document.createElement("div");
  box.className = "note bad bg-surface";
  const words = document.createElement("div");
  words.textContent = text;
  const close = Object.assign(document.createElement("button"), { className: "btn-close", type: "button" });
  close.setAttribute("aria-label", "Close");
  close.dataset.close = "";
  box.append(words, close);
  byId("toasts").append(box);
}

// Clicks: close a message, copy, open and close dialogs, close menus.
document.addEventListener("click", async (event) => {
  const target = event.target instanceof Element ? event.target : null;
  if (!target) return;
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
  const close = target.closest("[data-close]");
  if (close) {
    // Not before the button has sent its form: a dialog that closes gives the focus back to what opened it, and htmx would
    // take that for the button that was pressed.
    setTimeout(() => (close.closest("dialog") ?? close.parentElement).dispatchEvent(new Event("dismiss", { bubbles: true })));
    return;
  }
  const copy = target.closest("[data-copy]");
  if (copy) {
    try {
      await navigator.clipboard.writeText(copy.dataset.copy);
      announce("Copied.");
    } catch {
      announce("Copying is not allowed here. Select the text instead.");
    }
    return;
  }
  const opener = target.closest("[data-dialog]");
  const dialog = opener && byId(opener.dataset.dialog);
  if (dialog && !event.defaultPrevented) {
    event.preventDefault();
    dialog.showModal();
  }
});
document.addEventListener("dismiss", (event) => {
  if (event.target instanceof HTMLDialogElement) event.target.close();
  else event.target.remove();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// Times: the server writes UTC, the reader sees the own zone.
const { lang } = document.documentElement;
const near = new Intl.DateTimeFormat(lang, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const far = new Intl.DateTimeFormat(lang, { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat(lang, { dateStyle: "full", timeStyle: "long" });
const relative = new Intl.RelativeTimeFormat(lang, { numeric: "auto" });
const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function ago(seconds) {
  const [unit, size] = units.find(([, length]) => Math.abs(seconds) >= length) ?? units.at(-1);
  return relative.format(Math.round(seconds / size), unit);
}
function localise(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const age = (moment - Date.now()) / 1000;
    const text = (Math.abs(age) < 86400 * 300 ? near : far).format(moment);
    element.textContent = "relative" in element.dataset && Math.abs(age) < 86400 * 7 ? `${text} (${ago(age)})` : text;
    element.title = full.format(moment);
  }
}
localise();
setInterval(localise, 60_000);
document.addEventListener("htmx:load", (event) => {
  localise(event.detail.elt.parentElement ?? document);
  for (const dialog of document.querySelectorAll("dialog[data-modal][open]:not(:modal)")) {
    dialog.close();
    dialog.showModal();
  }
  for (const said of document.querySelectorAll("[data-announce]")) {
    announce(said.dataset.announce);
    said.removeAttribute("data-announce");
  }
});

// Live parts: ask again while the page is visible and the reader has not paused it.
setInterval(() => {
  if (document.hidden) return;
  for (const element of document.querySelectorAll("[data-live]")) {
    const due = Number(element.dataset.due ?? 0) || Date.now() + 1000 * Number(element.dataset.live);
    if (Date.now() >= due && !document.querySelector("[data-live-pause]")?.checked) {
      window.htmx?.trigger(element, "live");
      element.dataset.due = Date.now() + 1000 * Number(element.dataset.live);
    } else element.dataset.due = due;
  }
}, 1000);

// Forms that ask before leaving with unsaved text, and selects that send their form.
document.addEventListener("change", (event) => {
  if (event.target.matches?.("[data-submit]")) event.target.form.requestSubmit(event.target.form.querySelector("[data-default]"));
});
