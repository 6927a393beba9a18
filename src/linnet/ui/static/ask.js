// Takes pictures by file, drop, paste, example or camera; asks about each; shows the answers.

const AT_ONCE = 3;
const BARS = 5;
const MOST_BARS = 50;
const PREVIEWS = 300;
const mostBytes = Number(document.body.dataset.mostBytes);
const byId = (id) => document.getElementById(id);
const list = byId("list");

const waiting = [];
let asking = 0;
let batch = { pictures: 0, answered: 0, failed: 0, last: "" };
const rows = new Map();
let shown = { total: 0, at: 0 };

function percent(share) {
  const text = (100 * share).toFixed(1);
  if (text === "100.0" && share < 1) return "> 99.9 %";
  if (text === "0.0" && share > 0) return "< 0.1 %";
  return `${text.replace(/^100\.0$/, "100")} %`;
}

function mebibytes(bytes) {
  return `${(bytes / 2 ** 20).toFixed(bytes < 2 ** 20 ? 2 : 0)} MiB`;
}

// Adding pictures

function add(files, more = {}) {
  const pictures = [...files];
  if (!pictures.length) return;
  if (!waiting.length && !asking) batch = { pictures: 0, answered: 0, failed: 0, last: "" };
  batch.pictures += pictures.length;
  byId("answers").hidden = false;
  const cards = pictures.map((file) => newCard(file, more));
  list.prepend(...cards);
  cards.forEach((card, at) => waiting.push({ card, file: pictures[at] }));
  showProgress();
  next();
  if (pictures.length === 1 || list.children.length === pictures.length) {
    byId("answers").scrollIntoView({ block: "nearest", behavior: "smooth" });
  }
}

function newCard(file, { truth }) {
  const card = byId("card").content.firstElementChild.cloneNode(true);
  const name = file.name || "picture";
  const part = (selector) => card.querySelector(selector);
  part(".file").textContent = name;
  part(".remove").setAttribute("aria-label", `Remove ${name}`);
  part(".again").setAttribute("aria-label", `Try ${name} again`);
  part(".remove").addEventListener("click", () => remove(card));
  part(".again").addEventListener("click", () => again(card, file));
  part(".why").addEventListener("click", () => explain(card, file));
  if (truth) card.dataset.truth = truth;
  preview(card, file, name);
  return card;
}

function preview(card, file, name) {
  const picture = card.querySelector(".picture");
  const gone = () => {
    card.querySelector(".frame").hidden = true;
    card.querySelector(".gone").hidden = false;
  };
  if (list.children.length > PREVIEWS || file.size > mostBytes) {
    gone();
    return;
  }
  picture.alt = name;
  picture.addEventListener("error", gone, { once: true });
  picture.addEventListener("load", () => {
    card.classList.toggle("tiny", Math.max(picture.naturalWidth, picture.naturalHeight) < 100);
  });
  picture.src = URL.createObjectURL(file);
}

function forget(card) {
  for (const image of card.querySelectorAll("img")) {
    if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  }
  rows.delete(card);
  card.remove();
}

function remove(card) {
  const neighbour = card.nextElementSibling ?? card.previousElementSibling;
  forget(card);
  if (neighbour) neighbour.querySelector(".remove").focus();
  else clear();
}

function clear() {
  waiting.length = 0;
  for (const card of [...list.children]) forget(card);
  byId("answers").hidden = true;
  byId("files").focus();
}

// Asking

function again(card, file) {
  card.querySelector(".error").hidden = true;
  card.querySelector(".again").hidden = true;
  card.querySelector(".wait").hidden = false;
  card.classList.remove("failed");
  card.setAttribute("aria-busy", "true");
  if (!waiting.length && !asking) batch = { pictures: 0, answered: 0, failed: 0, last: "" };
  batch.pictures += 1;
  waiting.push({ card, file });
  next();
  card.querySelector(".remove").focus();
}

function next() {
  while (asking < AT_ONCE && waiting.length) {
    asking += 1;
    const one = waiting.shift();
    ask(one).finally(() => {
      asking -= 1;
      showProgress();
      next();
    });
  }
}

async function ask({ card, file }) {
  if (!card.isConnected) return;
  const asked = performance.now();
  try {
    const answer = await post("answers", file);
    const said = await answer.json();
    showAnswer(card, file, said);
    showShares(said.shares, asked);
    batch.answered += 1;
    batch.last = `${file.name || "picture"}: ${spoken(said)}`;
  } catch (error) {
    showError(card, error);
    batch.failed += 1;
    batch.last = `${file.name || "picture"}: ${error.message}`;
  }
}

class Refused extends Error {
  constructor(message, mayTryAgain) {
    super(message);
    this.mayTryAgain = mayTryAgain;
  }
}

// Sends a picture and returns the response, or throws Refused in words for people.
async function post(path, file) {
  if (file.size > mostBytes) {
    throw new Refused(
      `It has ${mebibytes(file.size)}; the limit is ${mebibytes(mostBytes)}. Make it smaller.`, false);
  }
  let response;
  try {
    response = await fetch(path, {
      method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" },
    });
  } catch {
    const readable = await file.slice(0, 1).arrayBuffer().then(() => true, () => false);
    throw readable
      ? new Refused("This page's server does not answer. Is it still running?", true)
      : new Refused("It can't be read. Is it a folder, or has it changed?", false);
  }
  if (response.ok) return response;
  const words = await response.json().then((said) => said.error, () => `The server failed (${response.status}).`);
  throw new Refused(sentence(words), response.status === 429 || response.status >= 500);
}

function sentence(words) {
  const text = String(words);
  return text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : ".");
}

function spoken(said) {
  const sure = percent(said.score);
  return said.abstain ? `not sure enough to say; closest is ${said.label}, ${sure}` : `${said.label}, ${sure}`;
}

// Showing

function showAnswer(card, file, said) {
  const part = (selector) => card.querySelector(selector);
  card.removeAttribute("aria-busy");
  card.classList.toggle("abstained", said.abstain);
  part(".wait").hidden = true;
  part(".answer").hidden = false;
  part(".badge").hidden = part(".closest").hidden = !said.abstain;
  part(".label").textContent = said.label;
  part(".score").textContent = percent(said.score);
  const few = said.bars.slice(0, BARS);
  if (!few.some(([name]) => name === said.label)) few.push(...said.bars.filter(([name]) => name === said.label));
  part(".bars").replaceChildren(...few.map((bar) => newBar(bar, said.label)));
  const rest = said.bars.filter((bar) => !few.includes(bar)).slice(0, MOST_BARS);
  const details = part("details");
  details.hidden = !rest.length;
  if (rest.length) {
    details.querySelector("summary").textContent = `${rest.length} more`;
    details.querySelector(".bars").replaceChildren(...rest.map((bar) => newBar(bar, said.label)));
  }
  part(".by").textContent = `Answered by ${said.release} in ${Math.max(1, Math.round(1000 * said.seconds))} ms`;
  showTruth(card, said);
  part(".why").hidden = false;
  part(".why").setAttribute("aria-label", `Show why: ${file.name || "picture"}`);
  rows.set(card, { file: file.name || "picture", ...said });
}

function showTruth(card, said) {
  const truth = card.dataset.truth;
  if (truth === undefined) return;
  const line = card.querySelector(".truth");
  const right = truth === said.label;
  line.hidden = false;
  line.className = `truth ${right ? "right" : "wrong"}`;
  line.textContent = right ? "Its label says so, too" : `Its label says ${truth}`;
}

function newBar([name, share], label) {
  const row = document.createElement("li");
  row.className = name === label ? "is" : "";
  const words = document.createElement("span");
  words.textContent = name;
  const track = document.createElement("span");
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  const filled = document.createElement("i");
  filled.style.width = `${100 * share}%`;
  track.append(filled);
  const number = document.createElement("span");
  number.className = "n";
  number.textContent = percent(share);
  row.append(words, track, number);
  return row;
}

function showError(card, error) {
  card.removeAttribute("aria-busy");
  card.classList.add("failed");
  card.querySelector(".wait").hidden = true;
  const line = card.querySelector(".error");
  line.hidden = false;
  line.textContent = error.message;
  card.querySelector(".again").hidden = !error.mayTryAgain;
}

function showProgress() {
  const { pictures, answered, failed, last } = batch;
  const done = answered + failed >= pictures;
  const told = pictures === 1 ? "" : `${answered} of ${pictures} answered`;
  const progress = failed && pictures > 1 ? `${told}, ${failed} failed` : told;
  byId("progress").textContent = progress;
  // Screen readers hear the end alone: a word for each of a hundred pictures would never stop.
  if (done && pictures) byId("spoken").textContent = pictures === 1 ? last : progress;
  byId("save").hidden = !rows.size;
}

// Answers may overtake each other: fewer of them are news only when asked for after those shown came.
function showShares(shares, asked) {
  const total = shares.reduce((sum, one) => sum + one.answers, 0);
  if (total < shown.total && asked < shown.at) return;
  shown = { total, at: performance.now() };
  const place = byId("shares");
  place.hidden = false;
  place.querySelector(".stack").replaceChildren(...shares.map((one) => {
    const piece = document.createElement("i");
    piece.style.width = `${(100 * one.answers) / total}%`;
    return piece;
  }));
  place.querySelector("ul").replaceChildren(...shares.map((one) => {
    const row = document.createElement("li");
    row.append(document.createElement("i"), `${one.release}: `, Object.assign(
      document.createElement("b"), { textContent: percent(one.answers / total) }));
    return row;
  }));
  place.querySelector(".note").textContent =
    `Of the last ${total === 1 ? "answer" : `${total} answers`} to everyone on this page. ` +
    (shares.length > 1 ? "Several releases: a rollout is going on, or has just ended." : "");
}

// Why

async function explain(card, file) {
  const button = card.querySelector(".why");
  const overlay = card.querySelector(".overlay");
  const reason = card.querySelector(".reason");
  const show = (shown) => {
    overlay.hidden = reason.hidden = !shown;
    button.setAttribute("aria-pressed", String(shown));
  };
  if (overlay.src) {
    show(overlay.hidden);
    return;
  }
  button.disabled = true;
  button.textContent = "Looking …";
  try {
    const said = await (await post("explanations", file)).json();
    const drawn = Uint8Array.from(atob(said.drawn), (character) => character.charCodeAt(0));
    overlay.src = URL.createObjectURL(new Blob([drawn], { type: "image/jpeg" }));
    await overlay.decode();
    tellWhy(reason, said);
    show(true);
    byId("spoken").textContent = reason.textContent;
  } catch (error) {
    reason.textContent = error.message;
    reason.hidden = false;
    byId("spoken").textContent = error.message;
  } finally {
    button.disabled = false;
    button.textContent = "Show why";
    button.focus();
  }
}

function tellWhy(reason, { label, words, releases }) {
  const colour = Object.assign(document.createElement("i"), { className: "scale" });
  reason.replaceChildren(colour, `From nothing to what speaks most for ${label}, which lies ${words}.`);
  if (releases.length > 1) reason.append(` ${releases.join(" and ")} took turns in answering: this mixes them.`);
}

// Saving

function cell(value) {
  // A spreadsheet takes what begins with these for a formula.
  const text = String(value).replace(/^[=+\-@\t\r]/, "'$&");
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save() {
  const answered = [...list.children].map((card) => rows.get(card)).filter(Boolean);
  const classes = [...new Set(answered.flatMap((row) => row.bars.map(([name]) => name)))];
  const table = [["file", "label", "score", "abstain", "release", ...classes], ...answered.map((row) => {
    const shares = new Map(row.bars);
    return [row.file, row.label, row.score, row.abstain, row.release, ...classes.map((name) => shares.get(name) ?? "")];
  })];
  const text = table.map((row) => row.map(cell).join(",")).join("\r\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// Camera

async function openCamera() {
  const dialog = byId("shutter");
  const video = dialog.querySelector("video");
  const error = dialog.querySelector(".error");
  error.hidden = true;
  video.hidden = false;
  byId("take").hidden = false;
  byId("take").disabled = true;
  byId("own-camera").hidden = true;
  dialog.showModal();
  try {
    if (!navigator.mediaDevices) throw new DOMException("", "SecurityError");
    video.srcObject = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1920 } },
    });
    await video.play();
    byId("take").disabled = false;
    byId("take").focus();
  } catch (reason) {
    video.hidden = byId("take").hidden = true;
    byId("own-camera").hidden = false;
    error.hidden = false;
    error.textContent = {
      NotAllowedError: "The browser may not use the camera: allow it for this page, and try again.",
      NotFoundError: "There is no camera here.",
      SecurityError: "The browser shows a camera to pages over https or on this machine alone.",
    }[reason.name] ?? "The camera can't be used; another program may have it.";
  }
}

function closeCamera() {
  const video = byId("shutter").querySelector("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

function take() {
  const video = byId("shutter").querySelector("video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => {
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
    add([new File([blob], `camera ${time}.jpg`, { type: "image/jpeg" })]);
    byId("shutter").close();
  }, "image/jpeg", 0.92);
}

// Listening

byId("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
byId("clear").addEventListener("click", clear);
byId("save").addEventListener("click", save);
byId("camera").addEventListener("click", openCamera);
byId("take").addEventListener("click", take);
byId("close").addEventListener("click", () => byId("shutter").close());
byId("shutter").addEventListener("close", closeCamera);
byId("own-camera").querySelector("input").addEventListener("change", (event) => {
  add(event.target.files);
  byId("shutter").close();
});
byId("examples")?.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const picture = await fetch(button.dataset.example).then((found) => found.ok ? found.blob() : null, () => null);
  if (picture) add([new File([picture], button.dataset.name)], { truth: button.dataset.truth });
  else complain("This example is not there any more: load the page again.");
});

function complain(words) {
  byId("answers").hidden = false;
  byId("progress").textContent = byId("spoken").textContent = words;
}

document.addEventListener("paste", (event) => {
  const files = event.clipboardData.files;
  if (files.length) add(files);
  else complain("There is no picture on the clipboard.");
});

let depth = 0;
const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
document.addEventListener("dragenter", (event) => {
  event.preventDefault();
  depth += 1;
  byId("over").hidden = !carriesFiles(event);
});
document.addEventListener("dragleave", () => {
  depth -= 1;
  if (depth <= 0) byId("over").hidden = true;
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  byId("over").hidden = true;
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else complain("That was a link and no file: save the picture first, then drop it.");
});
