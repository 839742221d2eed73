// The search page. The URL holds the whole search, so that a link is a search.
const $ = (id) => document.getElementById(id);
const PAGE = 48;
let terms = []; // [kind, weight, value]
let filters = []; // [column, operator, value]
let hits = [];
let complete = false;
let loading = 0; // number of the latest search; answers to earlier ones are dropped
let shown = -1; // index of the picture in the dialog
let info = { columns: {} };

// --- server ---

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is `boring-assets serve` still running?");
  }
  const type = answer.headers.get("Content-Type") || "";
  const body = type.includes("json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(body.error || `The server answered with status ${answer.status}.`);
  return body;
}

function say(text, error = false) {
  $("message").textContent = text;
  $("message").classList.toggle("error", error);
}

async function watchModel() {
  try {
    info = await ask("/api/info");
  } catch (error) {
    say(error.message, true);
    setTimeout(watchModel, 3000);
    return;
  }
  $("home").textContent = info.name || "Search";
  $("count").textContent = `${info.count.toLocaleString("en")} pictures`;
  showFilters();
  if (info.model === "loading") {
    say("The model is loading. A search by text or picture starts as soon as it is ready.");
    setTimeout(watchModel, 1000);
  } else if (info.model === "ready") {
    if (!$("message").classList.contains("error")) say("");
  } else {
    say(info.model, true);
  }
}

// --- the search in the URL ---

function query(more = {}) {
  const params = new URLSearchParams();
  for (const term of terms) params.append("term", term.join(":"));
  for (const filter of filters) params.append("filter", filter.join(":"));
  for (const [name, value] of Object.entries(more)) params.set(name, value);
  return params;
}

function split(text, parts) {
  const pieces = text.split(":");
  return [...pieces.slice(0, parts - 1), pieces.slice(parts - 1).join(":")];
}

function readUrl() {
  const params = new URLSearchParams(location.search);
  terms = params.getAll("term").map((text) => split(text, 3));
  terms.push(...params.getAll("q").filter((text) => text.trim()).map((text) => ["text", "1", text]));
  filters = params.getAll("filter").map((text) => split(text, 3));
  const first = terms.find(([kind]) => kind === "text");
  $("text").value = first ? first[2] : "";
  document.title = `${first ? first[2] : "Search"} - ${info.name || "boring_assets"}`;
}

function go() {
  const text = query().toString();
  history.pushState(null, "", text ? `/?${text}` : "/");
  start();
}

function setText(text) {
  const first = terms.find(([kind]) => kind === "text");
  if (!text) terms = terms.filter((term) => term !== first);
  else if (first) first[2] = text;
  else terms.unshift(["text", "1", text]);
  go();
}

// --- results ---

async function start() {
  readUrl();
  showTerms();
  showFilters();
  hits = [];
  complete = false;
  loading += 1;
  $("results").replaceChildren();
  $("empty").hidden = true;
  for (const link of document.querySelectorAll("footer a[data-format]")) {
    link.href = `/api/download?${query({ format: link.dataset.format, n: 1000 })}`;
  }
  await loadMore();
}

let busy = null;
async function loadMore() {
  const mine = loading;
  if (complete || busy === mine) return;
  busy = mine;
  try {
    const found = await ask(`/api/search?${query({ n: PAGE, offset: hits.length })}`);
    if (mine !== loading) return;
    if (info.model !== "loading") say("");
    complete = found.length < PAGE;
    for (const hit of found) addCard(hit);
    $("empty").hidden = hits.length > 0;
    $("empty").textContent = filters.length ? "No picture matches these filters. Remove one of them." : "There are no pictures in the index yet.";
  } catch (error) {
    if (mine !== loading) return;
    complete = true;
    say(error.message, true);
  } finally {
    if (busy === mine) busy = null;
  }
  const end = $("end").getBoundingClientRect();
  if (!complete && mine === loading && end.top < innerHeight * 1.5) await loadMore();
}

function pictureUrl(hit, large = false) {
  const params = new URLSearchParams({ partition: hit.partition, row: hit.row });
  if (hit.key !== null && hit.key !== undefined) params.set("key", hit.key);
  if (large) params.set("large", "1");
  return `/api/picture?${params}`;
}

function addCard(hit) {
  const number = hits.push(hit) - 1;
  const card = $("card").content.cloneNode(true);
  const image = card.querySelector("img");
  image.src = pictureUrl(hit);
  image.alt = hit.caption || hit.key || "";
  card.querySelector(".caption").textContent = hit.caption || hit.key || "";
  card.querySelector(".score").textContent = terms.length ? hit.score.toFixed(3) : "";
  card.querySelector("button").addEventListener("click", () => open(number));
  $("results").append(card);
}

new IntersectionObserver((seen) => { if (seen.some((entry) => entry.isIntersecting)) loadMore(); }, { rootMargin: "600px" }).observe($("end"));

// --- one picture ---

function open(number) {
  if (number < 0 || number >= hits.length) return;
  shown = number;
  const hit = hits[number];
  $("large").src = pictureUrl(hit, true);
  $("large").alt = hit.caption || "";
  $("caption").textContent = hit.caption || "";
  const facts = { score: terms.length ? hit.score.toFixed(4) : null, shard: hit.partition, key: hit.key, row: hit.row, source: hit.url };
  for (const [name, value] of Object.entries(hit)) {
    if (!["score", "partition", "key", "row", "url", "caption"].includes(name)) facts[name.replace(/^meta_/, "")] = value;
  }
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "").map(fact));
  $("previous").disabled = number === 0;
  if (!$("detail").open) $("detail").showModal();
  if (number > hits.length - 8) loadMore();
}

function fact([name, value]) {
  const row = document.createElement("tr");
  const cell = row.insertCell();
  cell.textContent = name;
  const text = row.insertCell();
  if (name === "source" && /^https?:\/\//i.test(value)) {
    const link = document.createElement("a");
    Object.assign(link, { href: value, textContent: value, target: "_blank", rel: "noopener noreferrer nofollow" });
    text.append(link);
  } else {
    text.textContent = value;
  }
  if (name === "key" || name === "shard") {
    const copy = document.createElement("button");
    copy.textContent = "copy";
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(value);
      copy.textContent = "copied";
    });
    text.append(" ", copy);
  }
  return row;
}

function likeThis(weight, alone = false) {
  const hit = hits[shown];
  if (alone) terms = [];
  terms.push(["row", String(weight), `${hit.partition}:${hit.row}`]);
  $("detail").close();
  go();
}

$("more").addEventListener("click", () => likeThis(1));
$("less").addEventListener("click", () => likeThis(-0.5));
$("only").addEventListener("click", () => likeThis(1, true));
$("close").addEventListener("click", () => $("detail").close());
$("previous").addEventListener("click", () => open(shown - 1));
$("next").addEventListener("click", () => open(shown + 1));

// --- terms and filters as chips ---

function chip(label, remove, extra) {
  const element = document.createElement("span");
  element.className = "chip";
  const text = document.createElement("span");
  text.textContent = label;
  const button = document.createElement("button");
  button.textContent = "×";
  button.setAttribute("aria-label", `Remove ${label}`);
  button.addEventListener("click", remove);
  element.append(...(extra || []), text, button);
  return element;
}

function showTerms() {
  const only = terms.length === 1 && terms[0][0] === "text" && Number(terms[0][1]) === 1;
  $("terms").replaceChildren(...(only ? [] : terms).map((term) => {
    const [kind, , value] = term;
    const extra = [];
    if (kind === "row") {
      const image = document.createElement("img");
      const at = value.lastIndexOf(":");
      image.src = pictureUrl({ partition: value.slice(0, at), row: value.slice(at + 1) });
      image.alt = "";
      extra.push(image);
    }
    const weight = document.createElement("input");
    Object.assign(weight, { type: "number", step: "0.1", value: term[1], title: "Weight; negative for less of it" });
    weight.setAttribute("aria-label", "Weight");
    weight.addEventListener("change", () => { if (weight.value) { term[1] = weight.value; go(); } });
    extra.push(weight);
    const label = { text: value, row: "picture of the dataset", picture: "your picture" }[kind] || value;
    const element = chip(label, () => { terms = terms.filter((other) => other !== term); go(); }, extra);
    element.classList.toggle("minus", Number(term[1]) < 0);
    return element;
  }));
}

function showFilters() {
  const chips = filters.map((filter) => chip(`${filter[0].replace(/^meta_/, "")} ${filter[1]} ${filter[2]}`, () => {
    filters = filters.filter((other) => other !== filter);
    go();
  }));
  const add = document.createElement("button");
  add.className = "chip";
  add.id = "add-filter";
  add.textContent = "+ Filter";
  add.addEventListener("click", chooseFilter);
  $("filters").replaceChildren(...chips, ...(Object.keys(info.columns).length ? [add] : []));
}

function chooseFilter() {
  const names = Object.keys(info.columns).filter((name) => name !== "row");
  $("column").replaceChildren(...names.map((name) => new Option(name.replace(/^meta_/, ""), name)));
  $("value").value = "";
  $("choose").returnValue = "";
  $("choose").showModal();
  showValues();
}

async function showValues() {
  const column = $("column").value;
  $("values").replaceChildren();
  try {
    const values = await ask(`/api/values?${new URLSearchParams({ column })}`);
    if (column !== $("column").value) return;
    $("values").replaceChildren(...values.map(([value, count]) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      const number = document.createElement("small");
      number.textContent = count.toLocaleString("en");
      button.append(String(value), number);
      button.type = "button";
      button.addEventListener("click", () => addFilter(column, "=", String(value)));
      item.append(button);
      return item;
    }));
  } catch (error) {
    say(error.message, true);
  }
}

function addFilter(column, operator, value) {
  $("choose").close("");
  filters.push([column, operator, value]);
  go();
}

$("column").addEventListener("change", showValues);
$("choose").addEventListener("close", () => {
  if ($("choose").returnValue === "add" && $("value").value) addFilter($("column").value, $("operator").value, $("value").value);
});

// --- pictures from outside: chosen, dropped, pasted ---

async function searchByPicture(file) {
  say(info.model === "loading" ? "The model is loading; your picture is next ..." : "Embedding your picture ...");
  try {
    const { vector } = await ask("/api/embed", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    terms = [...terms.filter(([kind]) => kind !== "picture"), ["picture", "1", vector]];
    go();
  } catch (error) {
    say(error.message, true);
  }
}

$("picture").addEventListener("change", (event) => {
  if (event.target.files.length) searchByPicture(event.target.files[0]);
  event.target.value = "";
});
$("upload").addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") $("picture").click(); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
document.addEventListener("dragleave", () => document.body.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) searchByPicture(file);
  else say("Drop a picture file.", true);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
  if (file) searchByPicture(file);
});

// --- start ---

$("search").addEventListener("submit", (event) => { event.preventDefault(); setText($("text").value.trim()); });
document.addEventListener("keydown", (event) => {
  if ($("detail").open) {
    if (event.key === "ArrowLeft") open(shown - 1);
    if (event.key === "ArrowRight") open(shown + 1);
  } else if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("text").focus();
  }
});
addEventListener("popstate", start);
watchModel();
start();
