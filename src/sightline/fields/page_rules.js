"use strict";
// The data is `sightline.fields.export.document`, with the picture of `sightline.fields.picture` under "picture". `judge` and `sizesAt` say in
// JavaScript what diagnosis.py and grids.py say in Python.
const data = JSON.parse(document.getElementById("data").textContent);
const { nodes, axes, picture } = data;
const M = picture.metrics;
const RULES = ["unproductive", "critical", "partial", "small_map"];
const MARK = { unproductive: "✕", critical: "!", partial: "~", small_map: "▫" };
const WORDS = { unproductive: "unproductive", critical: "critical", partial: "beyond one axis", small_map: "map below kernel", saturated: "saturated" };
const AXIS = { 0: [], 1: ["length"], 2: ["height", "width"], 3: ["depth", "height", "width"] }[axes] || data.resolution.map((_, i) => "axis " + i);
const $ = (id) => document.getElementById(id);
const state = { size: [...data.diagnosis.resolution], linked: true, folded: new Set(picture.folded), chosen: null, unit: null, table: false, sort: null, down: false, find: "" };
let now = null; // the diagnosis at state.size

// -- judging ------------------------------------------------------------------------------------------------------------------
const num = (v) => (v === "inf" ? Infinity : Array.isArray(v) ? v[0] / v[1] : v);
const product = (list) => list.reduce((a, b) => a * b, 1);

function windowed(n, [kernel, stride, before, after, dilation, transposed, extra], ceil) {
  if (n < 1) return 0;
  const extent = dilation * (kernel - 1) + 1, pads = before + after;
  if (transposed) return Math.max(0, (n - 1) * stride - pads + extent + extra);
  let size = Math.floor((n + pads - extent + (ceil ? stride - 1 : 0)) / stride) + 1;
  if (ceil && (size - 1) * stride >= n + before) size -= 1;
  return Math.max(0, size);
}

function sizesAt(size) {
  const out = [];
  for (const { grid } of nodes) {
    const before = grid.rule === "sum" ? null : out[grid.of] || data.resolution;
    if (grid.rule === "input") out.push(size);
    else if (grid.rule === "none") out.push(null);
    else if (grid.rule === "fixed") out.push(grid.size);
    else if (grid.rule === "share") out.push(size.map((r, i) => Math.max(1, Math.floor((2 * r * grid.by[i][0] + grid.by[i][1]) / (2 * grid.by[i][1])))));
    else if (grid.rule === "same") out.push(before);
    else if (grid.rule === "times") out.push(before.map((n, i) => (grid.by[i][0] >= grid.by[i][1] ? Math.floor : Math.ceil)((n * grid.by[i][0]) / grid.by[i][1])));
    else if (grid.rule === "sum") {
      const parts = grid.of.map((i) => out[i] || data.resolution);
      out.push(parts[0].map((n, i) => (i === grid.axis ? parts.reduce((sum, part) => sum + part[i], 0) : n)));
    } else out.push(before.map((n, i) => windowed(n, grid.axes[i], grid.ceil)));
  }
  return out;
}
const captured = sizesAt(data.resolution);

function judge(size) {
  const maps = sizesAt(size), rules = {}, macs = [];
  let total = 0, wasted = 0, params = 0, undecided = 0;
  nodes.forEach((node, i) => {
    if (node.hidden) return macs.push(0);
    const of = node.op === "conv_transpose2d" && node.inputs.length ? node.inputs[0] : i;
    macs[i] = maps[of] && captured[of] ? Math.floor((node.macs * product(maps[of])) / Math.max(1, product(captured[of]))) : node.macs;
    total += macs[i];
    if (!node.judged) return;
    const before = nodes[node.judged.input], kernel = node.judged.kernel;
    if (node.status === "unknown" || before.status === "unknown") return void (undecided += 1);
    const judged = kernel.map((_, a) => a).filter((a) => kernel[a] > 1), map = maps[node.judged.input] || size, found = [];
    const covers = (key) => judged.every((a) => before.fields[a][key] !== null && num(before.fields[a][key]) >= size[a]);
    if (covers("min_size")) found.push("unproductive");
    if (covers("size")) found.push("saturated");
    const beyond = judged.filter((a) => num(node.fields[a].min_size || 0) > size[a]);
    if (found[0] !== "unproductive" && beyond.length) found.push(beyond.length === judged.length ? "critical" : "partial");
    if (judged.some((a) => map[a] < kernel[a])) found.push("small_map");
    rules[i] = found;
    if (found[0] === "unproductive") { wasted += macs[i]; params += node.params; }
  });
  return { size, maps, rules, macs, total, wasted, params, undecided };
}
const worst = (ids) => RULES.find((rule) => ids.some((i) => (now.rules[i] || []).includes(rule))) || "";

// -- words --------------------------------------------------------------------------------------------------------------------
const words = (v) => (v === null ? "?" : v === "inf" ? "all" : Array.isArray(v) ? v[0] + "/" + v[1] : String(v));
const shown = (list) => { const w = list.map(words); return new Set(w).size === 1 ? w[0] : w.join(" × "); };
const along = (node, key) => (axes ? shown(node.fields.map((f) => f[key])) : "–");
const cut = (text, n) => (text.length > n ? text.slice(0, Math.ceil(n * 0.4) - 1) + "…" + text.slice(text.length - Math.floor(n * 0.6)) : text);
function amount(v) {
  for (const [factor, prefix] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e3, " k"]]) if (v >= factor) return Number((v / factor).toPrecision(3)) + prefix;
  return String(Math.round(v));
}
function window_(node) {
  const rows = node.grid.axes;
  if (!rows || node.op === "pad") return "";
  const strides = shown(rows.map((r) => r[1])), dilation = shown(rows.map((r) => r[4]));
  return " " + rows.map((r) => r[0]).join("×") + (strides === "1" ? "" : " /" + strides) + (dilation === "1" ? "" : " d" + dilation);
}
const source = (text) => text.replace(/^.*site-packages\//, "").replace(/^.*\/(?=[^/]*\/[^/]*$)/, "");

function figures(i) {
  const node = nodes[i], rows = [["operation", node.op.replace(/^act$/, "activation") + window_(node)]];
  if (node.module && node.module !== node.name) rows.push(["module", node.module]);
  const map = now.maps[i];
  rows.push(["map here", map ? map.join(" × ") : "–"], ["as captured", node.shape ? node.shape.join(" × ") : "–"]);
  rows.push(["field (longest path)", along(node, "size")], ["field (shortest path)", along(node, "min_size")]);
  rows.push(["step", along(node, "stride")], ["starts at", along(node, "start")]);
  if (axes && node.fields.some((f) => f.support !== null && f.support < 1)) rows.push(["cells read", shown(node.fields.map((f) => (f.support === null ? null : Math.round(f.support * 100) + " %")))]);
  rows.push(["status", node.status], ["MACs", amount(now.macs[i]) + (now.macs[i] && now.total ? ` (${((100 * now.macs[i]) / now.total).toPrecision(2)} %)` : "")]);
  rows.push(["parameters", amount(node.params)]);
  if (node.source) rows.push(["source", source(node.source)]);
  if (node.notes.length) rows.push(["notes", node.notes.join("; ")]);
  return rows;
}
function judgement(i) {
  const node = nodes[i], found = now.rules[i];
  if (!node.judged) return "";
  if (!found) return "Not judged: its field is unknown.";
  const before = nodes[node.judged.input], size = now.size.join(" × "), says = [];
  if (found.includes("unproductive")) says.push(`Unproductive: what it reads sees ${along(before, "min_size")} already by its shortest path; the input is ${size}.`);
  else if (found.includes("saturated")) says.push(`Saturated: what it reads sees ${along(before, "size")} by its longest path; the input is ${size}.`);
  if (found.includes("critical")) says.push(`Critical: even its shortest path sees ${along(node, "min_size")}, more than the input.`);
  if (found.includes("partial")) says.push(`Beyond one axis: its shortest path sees ${along(node, "min_size")}; the input is ${size}.`);
  if (found.includes("small_map")) says.push(`Its window (${node.judged.kernel.join(" × ")}) is larger than the map it reads (${(now.maps[node.judged.input] || now.size).join(" × ")}).`);
  return says.join(" ") || "Productive: it still adds context at this resolution.";
}
