// Keys, large images, and answers that are sent until the server says that it has them. Without
// this file the form is sent by the browser, and everything else works as well.
"use strict";

const form = document.querySelector("form");
const button = form.querySelector("button");
const state = form.querySelector(".state");
const questions = [...form.querySelectorAll("fieldset")];
const KEYS = { 1: 0, 2: 1, 3: 2, ArrowLeft: 0, ArrowDown: 1, ArrowRight: 2 };
let sending = false;

const answered = (question) => question.querySelector("input:checked") !== null;

function show() {
  const asked = questions.find((question) => !answered(question));
  questions.forEach((question) => question.classList.toggle("asked", question === asked));
  button.disabled = sending || asked !== undefined;
}

// Arrows within a question answer that one; any key elsewhere the first that is open.
function choose(place, within) {
  const asked = within ?? questions.find((question) => !answered(question));
  if (asked) asked.querySelectorAll("input")[place].checked = true;
}

function takeBack() {
  const last = questions.filter(answered).pop();
  if (last) last.querySelector("input:checked").checked = false;
}

document.addEventListener("keydown", (event) => {
  if (sending || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = event.key.startsWith("Arrow");
  if (event.key in KEYS) choose(KEYS[event.key], arrow ? event.target.closest("fieldset") : null);
  else if (event.key === "Backspace") takeBack();
  else if (event.key === "Enter") form.requestSubmit();
  else return;
  event.preventDefault();
  show();
});

async function send(body) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const answer = await fetch(form.action, { method: "POST", body, redirect: "manual" });
      // An opaque redirect is the way on; what the server refuses is not asked again.
      if (answer.type === "opaqueredirect" || answer.status < 500) return;
    } catch { /* no connection, or a server that is just starting again */ }
    state.textContent = "Not saved yet, trying again \u2026 Please leave this page open.";
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending || !form.checkValidity()) return;
  const body = new URLSearchParams(new FormData(form));
  sending = true;
  show();
  await send(body);
  location.replace(form.action.replace(/\/vote$/, ""));
});

form.addEventListener("change", show);
document.querySelectorAll("img").forEach((image) => image.addEventListener("click", () => {
  document.querySelector(".images").classList.toggle("large");
}));
// A page that the browser kept from before may be answered already.
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
document.documentElement.classList.add("js");
form.reset(); // no browser fills in the answers about another pair
show();
