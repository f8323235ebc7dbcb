// The page of a server, by its public interface alone. Whatever a model or a server says is put in as text.
import { events, headers, problem } from "./wire.js";

const $ = (id) => document.getElementById(id);
const make = (name, text, cls) => {
  const found = document.createElement(name);
  if (text !== undefined) found.textContent = text;
  if (cls) found.className = cls;
  return found;
};

// -- tabs: arrow keys move between them, as screen readers expect ---------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
function show(tab) {
  for (const item of tabs) {
    const on = item === tab;
    item.setAttribute("aria-selected", on);
    item.tabIndex = on ? 0 : -1;
    $(item.getAttribute("aria-controls")).hidden = !on;
  }
  if (tab.id === "tab-models") figures();
}
tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
});

// -- models ---------------------------------------------------------------------------------------------------

$("key").value = sessionStorage.getItem("key") ?? "";
$("key-form").addEventListener("submit", (event) => event.preventDefault());
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value);
  models();
});

async function models() {
  const answer = await fetch("v1/models", { headers: headers() });
  if (!answer.ok) {
    $("state").textContent = await problem(answer);
    return;
  }
  const found = (await answer.json()).data;
  const kinds = { "chat-model": ["llm", "vlm"], "picture-model": ["diffusion"], "vector-model": ["embed"] };
  for (const [id, wanted] of Object.entries(kinds)) {
    const before = $(id).value;
    // one that is not loaded yet may be of any kind
    const fits = found.filter((model) => !model.kind || wanted.includes(model.kind));
    $(id).replaceChildren(...fits.map((model) => new Option(model.id, model.id, false, model.id === before)));
  }
  const rows = found.map((model) => {
    const row = make("tr");
    row.append(make("td", model.id), make("td", model.kind ?? "?"), make("td", model.loaded ? "loaded" : "on demand"));
    const cell = make("td");
    const button = make("button", model.loaded ? "Unload" : "Load");
    button.addEventListener("click", () => manage(model));
    cell.append(button);
    row.append(cell);
    return row;
  });
  const head = make("tr");
  head.append(...["Name", "Kind", "State", ""].map((text) => make("th", text)));
  $("model-table").replaceChildren($("model-table").caption, head, ...rows);
}

async function manage(model) {
  $("model-state").textContent = model.loaded ? `Unloading ${model.id} …` : `Loading ${model.id} …`;
  const verb = model.loaded ? "unload" : "load";
  const body = JSON.stringify(model.loaded ? { model: model.id } : { model: model.id, stream: true });
  const answer = await fetch(`v1/models/${verb}`, { method: "POST", headers: headers(), body });
  if (!answer.ok) $("model-state").textContent = await problem(answer);
  else if (model.loaded) $("model-state").textContent = `${model.id} is out of memory.`;
  else {
    for await (const { data } of events(answer)) {
      if (data.error) $("model-state").textContent = data.error.message;
      else if (data.loaded) $("model-state").textContent = `${data.id} is loaded, after ${data.seconds} s.`;
      else $("model-state").textContent = `${data.stage}: ${data.done}${data.total ? ` of ${data.total}` : ""} ${data.unit}`;
    }
  }
  await models();
  await figures();
}

async function figures() {
  const answer = await fetch("metrics", { headers: headers() });
  if (!answer.ok) return;
  const wanted = /^mlxengine_(memory_bytes|model_memory_bytes|model_requests|tasks|http_open|health)(\{.*\})? (\S+)$/;
  const rows = [];
  for (const line of (await answer.text()).split("\n")) {
    const match = wanted.exec(line);
    if (!match || (match[1] === "health" && match[3] !== "1.0")) continue;
    const row = make("tr");
    const value = match[1].endsWith("bytes") ? `${(Number(match[3]) / 1e6).toFixed(1)} MB` : Number(match[3]);
    row.append(make("th", match[1].replaceAll("_", " ")), make("td", match[2] ?? ""), make("td", value));
    rows.push(row);
  }
  $("figures").replaceChildren($("figures").caption, ...rows);
}

async function ready() {
  try {
    const answer = await fetch("ready");
    const said = await answer.json();
    $("state").textContent = answer.ok ? "Ready" : `Not ready: ${said.reason}`;
  } catch {
    $("state").textContent = "The server does not answer.";
  }
}

// -- chat -----------------------------------------------------------------------------------------------------

let history = [];
let pictures = [];
let running = null;

function turn(role, name) {
  const found = make("article", undefined, `turn ${role}`);
  found.append(make("h2", name));
  $("talk").append(found);
  return found;
}

function dropped() {
  $("dropped").replaceChildren(
    ...pictures.map((url) => Object.assign(make("img"), { src: url, alt: "a picture to send" })),
  );
}

function take(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      pictures.push(reader.result);
      dropped();
    });
    reader.readAsDataURL(file);
  }
}

async function send() {
  const text = $("chat-text").value.trim();
  if ((!text && !pictures.length) || running) return;
  const parts = pictures.map((url) => ({ type: "image_url", image_url: { url } }));
  history.push({ role: "user", content: parts.length ? [...parts, { type: "text", text }] : text });
  const own = turn("user", "You");
  own.append(...pictures.map((url) => Object.assign(make("img"), { src: url, alt: "a picture" })), text);
  $("chat-text").value = "";
  pictures = [];
  dropped();
  running = new AbortController();
  $("chat-send").disabled = true;
  $("chat-stop").disabled = false;
  const model = $("chat-model").value;
  const place = turn("assistant", model);
  const thought = make("details");
  const thinking = make("div");
  thought.append(make("summary", "Reasoning"), thinking);
  const answer = make("div");
  place.append(answer);
  const calls = new Map();
  let said = "";
  try {
    const body = JSON.stringify({ model, messages: history, stream: true, stream_options: { include_usage: true } });
    const options = { method: "POST", headers: headers(), body, signal: running.signal };
    const found = await fetch("v1/chat/completions", options);
    if (!found.ok) throw new Error(await problem(found));
    for await (const { data } of events(found)) {
      if (data.error) throw new Error(data.error.message);
      const delta = data.choices[0]?.delta ?? {};
      if (delta.reasoning) {
        if (!thought.parentNode) place.insertBefore(thought, answer);
        thinking.append(delta.reasoning);
      }
      if (delta.content) {
        said += delta.content;
        answer.append(delta.content);
      }
      for (const call of delta.tool_calls ?? []) {
        if (!calls.has(call.index)) {
          calls.set(call.index, make("pre", `${call.function.name} `));
          place.append(calls.get(call.index));
        }
        calls.get(call.index).append(call.function.arguments ?? "");
      }
      if (data.usage) {
        const { prompt_tokens: read, completion_tokens: made } = data.usage;
        place.append(make("small", `${read} tokens read, ${made} made`));
      }
      $("talk").scrollTop = $("talk").scrollHeight;
    }
  } catch (error) {
    if (error.name !== "AbortError") place.append(make("p", error.message, "wrong"));
  }
  history.push({ role: "assistant", content: said });
  running = null;
  $("chat-send").disabled = false;
  $("chat-stop").disabled = true;
  models();
}

$("chat-form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("chat-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
$("chat-stop").addEventListener("click", () => running?.abort());
$("chat-new").addEventListener("click", () => {
  running?.abort();
  history = [];
  $("talk").replaceChildren();
  $("chat-text").focus();
});
$("chat-file").addEventListener("change", (event) => take(event.target.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  $("chat-form").addEventListener(name, (event) => {
    event.preventDefault();
    $("chat-form").classList.toggle("over", name === "dragover");
    if (name === "drop") take(event.dataTransfer.files);
  });
}

// -- pictures and embeddings ----------------------------------------------------------------------------------

$("picture-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const steps = Number($("picture-steps").value) || 20;
  const body = { model: $("picture-model").value, prompt: $("picture-text").value, stream: true, partial_images: 4, steps };
  if ($("picture-size").value) body.size = $("picture-size").value;
  if ($("picture-seed").value) body.seed = Number($("picture-seed").value);
  $("picture-state").textContent = "Painting …";
  const answer = await fetch("v1/images/generations", { method: "POST", headers: headers(), body: JSON.stringify(body) });
  if (!answer.ok) {
    $("picture-state").textContent = await problem(answer);
    return;
  }
  for await (const { data } of events(answer)) {
    if (data.error) $("picture-state").textContent = data.error.message;
    else {
      $("picture").src = `data:image/png;base64,${data.b64_json}`;
      $("picture").alt = body.prompt;
      $("picture").hidden = false;
      const done = data.type === "image_generation.completed";
      $("picture-state").textContent = done ? `Done, ${data.size}.` : `Preview ${data.partial_image_index + 1} …`;
    }
  }
});

$("vector-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = $("vector-texts").value.split("\n").filter((line) => line.trim());
  const body = JSON.stringify({ model: $("vector-model").value, input });
  const answer = await fetch("v1/embeddings", { method: "POST", headers: headers(), body });
  if (!answer.ok) {
    $("vector-state").textContent = await problem(answer);
    return;
  }
  const vectors = (await answer.json()).data.map((item) => item.embedding);
  const dot = (a, b) => a.reduce((sum, value, place) => sum + value * b[place], 0);
  const head = make("tr");
  head.append(make("th"), ...input.map((text) => make("th", text)));
  const rows = vectors.map((vector, place) => {
    const row = make("tr");
    const cells = vectors.map((other) => dot(vector, other) / Math.sqrt(dot(vector, vector) * dot(other, other)));
    row.append(make("th", input[place]), ...cells.map((value) => make("td", value.toFixed(3))));
    return row;
  });
  $("vector-table").replaceChildren($("vector-table").caption, head, ...rows);
  $("vector-table").hidden = false;
  $("vector-state").textContent = `${vectors[0].length} numbers each.`;
});

ready();
models();
setInterval(ready, 10000);
