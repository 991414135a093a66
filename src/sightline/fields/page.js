"use strict";
// What is seen and done; what it is judged by stands in page_rules.js, which comes first. `measure`, `put` and `lines` say in JavaScript
// what picture.py says in Python.

// -- the picture --------------------------------------------------------------------------------------------------------------
const NS = "http://www.w3.org/2000/svg";
function make(tag, attributes, parent, text) {
  const element = document.createElementNS(NS, tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}
function html(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const items = new Map(), chains = new Map(), cardOf = new Map(), firstRow = new Map();
(function remember(item, above) {
  items.set(item.id, item);
  chains.set(item.id, [...above, item]);
  if (!item.children) item.nodes.forEach((i) => cardOf.set(i, item));
  for (const lane of item.lanes || []) firstRow.set(item.id + " " + lane[0], lane[3]);
  for (const child of item.children || []) remember(child, [...above, item]);
})(picture.root, []);
const isOpen = (item) => Boolean(item.children) && (item.id === "root" || !state.folded.has(item.id));

let sizes, boxes, tracks, edges;
function grid(group) {
  const widths = Array(group.columns).fill(0), heights = Array(group.rows).fill(0), lanes = Array(group.columns).fill(0), xs = [], ys = [];
  for (const child of group.children) {
    widths[child.column] = Math.max(widths[child.column], sizes.get(child.id)[0]);
    heights[child.row] = Math.max(heights[child.row], sizes.get(child.id)[1]);
  }
  for (const [, column, lane] of group.lanes) lanes[column] = Math.max(lanes[column], lane);
  let x = M.pad, y = group.id === "root" ? M.pad : M.head + M.pad;
  widths.forEach((width, i) => { xs.push(x); x += width + lanes[i] * M.lane + M.column; });
  heights.forEach((height) => { ys.push(y); y += height + M.row; });
  return { xs, ys, widths, heights, width: x - M.column + M.pad, height: y - M.row + M.pad };
}
function measure(item) {
  if (!isOpen(item)) return sizes.set(item.id, [M.width, M.height]);
  item.children.forEach(measure);
  const { width, height } = grid(item);
  sizes.set(item.id, [width, height]);
}
function put(item, x, y, level) {
  const [width, height] = sizes.get(item.id), open = isOpen(item);
  if (item.id !== "root") boxes.set(item.id, { item, x, y, width, height, open, level });
  if (!open) return;
  const { xs, ys, widths, heights } = grid(item);
  for (const child of item.children) {
    const [w, h] = sizes.get(child.id);
    put(child, x + xs[child.column] + (widths[child.column] - w) / 2, y + ys[child.row] + (heights[child.row] - h) / 2, level + 1);
  }
  for (const [name, column, lane, first, last] of item.lanes) {
    const ends = [];
    for (let row = first; row <= last; row++) ends.push(y + ys[row] + heights[row]);
    tracks.set(item.id + " " + name, [x + xs[column] + (lane ? widths[column] + lane * M.lane : widths[column] / 2), y + ys[first], ends]);
  }
}
function visible(id) {
  const chain = chains.get(id), end = chain.findIndex((item) => item.children && !isOpen(item));
  return end < 0 ? chain : chain.slice(0, end + 1);
}
function pass(group, source, last) {
  const key = group.id + " " + source, track = tracks.get(key);
  if (!track) return [];
  const index = last === null ? track[2].length - 1 : last - firstRow.get(key);
  return index < 0 ? [] : [[track[0], track[1]], [track[0], track[2][index]]];
}
function lines() {
  const found = new Map();
  for (const [source, target] of picture.edges) {
    const up = visible(source), down = visible(target), start = boxes.get(up.at(-1).id), end = boxes.get(down.at(-1).id);
    if (start === end) continue;
    let common = 0;
    while (up[common] === down[common]) common++;
    const points = [[start.x + start.width / 2, start.y + start.height]];
    for (const group of up.slice(common, -1).reverse()) points.push(...pass(group, source, null));
    for (let depth = common - 1; depth < down.length - 1; depth++) points.push(...pass(down[depth], source, down[depth + 1].row - 1));
    points.push([end.x + end.width / 2, end.y]);
    found.set(start.item.id + ">" + end.item.id + points.join(), { source: start.item.id, target: end.item.id, points });
  }
  return [...found.values()];
}
function path(points) {
  let d = `M${points[0]}`;
  for (let i = 1; i < points.length; i++) {
    const [x, y] = points[i - 1], [u, v] = points[i], bend = Math.min((v - y) / 2, 40);
    d += i % 2 === 0 || x === u ? `L${points[i]}` : `C${x},${y + bend} ${u},${v - bend} ${u},${v}`;
  }
  return d;
}

const drawn = new Map(); // box id -> its <g>
function draw() {
  sizes = new Map(); boxes = new Map(); tracks = new Map();
  measure(picture.root);
  put(picture.root, 0, 0, 0);
  edges = lines();
  const scene = $("scene"), focused = document.activeElement && document.activeElement.closest && document.activeElement.closest(".box");
  const keep = focused && focused.dataset.id;
  scene.replaceChildren();
  drawn.clear();
  const frames = make("g", {}, scene), wires = make("g", { "aria-hidden": "true" }, scene), cards = make("g", {}, scene);
  for (const edge of edges) edge.element = make("path", { class: "edge", d: path(edge.points), "marker-end": "url(#arrow)" }, wires);
  for (const box of boxes.values()) drawn.set(box.item.id, box.open ? frame(box, frames) : card(box, cards));
  recolour();
  find(false);
  roving(drawn.has(keep) ? keep : state.chosen && drawn.has(state.chosen) ? state.chosen : boxes.keys().next().value);
  if (keep && drawn.has(keep)) drawn.get(keep).focus({ preventScroll: true });
  drawMap();
}
function element(box, kind, parent) {
  const group = make("g", { class: "box " + kind, transform: `translate(${box.x},${box.y})`, role: "treeitem", tabindex: -1, "aria-level": box.level }, parent);
  group.dataset.id = box.item.id;
  if (box.item.children) group.setAttribute("aria-expanded", box.open);
  return group;
}
function frame(box, parent) {
  const group = element(box, "frame", parent), { item } = box;
  make("rect", { class: "face", width: box.width, height: box.height, rx: 10 }, group);
  make("text", { class: "name", x: 12, y: 19 }, group, "▾ " + cut(item.label, Math.floor(box.width / 8) - 6) + (item.repeat ? ` ×${item.repeat}` : ""));
  return group;
}
function card(box, parent) {
  const { item, width, height } = box, group = element(box, item.children ? "folded" : "card", parent);
  if (item.children) make("rect", { class: "behind", x: 4, y: 4, width, height, rx: 7 }, group);
  make("rect", { class: "face", width, height, rx: 7 }, group);
  make("rect", { class: "band", width: 5, height: height - 10, x: 4, y: 5, rx: 2 }, group);
  if (item.children) {
    make("text", { class: "name", x: 15, y: 18 }, group, "▸ " + cut(item.label, item.repeat ? 13 : 16) + (item.repeat ? ` ×${item.repeat}` : ""));
    make("g", { class: "tiles" }, group);
  } else make("text", { class: "name", x: 15, y: 18 }, group, cut(item.label, 21));
  make("text", { class: "mark", x: width - 10, y: 18, "text-anchor": "end" }, group);
  const last = nodes[item.nodes.at(-1)], head = nodes[item.nodes[0]], field = axes ? cut(along(last, "size"), 11) : "";
  const more = item.children ? `${item.nodes.length} layers` : head.op + window_(head) + (item.nodes.length > 1 ? " +" + (item.nodes.length - 1) : "");
  make("text", { class: "op", x: 15, y: 35 }, group, cut(more, 26 - field.length));
  make("text", { class: "op", x: width - 10, y: 35, "text-anchor": "end" }, group, field);
  return group;
}
function recolour() {
  for (const [id, group] of drawn) {
    const { item, open } = boxes.get(id), rule = worst(item.nodes), unknown = !item.children && item.nodes.some((i) => nodes[i].status === "unknown");
    group.classList.remove(...RULES);
    if (rule) group.classList.add(rule);
    group.classList.toggle("unknown", unknown);
    const judged = item.nodes.filter((i) => now.rules[i]), bad = judged.filter((i) => worst([i]));
    const count = item.children && judged.length ? `${bad.length} of ${judged.length} judged layers marked` : "";
    const name = item.children ? `${item.path || item.label}, ${item.nodes.length} layers` : `${nodes[item.nodes[0]].name}, ${nodes[item.nodes[0]].op}, sees ${along(nodes[item.nodes.at(-1)], "size")}`;
    group.setAttribute("aria-label", [name, rule && WORDS[rule], count, unknown && "field unknown"].filter(Boolean).join(", "));
    group.setAttribute("aria-selected", String(id === state.chosen));
    if (open) continue;
    group.querySelector(".mark").textContent = unknown ? "?" : rule ? MARK[rule] + (item.children ? ` ${bad.length}` : "") : "";
    const tiles = group.querySelector(".tiles");
    if (!tiles) continue;
    tiles.replaceChildren();
    const step = Math.min(12, (M.width - 20) / Math.max(1, judged.length));
    judged.forEach((i, k) => make("rect", { class: "tile " + worst([i]), x: 15 + k * step, y: M.height - 5, width: Math.max(1, step - 1.5), height: 3 }, tiles));
  }
  for (const tile of $("map").querySelectorAll("[data-of]")) tile.setAttribute("class", "face " + worst(items.get(tile.dataset.of).nodes));
}

// -- zoom and pan -------------------------------------------------------------------------------------------------------------
const look = { x: 0, y: 0, k: 1 };
const port = () => $("net").getBoundingClientRect();
function move() {
  const { width, height } = port(), [w, h] = sizes.get("root");
  const clamp = (value, size, extent) => Math.min(Math.max(value, Math.min(60, extent - size - 60)), Math.max(extent - 60 - size, extent - size < 0 ? 60 : extent - size));
  look.x = w * look.k < width ? (width - w * look.k) / 2 : clamp(look.x, w * look.k, width);
  look.y = clamp(look.y, h * look.k, height);
  $("scene").setAttribute("transform", `translate(${look.x},${look.y}) scale(${look.k})`);
  const seen = $("map").querySelector(".seen");
  if (seen) for (const [key, value] of Object.entries({ x: -look.x / look.k, y: -look.y / look.k, width: width / look.k, height: height / look.k })) seen.setAttribute(key, value);
}
function zoom(factor, cx, cy) {
  const { width, height } = port();
  cx ??= width / 2; cy ??= height / 2;
  const k = Math.min(4, Math.max(0.03, look.k * factor));
  look.x = cx - ((cx - look.x) * k) / look.k;
  look.y = cy - ((cy - look.y) * k) / look.k;
  look.k = k;
  move();
}
function fit(whole) {
  const { width, height } = port(), [w, h] = sizes.get("root");
  const across = (width - 24) / w;
  look.k = Math.min(1.15, whole ? Math.min(across, (height - 20) / h) : Math.max(Math.min(across, 1), 0.45));
  look.x = (width - w * look.k) / 2;
  look.y = whole ? Math.max(10, (height - h * look.k) / 2) : 8;
  move();
}
function reveal(id) {
  const box = boxes.get(id), { width, height } = port();
  if (!box) return;
  const left = box.x * look.k + look.x, top = box.y * look.k + look.y, w = box.width * look.k, h = Math.min(box.height * look.k, height / 2);
  if (left < 10 || left + w > width - 10) look.x += width / 2 - (left + w / 2);
  if (top < 10 || top + h > height - 20) look.y += height / 2 - (top + h / 2);
  move();
}
function drawMap() {
  const map = $("map"), [w, h] = sizes.get("root");
  map.setAttribute("viewBox", `0 0 ${w} ${h}`);
  map.setAttribute("preserveAspectRatio", "none");
  map.replaceChildren();
  for (const { item, x, y, width, height, open } of boxes.values()) {
    if (open) continue;
    make("rect", { x, y, width, height, class: "face " + worst(item.nodes) }, map).dataset.of = item.id;
  }
  make("rect", { class: "seen", "vector-effect": "non-scaling-stroke" }, map);
  move();
}
function onMap(event) {
  const area = $("map").getBoundingClientRect(), [w, h] = sizes.get("root"), { width, height } = port();
  look.x = width / 2 - ((event.clientX - area.left) / area.width) * w * look.k;
  look.y = height / 2 - ((event.clientY - area.top) / area.height) * h * look.k;
  move();
}

// -- choosing -----------------------------------------------------------------------------------------------------------------
function roving(id) {
  for (const group of drawn.values()) group.setAttribute("tabindex", -1);
  if (drawn.has(id)) drawn.get(id).setAttribute("tabindex", 0);
}
function focusBox(id) {
  if (!drawn.has(id)) return;
  roving(id);
  drawn.get(id).focus({ preventScroll: true });
  reveal(id);
}
function toggle(id) {
  const before = boxes.get(id), top = before.y * look.k + look.y;
  state.folded.has(id) ? state.folded.delete(id) : state.folded.add(id);
  draw();
  look.y = top - boxes.get(id).y * look.k; // the group stays where it was under the pointer
  move();
}
function unfoldTo(card) {
  for (const item of chains.get(card.id)) state.folded.delete(item.id);
}
function choose(id, quiet) {
  state.chosen = id;
  state.unit = null;
  recolour();
  light(id);
  panel();
  const card = items.get(id);
  $("view").hidden = !card || axes === 0;
  if (!quiet && matchMedia("(max-width: 820px)").matches) $("panel").scrollIntoView({ block: "start" });
}
function light(id) {
  for (const edge of edges) edge.element.classList.toggle("lit", edge.source === id || edge.target === id);
}
function walk(id, key) {
  const box = boxes.get(id), next = (list) => list.length && focusBox(list[0]);
  if (key === "Home" || key === "End") return next([[...boxes.keys()].at(key === "Home" ? 0 : -1)]);
  if (box.open && key === "ArrowDown") return next([box.item.children[0].id]);
  const { item } = box, around = chains.get(id), parent = around.at(-2);
  if (key === "ArrowDown") {
    const out = edges.filter((edge) => edge.source === id).map((edge) => edge.target);
    return next(out.length ? out : after(id, 1));
  }
  if (key === "ArrowUp") {
    const into = edges.filter((edge) => edge.target === id).map((edge) => edge.source);
    if (parent.id !== "root" && item.row === 0) return next([parent.id]);
    return next(into.length ? into : after(id, -1));
  }
  const side = key === "ArrowRight" ? 1 : -1, middle = box.x + box.width / 2;
  if (box.item.children && !box.open && side > 0) return toggle(id);
  if (box.open && side < 0) return toggle(id);
  const beside = [...boxes.values()].filter((other) => other !== box && !other.open && other.y < box.y + box.height && other.y + other.height > box.y && (other.x + other.width / 2 - middle) * side > 1);
  beside.sort((a, b) => Math.abs(a.x - box.x) - Math.abs(b.x - box.x));
  if (beside.length) return next([beside[0].item.id]);
  if (side < 0 && parent.id !== "root") next([parent.id]);
}
function after(id, step) {
  const order = [...boxes.keys()];
  return order.slice(order.indexOf(id) + step).slice(0, 1);
}
function describe(id) {
  const item = items.get(id);
  if (!item.children) return [nodes[item.nodes[0]].name, figures(item.nodes[0])];
  const judged = item.nodes.filter((i) => now.rules[i]), sum = (list) => list.reduce((a, b) => a + b, 0);
  const macs = sum(item.nodes.map((i) => now.macs[i])), rows = [["layers", String(item.nodes.length)]];
  if (item.repeat) rows.push(["blocks alike", String(item.repeat)]);
  rows.push(["judged", String(judged.length)]);
  for (const rule of RULES) { const n = judged.filter((i) => now.rules[i].includes(rule)).length; if (n) rows.push([WORDS[rule], String(n)]); }
  rows.push(["field at its end", axes ? along(nodes[item.nodes.at(-1)], "size") : "–"], ["MACs", amount(macs) + (now.total ? ` (${((100 * macs) / now.total).toPrecision(2)} %)` : "")], ["parameters", amount(sum(item.nodes.map((i) => nodes[i].params)))]);
  return [item.path || item.label, rows];
}
const listed = (rows) => html("dl", {}, ...rows.flatMap(([name, value]) => [html("dt", { textContent: name }), html("dd", { textContent: value })]));
function panel() {
  const id = state.chosen, item = items.get(id);
  if (!item) return;
  const [name, rows] = describe(id), parts = [html("h2", { textContent: name })];
  const says = item.children ? "" : judgement(item.nodes[0]);
  if (says) parts.push(html("p", { className: "judgement " + worst(item.nodes), textContent: says }));
  $("details").replaceChildren(...parts.splice(0));
  parts.push(listed(rows));
  const inside = item.children ? item.nodes.filter((i) => nodes[i].judged) : item.nodes.slice(1);
  if (inside.length) {
    parts.push(html("p", { className: "soft", textContent: item.children ? "Judged layers inside:" : "Followed by:" }));
    parts.push(html("ul", { className: "inside" }, ...inside.map((i) => html("li", {}, item.children ? html("button", { textContent: `${nodes[i].name} ${MARK[worst([i])] || ""}`, onclick: () => go(i) }) : `${nodes[i].name} (${nodes[i].op})`))));
  }
  $("figures").replaceChildren(...parts);
  if (axes) paint();
}
function go(i) {
  const card = cardOf.get(i);
  if (state.table) return choose(card.id);
  unfoldTo(card);
  draw();
  choose(card.id, true);
  reveal(card.id);
}
function tip(id, x, y) {
  const [name, rows] = describe(id), item = items.get(id), says = item.children ? "" : judgement(item.nodes[0]), box = $("tip");
  box.replaceChildren(html("b", { textContent: name }), listed(rows));
  if (says) box.append(html("div", { textContent: says }));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = Math.max(4, Math.min(x + 16, innerWidth - width - 8)) + "px";
  box.style.top = Math.max(4, Math.min(y + 16, innerHeight - height - 8)) + "px";
}
const noTip = () => { $("tip").hidden = true; };

// -- the field on a picture ---------------------------------------------------------------------------------------------------
let image = null;
function spanOf(node, axis, unit, size) {
  const field = node.fields[axis], table = node.table[axis];
  if (field.status === "global") return [0, size];
  if (table) return table[Math.min(unit, table.length - 1)];
  if (!field.phases) return null;
  if (field.size === 0) return [0, 0];
  const n = field.phases.length, [lo, hi] = field.phases[unit % n], shift = Math.floor(unit / n) * Math.round(num(field.stride) * n);
  return [lo + shift, hi + shift];
}
function neutral(pen, w, h) {
  const fade = pen.createLinearGradient(0, 0, w, h);
  fade.addColorStop(0, "#c9d6e4"); fade.addColorStop(1, "#8fa3b8");
  pen.fillStyle = fade;
  pen.fillRect(0, 0, w, h);
  pen.fillStyle = "#ffffff38";
  for (let i = 0; i < 8; i++) for (let j = 0; j < 8; j++) if ((i + j) % 2) pen.fillRect((j * w) / 8, (i * h) / 8, w / 8, h / 8);
}
const planes = axes === 1 ? [null, 0] : [axes - 2, axes - 1]; // the axes that the picture shows as rows and columns
const frameOf = {}; // how the canvas lies over the input: offset and scale
function paint() {
  const item = items.get(state.chosen), i = item.nodes.at(-1), node = nodes[i], map = now.maps[i];
  const useTable = node.table.some((table) => table), base = useTable ? data.resolution : now.size;
  const counts = node.fields.map((field, axis) => { const table = node.table[axis]; return table ? table.length : field.status === "global" || !map ? 1 : Math.max(1, map[axis]); });
  state.unit = (state.unit || counts.map((n) => Math.floor(n / 2))).map((u, axis) => Math.min(Math.max(0, u), counts[axis] - 1));
  const spans = node.fields.map((_, axis) => spanOf(node, axis, state.unit[axis], base[axis]));
  const pick = (axis) => (axis === null ? [[0, Math.max(4, base[0] / 8)], Math.max(4, base[0] / 8)] : [spans[axis], base[axis]]);
  const [[rows, height], [columns, width]] = planes.map(pick);
  const reach = (span, size) => (span ? Math.min(Math.max(0, -span[0], span[1] - size) * 1.04, 1.6 * size) : 0);
  const marginY = planes[0] === null ? 0 : reach(rows, height), marginX = reach(columns, width), canvas = $("canvas");
  const scale = Math.min(680 / (width + 2 * marginX), 680 / (height + 2 * marginY));
  canvas.width = Math.ceil((width + 2 * marginX) * scale); canvas.height = Math.ceil((height + 2 * marginY) * scale);
  const pen = canvas.getContext("2d"), x = marginX * scale, y = marginY * scale, w = width * scale, h = height * scale;
  Object.assign(frameOf, { x, y, scale, counts, node, base });
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--frame");
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.save(); pen.translate(x, y);
  if (image) { pen.imageSmoothingEnabled = true; pen.drawImage(image, 0, 0, w, h); } else neutral(pen, w, h);
  pen.restore();
  let says;
  if (spans.some((span) => !span)) says = `Where its units look is ${node.status}${node.notes.length ? ": " + node.notes.at(-1) : ""}.`;
  else {
    const within = (value, most) => Math.min(Math.max(value, 3), most - 3), [W, H] = [canvas.width, canvas.height]; // a box that goes on beyond the picture keeps its outline
    const [u, v] = [within(x + columns[0] * scale, W), within(y + rows[0] * scale, H)], [bw, bh] = [within(x + columns[1] * scale, W) - u, within(y + rows[1] * scale, H) - v];
    pen.fillStyle = "#0009";
    pen.beginPath(); pen.rect(0, 0, canvas.width, canvas.height); pen.rect(u, v, bw, bh); pen.fill("evenodd");
    for (const [colour, line] of [["#000", 5], ["#ffd54a", 2.5]]) { pen.strokeStyle = colour; pen.lineWidth = line; pen.strokeRect(u, v, bw, bh); }
    pen.setLineDash([6, 5]); pen.lineWidth = 1.5; pen.strokeStyle = "#fff"; pen.strokeRect(x, y, w, h); pen.setLineDash([]);
    says = `Unit (${state.unit.join(", ")}) of ${counts.join(" × ")} sees ${spans.map(([lo, hi], a) => `${AXIS[a]} ${lo} to ${hi - 1}`).join(", ")}.`;
    if (spans.some(([lo, hi], a) => lo < 0 || hi > base[a])) says += ` Dashed: the input; beyond it lies padding${Math.max(rows[1] - rows[0] - height - 2 * marginY, columns[1] - columns[0] - width - 2 * marginX) > 0 ? " (the box goes on outside this picture)" : ""}.`;
    if (useTable && base.join() !== now.size.join()) says += ` Shown at the captured size ${base.join(" × ")}, where alone this is known.`;
  }
  $("where").textContent = says;
  canvas.setAttribute("aria-label", says);
  const fields = $("units");
  if (fields.childElementCount !== axes || fields.contains(document.activeElement) === false) {
    fields.replaceChildren(...counts.map((n, axis) => {
      const input = html("input", { type: "number", min: 0, max: n - 1, value: state.unit[axis], disabled: n === 1 });
      input.oninput = () => { if (input.value !== "") { state.unit[axis] = +input.value; paint(); } };
      return html("label", { className: "soft" }, axes === 2 ? ["row ", "column "][axis] : AXIS[axis] + " ", input);
    }));
  }
}
$("canvas").onclick = (event) => {
  const { x, y, scale, counts, node, base } = frameOf, k = $("canvas").width / $("canvas").clientWidth;
  const at = [(event.offsetY * k - y) / scale, (event.offsetX * k - x) / scale];
  planes.forEach((axis, plane) => {
    if (axis === null) return;
    let best = Infinity;
    for (let unit = 0; unit < counts[axis]; unit++) {
      const span = spanOf(node, axis, unit, base[axis]), far = span ? Math.abs((span[0] + span[1]) / 2 - at[plane]) : Infinity;
      if (far < best) { best = far; state.unit[axis] = unit; }
    }
  });
  paint();
};
function load(address) {
  const picture_ = new Image();
  picture_.onload = () => { image = picture_; if (state.chosen && axes) paint(); };
  picture_.src = address;
}
$("file").onchange = () => { if ($("file").files[0]) load(URL.createObjectURL($("file").files[0])); };
if (data.image) load(data.image);

// -- table --------------------------------------------------------------------------------------------------------------------
const COLUMNS = [
  ["layer", (i) => nodes[i].name], ["at this size", (i) => (now.rules[i] || []).map((rule) => WORDS[rule]).join(", "), (i) => { const r = RULES.indexOf(worst([i])); return r < 0 ? 9 : r; }, true], ["op", (i) => nodes[i].op + window_(nodes[i])],
  ["field", (i) => along(nodes[i], "size"), (i) => area(i, "size")], ["shortest", (i) => along(nodes[i], "min_size"), (i) => area(i, "min_size")],
  ["step", (i) => along(nodes[i], "stride"), (i) => area(i, "stride")], ["start", (i) => along(nodes[i], "start"), (i) => (axes ? nodes[i].fields[0].start ?? 1e9 : 0)],
  ["map", (i) => (now.maps[i] ? now.maps[i].join(" × ") : "–"), (i) => (now.maps[i] ? product(now.maps[i]) : -1)],
  ["MACs", (i) => amount(now.macs[i]), (i) => now.macs[i]], ["parameters", (i) => amount(nodes[i].params), (i) => nodes[i].params],
  ["status", (i) => nodes[i].status],
];
const area = (i, key) => product(nodes[i].fields.map((f) => num(f[key]) ?? 0));
const matches = (i) => { const node = nodes[i], text = (node.name + " " + node.op + " " + node.module).toLowerCase(); return state.find.split(/\s+/).every((word) => text.includes(word)); };
function table() {
  const filter = $("filter").value;
  const keep = (i) => !nodes[i].hidden && matches(i) && (filter === "all" || (filter === "judged" && now.rules[i]) || (filter === "marked" && (now.rules[i] || []).length) || (filter === "unknown" && nodes[i].status === "unknown"));
  const rows = nodes.map((_, i) => i).filter(keep);
  if (state.sort !== null) {
    const [, text, value] = COLUMNS[state.sort], key = value || text, sign = state.down ? -1 : 1;
    rows.sort((a, b) => { const p = key(a), q = key(b); return sign * (typeof p === "string" ? p.localeCompare(q, undefined, { numeric: true }) : p - q) || a - b; });
  }
  $("count").textContent = `${rows.length} of ${nodes.filter((node) => !node.hidden).length} layers`;
  $("table").tHead.replaceChildren(html("tr", {}, ...COLUMNS.map(([name, , value, words_], k) => {
    const cell = html("th", { className: value && !words_ ? "n" : "", scope: "col" }, html("button", { textContent: name, onclick: () => { state.down = state.sort === k && !state.down; state.sort = k; table(); $("table").tHead.querySelectorAll("button")[k].focus(); } }));
    cell.setAttribute("aria-sort", state.sort === k ? (state.down ? "descending" : "ascending") : "none");
    return cell;
  })));
  $("table").tBodies[0].replaceChildren(...rows.map((i) => {
    const rule = worst([i]), row = html("tr", { className: rule ? "marked " + rule : "" });
    COLUMNS.forEach(([, text, value, words_], k) => row.append(html("td", { className: value && !words_ ? "n" : "" }, k ? text(i) : html("button", { textContent: text(i), onclick: () => go(i) }))));
    return row;
  }));
}

// -- search, sliders, the rest --------------------------------------------------------------------------------------------------
let place = -1;
function found() { return state.find ? nodes.map((_, i) => i).filter((i) => !nodes[i].hidden && matches(i)) : []; }
function find(jump) {
  const list = found(), hits = new Set(list);
  for (const [id, group] of drawn) {
    const hit = items.get(id).nodes.some((i) => hits.has(i)), open = boxes.get(id).open;
    group.classList.toggle("hit", hit && !open);
    group.classList.toggle("dim", Boolean(state.find) && !hit && !open);
  }
  if (jump && list.length) {
    place = (place + jump + list.length) % list.length;
    const card = cardOf.get(list[place]);
    if (!state.table) {
      if (!boxes.has(card.id)) { unfoldTo(card); draw(); }
      choose(card.id, true);
      reveal(card.id);
    }
  }
  $("hits").textContent = state.find ? (list.length ? (place >= 0 ? `${place + 1} of ${list.length}` : `${list.length} found`) : "none found") : "";
}
function legend() {
  const counts = RULES.map((rule) => Object.values(now.rules).filter((found) => found.includes(rule)).length);
  $("legend").replaceChildren(...RULES.map((rule, k) => html("li", { className: rule }, html("i", { textContent: MARK[rule] }), `${WORDS[rule]} ${counts[k]}`)));
  if (now.undecided) $("legend").append(html("li", {}, html("i", { textContent: "?" }), `not judged ${now.undecided}`));
  const judged = Object.keys(now.rules).length, share = now.total ? (100 * now.wasted) / now.total : 0;
  $("verdict").textContent = axes ? `At ${now.size.join(" × ")}: ${counts[0]} of ${judged} judged layers unproductive; ${share.toFixed(1)} % of ${amount(now.total)} MACs and ${amount(now.params)} of ${amount(data.params)} parameters wasted.` : "The input has no spatial axes.";
}
function resize() {
  now = judge(state.size);
  legend();
  recolour();
  if (state.chosen) panel();
  if (state.table) table();
}
let queued = 0;
function later() { cancelAnimationFrame(queued); queued = requestAnimationFrame(resize); }
const TOP = Math.max(512, 2 * Math.max(0, ...data.resolution)), LOW = 8;
function sliders() {
  const pairs = AXIS.map((name, axis) => {
    const range = html("input", { type: "range", min: LOW, max: TOP, value: state.size[axis], id: "range-" + axis }), exact = html("input", { type: "number", min: 1, max: 65536, value: state.size[axis], id: "exact-" + axis });
    range.setAttribute("aria-label", name + " of the input"); exact.setAttribute("aria-label", name + " of the input, exact");
    const set = (value) => {
      if (!(value >= 1)) return;
      state.size = state.size.map((old, other) => (other === axis || state.linked ? Math.min(65536, Math.round(value)) : old));
      pairs.forEach(([r, e], other) => { r.value = state.size[other]; if (e !== document.activeElement) e.value = state.size[other]; });
      later();
    };
    range.oninput = () => set(+range.value);
    exact.oninput = () => set(+exact.value);
    return [range, exact, name];
  });
  pairs.forEach(([range, exact, name], axis) => {
    const rail = html("span", { className: "rail" }, range);
    if (axis === 0) rail.append(html("canvas", { id: "curve", width: 128, height: 1, title: "share of wasted MACs by square resolution" }));
    $("sliders").append(html("label", {}, name, rail, exact));
  });
  if (axes > 1) {
    const link = html("input", { type: "checkbox", id: "link", checked: new Set(state.size).size === 1 });
    state.linked = link.checked;
    link.onchange = () => { state.linked = link.checked; };
    $("sliders").append(html("label", { className: "link" }, link, "linked"));
  }
}
function curve() {
  const canvas = $("curve");
  if (!canvas) return;
  const pen = canvas.getContext("2d"), tone = getComputedStyle(document.documentElement), red = tone.getPropertyValue("--unproductive"), line = tone.getPropertyValue("--line");
  for (let k = 0; k < canvas.width; k++) {
    const size = Math.round(LOW + ((TOP - LOW) * k) / (canvas.width - 1)), { wasted, total } = judge(data.resolution.map(() => size));
    pen.globalAlpha = 1; pen.fillStyle = line; pen.fillRect(k, 0, 1, 1);
    pen.globalAlpha = total ? Math.min(1, wasted / total) ** 0.5 : 0; pen.fillStyle = red; pen.fillRect(k, 0, 1, 1);
  }
}
function theme(dark) {
  document.documentElement.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
  curve();
  if (state.chosen && axes) paint();
}
function show(asTable) {
  state.table = asTable;
  $("graph").hidden = asTable; $("list").hidden = !asTable;
  $("show-graph").setAttribute("aria-pressed", String(!asTable)); $("show-table").setAttribute("aria-pressed", String(asTable));
  noTip();
  asTable ? table() : move();
}
function foldTo(which) {
  state.folded = new Set([...items.values()].filter((item) => item.children && item.id !== "root" && which(item)).map((item) => item.id));
  draw();
  fit(false);
}

function wire() {
  const net = $("net"), defs = make("defs", {}, null), arrow = make("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" }, defs);
  make("path", { d: "M0,0.8L8,4L0,7.2z" }, arrow);
  net.prepend(defs);
  const pointers = new Map();
  let moved = 0, apart = 0;
  net.onpointerdown = (event) => { if (event.button) return; pointers.set(event.pointerId, [event.clientX, event.clientY]); moved = 0; apart = 0; };
  net.onpointermove = (event) => {
    const old = pointers.get(event.pointerId);
    if (!old) return;
    moved += Math.abs(event.clientX - old[0]) + Math.abs(event.clientY - old[1]);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (moved < 4) return;
    net.setPointerCapture(event.pointerId); net.classList.add("drag"); noTip();
    if (pointers.size === 2) {
      const [a, b] = [...pointers.values()], area = port(), gap = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (apart) zoom(gap / apart, (a[0] + b[0]) / 2 - area.left, (a[1] + b[1]) / 2 - area.top);
      apart = gap;
    } else { look.x += event.clientX - old[0]; look.y += event.clientY - old[1]; move(); }
  };
  net.onpointerup = net.onpointercancel = (event) => { pointers.delete(event.pointerId); net.classList.remove("drag"); };
  net.addEventListener("wheel", (event) => {
    event.preventDefault(); noTip();
    const area = port();
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY * 0.004), event.clientX - area.left, event.clientY - area.top);
    else { look.x -= event.shiftKey ? event.deltaY : event.deltaX; look.y -= event.shiftKey ? 0 : event.deltaY; move(); }
  }, { passive: false });
  net.onclick = (event) => {
    const group = event.target.closest(".box");
    if (!group || moved >= 4) return;
    const id = group.dataset.id;
    roving(id); group.focus({ preventScroll: true }); noTip();
    if (items.get(id).children) toggle(id);
    choose(id);
  };
  net.onpointerover = (event) => { const group = event.target.closest(".box"); if (group && event.pointerType !== "touch" && !pointers.size && !boxes.get(group.dataset.id).open) { tip(group.dataset.id, event.clientX, event.clientY); light(group.dataset.id); } else noTip(); };
  net.onpointerleave = () => { noTip(); light(state.chosen); };
  net.onkeydown = (event) => {
    const group = event.target.closest(".box");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit(true);
    else if (event.key === "Escape") noTip();
    else if (!group) return;
    else if (/^Arrow|^Home$|^End$/.test(event.key)) walk(group.dataset.id, event.key);
    else if (event.key === "Enter" || event.key === " ") { if (items.get(group.dataset.id).children) toggle(group.dataset.id); choose(group.dataset.id); }
    else return;
    event.preventDefault();
  };
  net.onfocusin = (event) => { const group = event.target.closest(".box"); if (!group) return; light(group.dataset.id); if (group.matches(":focus-visible") && !boxes.get(group.dataset.id).open) { const area = group.getBoundingClientRect(); tip(group.dataset.id, area.right, area.top); } else noTip(); };
  net.onfocusout = noTip;
  $("map").onpointerdown = (event) => { $("map").setPointerCapture(event.pointerId); onMap(event); };
  $("map").onpointermove = (event) => { if (event.buttons) onMap(event); };
  $("in").onclick = () => zoom(1.25); $("out").onclick = () => zoom(0.8); $("fit").onclick = () => fit(true);
  $("fold-all").onclick = () => foldTo(() => true); $("fold-repeats").onclick = () => foldTo((item) => item.repeat); $("unfold").onclick = () => foldTo(() => false);
  $("search").oninput = () => { state.find = $("search").value.trim().toLowerCase(); place = -1; find(0); if (state.table) table(); };
  $("search").onkeydown = (event) => { if (event.key === "Enter") { event.preventDefault(); find(event.shiftKey ? -1 : 1); } };
  document.addEventListener("keydown", (event) => { if (event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) { event.preventDefault(); $("search").focus(); } });
  $("show-graph").onclick = () => show(false); $("show-table").onclick = () => show(true);
  $("filter").onchange = table;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let own = false;
  $("theme").onclick = () => { own = true; theme(!document.documentElement.classList.contains("dark")); };
  dark.onchange = () => { if (!own) theme(dark.matches); };
  theme(dark.matches);
  new ResizeObserver(move).observe(net);
}
now = judge(state.size);
sliders();
draw();
wire();
legend();
fit(false);
