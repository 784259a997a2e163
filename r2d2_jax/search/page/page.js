// The search page. It speaks to its own server alone: words or a picture go there, rankings and thumbnails come back.

const SHOWN_FIRST = 12; // of a ranking; as many again with each "More"
const SMOOTH = 8; // pixels of the heat map for each patch, along either side
const WORDS = await (await fetch("/words.json")).json();

const find = (selector, within = document) => within.querySelector(selector);
const made = (kind, properties) => Object.assign(document.createElement(kind), properties);
const state = {
  language: "en",
  server: null, // what /api/state says
  question: null, // {text} or {file} or {id, name}
  answers: {}, // "cosine" and "match", as the server gave them
  shown: SHOWN_FIRST,
  asking: new AbortController(),
  open: null, // the hit in the dialog
  heat: { words: "", reading: "attention", maps: new Map() },
};

// ---------------------------------------------------------------------------------------------------------- language

function words(key, values = {}) {
  return WORDS[state.language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const number = (value) => value.toLocaleString(state.language);

function speak(language) {
  state.language = language;
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = words(element.dataset.word);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = words(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-title]")) {
    element.title = words(element.dataset.title);
    element.setAttribute("aria-label", element.title);
  }
  find("#language").textContent = words("language");
  find("#language").lang = language === "zh" ? "en" : "zh-Hans";
  describeServer();
  describeSlider();
  drawRankings();
  if (state.open) drawDialog();
}

function startLanguage() {
  const chosen = localStorage.getItem("language");
  if (chosen in WORDS) return chosen;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

// ------------------------------------------------------------------------------------------------------------ server

class Refused extends Error {}

async function ask(path, body, signal) {
  const options = body === undefined ? { signal } : { method: "POST", signal, ...content(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(words("unreachable"));
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found) return found;
  throw new Refused(found ? found.error : words(answer.status === 503 ? "busy" : "unreachable"));
}

function content(body) {
  if (body instanceof Blob) return { body, headers: { "content-type": "application/octet-stream" } };
  return { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
}

function tell(error) {
  if (error && error.name === "AbortError") return;
  if (error && !(error instanceof Refused)) console.error(error);
  find("#error").hidden = !error;
  find("#error").textContent = error ? error.message : "";
}

function describeServer() {
  if (!state.server) return;
  const { photos, pictures, matches } = state.server;
  find("#about").textContent = words("about", { photos, pictures: number(pictures) });
  find("#slider").hidden = find("#match").hidden = !matches;
  find("#rankings").classList.toggle("single", !matches);
  if (!matches) {
    find("#cosine-title").textContent = words("by_cosine_alone");
    find("#start").textContent = words("start_alone");
  }
  drawNotes();
}

function drawNotes() {
  const latest = state.answers.match ?? state.answers.cosine;
  const notes = latest ? [...latest.notes] : [];
  const { complete, pictures } = latest ?? state.server;
  if (!complete) notes.push(words("incomplete", { pictures: number(pictures) }));
  if (!state.server.matches) notes.push(words("prd2"));
  if (latest && !latest.hits.length) notes.push(words("nothing"));
  find("#notes").hidden = !notes.length;
  find("#notes").replaceChildren(...notes.map((note) => made("li", { textContent: note })));
}

// ---------------------------------------------------------------------------------------------------------- questions

const candidates = () => state.server.places[find("#candidates").valueAsNumber];

function describeSlider() {
  if (!state.server) return;
  const count = candidates();
  find("#chosen").textContent = count ? words("chosen", { number: number(count) }) : words("no_reranking");
}

// Pre-ranking is shown as soon as it is there; re-ranking is a second request.
async function search(question) {
  state.question = question;
  state.answers = {};
  state.shown = SHOWN_FIRST;
  const signal = renewed();
  tell(null);
  drawSample();
  wait("cosine", words("asking"));
  try {
    const { text, file, id } = question;
    if (text !== undefined) state.answers.cosine = await ask("/api/text", { query: text, candidates: 0 }, signal);
    else if (file) state.answers.cosine = await ask("/api/picture", file, signal);
    else state.answers.cosine = await ask("/api/alike", { id }, signal);
    drawRankings();
    if (text !== undefined) await rerank(signal);
  } catch (error) {
    if (error.name !== "AbortError") drawRankings();
    tell(error);
  }
}

async function rerank(signal) {
  const count = candidates();
  delete state.answers.match;
  if (!state.server.matches || !count) return drawRankings();
  wait("match", words("reranking", { candidates: number(count) }));
  state.answers.match = await ask("/api/text", { query: state.question.text, candidates: count }, signal);
  drawRankings();
}

async function rerankAgain() {
  if (!state.answers.cosine || state.question.text === undefined) return;
  const signal = renewed();
  tell(null);
  try {
    await rerank(signal);
  } catch (error) {
    if (error.name !== "AbortError") drawRankings();
    tell(error);
  }
}

// What was asked before is given up, also by the server where it has not begun with it.
function renewed() {
  state.asking.abort();
  state.asking = new AbortController();
  return state.asking.signal;
}

function searchByFile(file) {
  if (!file) return;
  const largest = state.server.largest_picture;
  if (file.size > largest) {
    const size = (file.size / 2 ** 20).toFixed(0);
    tell(new Refused(words("too_large", { size, largest: largest / 2 ** 20 })));
    return;
  }
  search({ file, name: file.name });
}

function drawSample() {
  const { text, file, id, name } = state.question ?? { text: "" };
  const image = find("#sample img");
  if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  find("#sample").hidden = text !== undefined;
  find("#query").hidden = text === undefined;
  if (text !== undefined) return image.removeAttribute("src");
  image.src = file ? URL.createObjectURL(file) : `/photo/small/${id}`;
  find("#sample-name").textContent = words("like_this", { name });
}

// ----------------------------------------------------------------------------------------------------------- rankings

function wait(kind, stage) {
  find("#start").hidden = true;
  find("#rankings").hidden = false;
  const section = find(`#${kind}`);
  section.classList.add("waiting");
  find(".stage", section).textContent = stage;
}

function drawRankings() {
  if (!state.server || !state.question) return;
  const { cosine, match } = state.answers;
  find("#start").hidden = true;
  find("#rankings").hidden = !cosine;
  drawRanking("cosine", cosine, (answer) => words("stage_cosine", { seconds: seconds(answer.seconds.pre_ranking) }));
  drawRanking("match", match, (answer) =>
    words("stage_match", { candidates: number(answer.candidates), seconds: seconds(answer.seconds.re_ranking) }));
  if (cosine && !match) {
    find("#match .stage").textContent = words(state.question.text === undefined ? "stage_picture" : "stage_off");
  }
  find("#more").hidden = !cosine || Math.max(...[cosine, match].map((each) => each?.hits.length ?? 0)) <= state.shown;
  drawNotes();
}

const seconds = (value) => value.toFixed(value < 0.1 ? 3 : 2);

function drawRanking(kind, answer, stage) {
  const section = find(`#${kind}`);
  section.classList.remove("waiting");
  find(".stage", section).textContent = answer ? stage(answer) : "";
  const hits = answer ? answer.hits.slice(0, state.shown) : [];
  find(".hits", section).replaceChildren(...hits.map((hit, place) => drawHit(hit, place + 1, kind)));
}

function drawHit(hit, rank, kind) {
  const item = document.createElement("li");
  const button = made("button", { type: "button", className: "hit" });
  button.dataset.id = hit.id;
  button.title = hit.names.join("\n");
  button.setAttribute("aria-label", words("opened", { name: hit.names[0] }));
  const image = made("img", { alt: "", loading: "lazy", decoding: "async" });
  image.src = `/photo/small/${hit.id}`;
  const figures = made("span", { className: "figures" });
  figures.append(figure("rank", rank), figure("cosine", hit.cosine.toFixed(3), words("cosine")));
  if (kind === "match" && hit.match !== null) {
    figures.append(figure("match", percent(hit.match), words("match")), moved(hit.rank_by_cosine - rank));
  }
  button.append(image, figures);
  button.addEventListener("click", () => openDialog(hit));
  for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
    button.addEventListener(event, () => markSame(hit.id, on));
  }
  item.append(button);
  return item;
}

function figure(kind, text, title = "") {
  return made("span", { className: kind, textContent: text, title });
}

function moved(places) {
  const text = places > 0 ? `↑ ${places}` : places < 0 ? `↓ ${-places}` : "=";
  return figure(places > 0 ? "moved up" : "moved", text);
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

// The same picture in the other ranking.
function markSame(id, on) {
  for (const each of document.querySelectorAll(`.hit[data-id="${id}"]`)) each.classList.toggle("same", on);
}

// ------------------------------------------------------------------------------------------------------ one picture

function openDialog(hit) {
  state.open = hit;
  state.heat.words = entities()[0] ?? "";
  find("#picture img").src = `/photo/large/${hit.id}`;
  drawDialog();
  find("#picture").showModal();
  showHeat();
}

// The words that may be looked for; where the segmenter finds no thing, the whole sentence.
function entities() {
  const { text } = state.question;
  if (text === undefined || !state.server.matches) return [];
  const found = state.answers.cosine.entities;
  return found.length ? found : [text];
}

function drawDialog() {
  const hit = state.open;
  find("#name").textContent = hit.names[0];
  find("#copies").hidden = hit.names.length < 2;
  find("#copies").textContent = words("copies", { names: hit.names.slice(1).join(", ") });
  const reranked = state.answers.match?.hits ?? [];
  const place = reranked.findIndex((each) => each.id === hit.id);
  const rows = [["rank_cosine", number(hit.rank_by_cosine)], ["cosine", hit.cosine.toFixed(4)]];
  if (place >= 0 && reranked[place].match !== null) {
    rows.push(["rank_match", number(place + 1)], ["match", percent(reranked[place].match)]);
  }
  const cell = (kind, text) => made(kind, { textContent: text });
  find("#scores").replaceChildren(...rows.flatMap(([key, value]) => [cell("dt", words(key)), cell("dd", value)]));
  find("#heat").hidden = !entities().length;
  find("#entities").replaceChildren(...entities().map(entityChoice));
  find("#readings").hidden = !state.server.occlusion;
  for (const choice of document.querySelectorAll("[data-reading]")) {
    choice.setAttribute("aria-pressed", choice.dataset.reading === state.heat.reading);
  }
}

function entityChoice(text) {
  const label = text === state.question.text ? words("whole") : text;
  const choice = made("button", { type: "button", className: "choice", textContent: label });
  choice.setAttribute("aria-pressed", text === state.heat.words);
  choice.addEventListener("click", () => {
    state.heat.words = text;
    drawDialog();
    showHeat();
  });
  return choice;
}

async function showHeat() {
  const canvas = find("#picture canvas"), note = find("#heat-note");
  canvas.hidden = true;
  find("#picture img").classList.remove("dimmed");
  note.textContent = "";
  if (!entities().length) return;
  const { words: looked, reading, maps } = state.heat;
  const asked = { id: state.open.id, query: state.question.text, words: looked, reading };
  const key = JSON.stringify(asked);
  const isWanted = () => state.open?.id === asked.id && state.heat.words === looked && state.heat.reading === reading;
  const named = looked === state.question.text ? words("whole") : looked;
  if (!maps.has(key)) {
    note.textContent = words("looking", { words: named });
    try {
      maps.set(key, (await ask("/api/heat", asked)).rows);
    } catch (error) {
      if (isWanted()) note.textContent = error.message;
      return;
    }
  }
  if (!isWanted()) return;
  const rows = maps.get(key), nothing = !Math.max(...rows.flat());
  note.textContent = nothing ? words("no_heat", { words: named }) : "";
  if (nothing) return;
  drawHeat(canvas, rows);
  canvas.hidden = false;
  placeHeat();
}

// The map over the whole picture, which the model sees resized to a square; bilinear between the middles of patches.
function drawHeat(canvas, rows) {
  const height = rows.length, width = rows[0].length;
  canvas.height = SMOOTH * height;
  canvas.width = SMOOTH * width;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const at = (place, count) => {
    const middle = Math.min(Math.max((place + 0.5) / SMOOTH - 0.5, 0), count - 1);
    const low = Math.floor(middle);
    return [low, Math.min(low + 1, count - 1), middle - low];
  };
  for (let y = 0, pixel = 0; y < canvas.height; y++) {
    const [top, bottom, down] = at(y, height);
    for (let x = 0; x < canvas.width; x++, pixel += 4) {
      const [left, right, across] = at(x, width);
      const row = (each) => rows[each][left] * (1 - across) + rows[each][right] * across;
      pixels.data.set(colour(row(top) * (1 - down) + row(bottom) * down), pixel);
    }
  }
  context.putImageData(pixels, 0, 0);
}

// From nothing over amber to nearly white, so that more is always lighter.
function colour(share) {
  return [255, 140 + 105 * share, 40 + 150 * share ** 2, 225 * share ** 1.1];
}

// Exactly over the picture, which keeps its shape within its box.
function placeHeat() {
  const image = find("#picture img"), canvas = find("#picture canvas");
  if (canvas.hidden || !image.naturalWidth) return;
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const [width, height] = [scale * image.naturalWidth, scale * image.naturalHeight];
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.style.left = `${image.offsetLeft + (image.clientWidth - width) / 2}px`;
  canvas.style.top = `${image.offsetTop + (image.clientHeight - height) / 2}px`;
  image.classList.add("dimmed");
}

// ------------------------------------------------------------------------------------------------------------- events

function listen() {
  find("#question").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!find("#query").hidden) search({ text: find("#query").value });
    else search(state.question);
  });
  find("#language").addEventListener("click", () => {
    localStorage.setItem("language", state.language === "en" ? "zh" : "en");
    speak(localStorage.getItem("language"));
  });
  find("#candidates").addEventListener("input", describeSlider);
  find("#candidates").addEventListener("change", rerankAgain);
  find("#file").addEventListener("change", (event) => {
    searchByFile(event.target.files[0]);
    event.target.value = ""; // so that the same file may be chosen again
  });
  find("#sample button").addEventListener("click", () => {
    renewed();
    Object.assign(state, { question: { text: "" }, answers: {} });
    drawRankings();
    drawSample();
    find("#query").focus();
  });
  find("#more").addEventListener("click", () => {
    state.shown += SHOWN_FIRST;
    drawRankings();
  });
  listenForDrops();
  listenInDialog();
}

function listenForDrops() {
  const dropping = (event, on) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.body.classList.toggle("dropping", on);
  };
  document.addEventListener("dragover", (event) => dropping(event, true));
  document.addEventListener("dragleave", (event) => dropping(event, false));
  document.addEventListener("drop", (event) => {
    dropping(event, false);
    searchByFile(event.dataTransfer?.files[0]);
  });
  document.addEventListener("paste", (event) => searchByFile(event.clipboardData?.files[0]));
}

function listenInDialog() {
  const dialog = find("#picture"), image = find("#picture img");
  find(".close", dialog).addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    state.open = null;
    image.removeAttribute("src");
  });
  image.addEventListener("load", placeHeat);
  image.addEventListener("error", () => state.open && (find("#heat-note").textContent = words("no_picture")));
  addEventListener("resize", placeHeat);
  for (const choice of document.querySelectorAll("[data-reading]")) {
    choice.addEventListener("click", () => {
      state.heat.reading = choice.dataset.reading;
      drawDialog();
      showHeat();
    });
  }
  find("#alike").addEventListener("click", () => {
    const { id, names } = state.open;
    dialog.close();
    search({ id, name: names[0] });
    scrollTo({ top: 0 });
  });
}

speak(startLanguage());
try {
  state.server = await ask("/api/state");
  find("#candidates").max = state.server.places.length - 1;
  find("#candidates").value = state.server.places.indexOf(state.server.candidates);
  speak(state.language);
  listen();
  find("#query").focus();
} catch (error) {
  tell(error);
}
document.body.dataset.ready = "yes";
