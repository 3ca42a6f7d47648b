"use strict";
// The table of a report's page: unpacked, sorted and filtered here, without network or library.
// packed.py says how it was packed. The address keeps what is shown: #sort=R&filter=CD3.

const PAGE = 25; // rows shown at once
const ALPHA = 0.05; // below which p is significant
const PER_DECADE = 900, SMALLEST = 400; // as packed.py
const FIRST_DOWN = { r: true, whole: true }; // kinds whose high values are wanted first
const at = (id) => document.getElementById(id);

let table; // { rows, order, columns: [{ name, kind, says, words, least, codes }] }
let state;

// ---- Unpacking

async function unpack(text) {
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let from = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const made = JSON.parse(new TextDecoder().decode(bytes.subarray(4, from)));
  for (const column of made.columns) {
    column.codes = fromPlanes(bytes.subarray(from, from + 4 * made.rows), made.rows);
    from += 4 * made.rows;
  }
  let along = Uint32Array.from({ length: made.rows }, (_, i) => i);
  for (const i of made.order) along = arrange(along, made.columns[i].codes);
  for (const column of made.columns.slice(made.plain)) {
    column.codes = summedUp(column.codes, along);
  }
  return made;
}

function fromPlanes(bytes, n) {
  const codes = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    codes[i] = bytes[i] + 256 * (bytes[n + i] + 256 * (bytes[2 * n + i] + 256 * bytes[3 * n + i]));
  }
  return codes;
}

function summedUp(steps, along) {
  const codes = new Float64Array(steps.length);
  let sum = 0;
  along.forEach((row, i) => {
    sum += steps[i] % 2 ? -(steps[i] + 1) / 2 : steps[i] / 2;
    codes[row] = sum;
  });
  return codes;
}

// Rows by their ranks, whole numbers from 0 on; of equal ranks in the order they come in.
function arrange(rows, ranks) {
  const n = rows.length;
  const keys = new Float64Array(n);
  for (let i = 0; i < n; i++) keys[i] = ranks[rows[i]] * n + i;
  return Uint32Array.from(keys.sort(), (key) => rows[key % n]);
}

// ---- What is shown

function readAddress() {
  const said = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const named = (name) => table.columns.findIndex((c) => same(c.name, name));
  const sort = named(said.get("sort") ?? "");
  state = {
    sort: sort < 0 ? Math.max(0, table.columns.findIndex((c) => c.kind === "p")) : sort,
    filter: said.get("filter") ?? "",
    group: said.get("group") ?? "",
    below: named(said.get("below") ?? ""),
    page: Math.max(1, Number.parseInt(said.get("page") ?? 1, 10) || 1),
  };
  const order = said.get("order");
  state.down = order ? order === "down" : naturallyDown(state.sort);
}

function writeAddress() {
  const said = new URLSearchParams({ sort: table.columns[state.sort].name });
  if (state.down !== naturallyDown(state.sort)) said.set("order", state.down ? "down" : "up");
  if (state.filter) said.set("filter", state.filter);
  if (state.group) said.set("group", state.group);
  if (state.below >= 0) said.set("below", table.columns[state.below].name);
  if (state.page > 1) said.set("page", state.page);
  history.replaceState(null, "", `#${said}`);
}

const same = (a, b) => a.toLowerCase() === b.toLowerCase();
const naturallyDown = (column) => Boolean(FIRST_DOWN[table.columns[column].kind]);

// The rows wanted: names that hold one of the filter's words, the group, a significant p.
function chosen() {
  const [name] = table.columns;
  const words = state.filter.toUpperCase().split(/[\s,;]+/).filter(Boolean);
  const holds = (word) => words.some((part) => word.toUpperCase().includes(part));
  const named = words.length ? name.words.map(holds) : null;
  const group = grouping();
  const inside = state.group ? group?.words.findIndex((word) => same(word, state.group)) : -1;
  const p = table.columns[state.below];
  const limit = p && codeOf(ALPHA) - p.least + 1;
  const rows = new Uint32Array(table.rows);
  let count = 0;
  for (let i = 0; i < table.rows; i++) {
    if (named && !named[name.codes[i] - 1]) continue;
    if (inside >= 0 && group.codes[i] - 1 !== inside) continue;
    if (p && (p.codes[i] === 0 || p.codes[i] >= limit)) continue;
    rows[count++] = i;
  }
  return rows.subarray(0, count);
}

const grouping = () => table.columns.slice(1).find((column) => column.kind === "word");
const codeOf = (p) => (SMALLEST - 2) * PER_DECADE + p * 1e4 - 99;

// By the column asked for, rows without a value last; of equal ones the highest R first.
function inOrder(rows) {
  const r = table.columns.find((column) => column.kind === "r");
  const first = r ? arrange(rows, ranks(r.codes, true)) : rows;
  return arrange(first, ranks(table.columns[state.sort].codes, state.down));
}

function ranks(codes, down) {
  const top = codes.reduce((a, b) => Math.max(a, b), 0) + 1;
  return codes.map((code) => (code === 0 ? top : down ? top - code : code));
}

function text(column, code) {
  if (code === 0) return "";
  const number = code - 1 + column.least;
  if (column.kind === "word") return column.words[number];
  if (column.kind === "whole") return number.toLocaleString("en").replace("-", "−");
  if (column.kind === "r") return (number / 1000).toFixed(3).replace("-", "−");
  if (number === 0) return "0";
  const power = Math.floor((number - 1) / PER_DECADE) - SMALLEST;
  const mantissa = ((number - 1) % PER_DECADE) + 100;
  if (power >= -3 && power < 3) return Number(`${mantissa}e${power - 2}`).toPrecision(3);
  return `${(mantissa / 100).toFixed(2)}e${power}`.replace("-", "−");
}

// ---- On the page

function show() {
  const rows = inOrder(chosen());
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  state.page = Math.min(state.page, pages);
  const from = (state.page - 1) * PAGE;
  const shown = rows.subarray(from, from + PAGE);
  at("rows").replaceChildren(...Array.from(shown, rowOf));
  at("heads").childNodes.forEach((head, i) => {
    const sorted = i === state.sort;
    head.ariaSort = sorted ? (state.down ? "descending" : "ascending") : "none";
  });
  const count = (n) => n.toLocaleString("en");
  const these = rows.length ? `${count(from + 1)} to ${count(from + shown.length)} of ` : "";
  at("said").textContent = `${these}${count(rows.length)} rows` +
    (rows.length < table.rows ? `, chosen from ${count(table.rows)}` : "");
  at("before").disabled = state.page === 1;
  at("after").disabled = state.page === pages;
}

function rowOf(row) {
  const line = document.createElement("tr");
  for (const column of table.columns) {
    const first = column === table.columns[0];
    const cell = document.createElement(first ? "th" : "td");
    if (first) cell.scope = "row";
    cell.textContent = text(column, column.codes[row]);
    if (column.kind !== "word") cell.className = column.kind;
    if (column === table.columns.find((c) => c.kind === "r") && column.codes[row]) {
      const r = (column.codes[row] - 1 + column.least) / 1000;
      cell.style.setProperty("--r", Math.max(0, Math.min(1, r)));
    }
    line.append(cell);
  }
  return line;
}

function change(part) {
  Object.assign(state, { page: 1 }, part);
  show();
  writeAddress();
}

function heads() {
  return table.columns.map((column, i) => {
    const head = document.createElement("th");
    head.scope = "col";
    if (column.kind !== "word") head.className = column.kind;
    const button = document.createElement("button");
    button.textContent = column.name;
    button.title = column.says;
    button.onclick = () => {
      const down = i === state.sort ? !state.down : naturallyDown(i);
      change({ sort: i, down });
    };
    head.append(button);
    return head;
  });
}

function choices(select, label, names) {
  for (const [value, name] of [["", label], ...names]) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = name;
    select.append(option);
  }
}

function fillControls() {
  const group = grouping();
  at("filter").value = state.filter;
  at("group").value = group?.words.find((word) => same(word, state.group)) ?? "";
  at("below").value = state.below < 0 ? "" : table.columns[state.below].name;
}

async function begin() {
  if (typeof DecompressionStream === "undefined") {
    at("said").textContent = "This browser can't unpack the table: all of it is in genes.csv.";
    return;
  }
  table = await unpack(at("packed").textContent);
  at("heads").append(...heads());
  const group = grouping();
  if (group) {
    choices(at("group"), `every ${group.name}`, group.words.map((word) => [word, word]));
  }
  at("group").hidden = !group || group.words.length < 2;
  const p = table.columns.filter((column) => column.kind === "p");
  choices(at("below"), "any p", p.map(({ name }) => [name, `${name} < .05`]));
  at("filter").oninput = (event) => change({ filter: event.target.value });
  at("group").onchange = (event) => change({ group: event.target.value });
  at("below").onchange = (event) => {
    change({ below: table.columns.findIndex((c) => c.name === event.target.value) });
  };
  at("before").onclick = () => change({ page: state.page - 1 });
  at("after").onclick = () => change({ page: state.page + 1 });
  window.addEventListener("hashchange", () => {
    if (location.hash.includes("=")) read();
  });
  read();
}

function read() {
  readAddress();
  fillControls();
  show();
}

begin();
