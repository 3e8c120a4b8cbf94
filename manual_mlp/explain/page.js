"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const copy = (value) => JSON.parse(JSON.stringify(value));
  const MOST_ROWS = 8, LARGEST = 1e6, NUDGE = 2 ** -17;
  let state = copy(data.state), scope, functions, told, slopes, places = new Map(), pinned = null, hot = null;

  // Matrices: r rows and c columns, the entries row by row.
  const matrix = (r, c, entry) => {
    const v = new Array(r * c);
    for (let i = 0, n = 0; i < r; i++) for (let j = 0; j < c; j++) v[n++] = entry(i, j);
    return { r, c, v };
  };
  const scalar = (x) => ({ r: 1, c: 1, v: [x] });
  const of = (rows) => matrix(rows.length, rows[0].length, (i, j) => rows[i][j]);
  const rowsOf = (m) => Array.from({ length: m.r }, (_, i) => m.v.slice(i * m.c, (i + 1) * m.c));
  const each = (f) => (a) => ({ r: a.r, c: a.c, v: a.v.map(f) });
  const pair = (f) => (a, b) => {
    if (a.r === b.r && a.c === b.c) return { r: a.r, c: a.c, v: a.v.map((x, n) => f(x, b.v[n])) };
    if (b.v.length === 1) return { r: a.r, c: a.c, v: a.v.map((x) => f(x, b.v[0])) };
    if (a.v.length === 1) return { r: b.r, c: b.c, v: b.v.map((y) => f(a.v[0], y)) };
    for (const [side, n] of [["c", 1], ["r", 0]]) {
      if (a[side] !== b[side] && a[side] !== 1 && b[side] !== 1) {
        throw new Error(`The size of tensor a (${a[side]}) must match the size of tensor b (${b[side]}) ` +
          `at non-singleton dimension ${n}`);
      }
    }
    const entry = (m, i, j) => m.v[(m.r === 1 ? 0 : i) * m.c + (m.c === 1 ? 0 : j)];
    return matrix(Math.max(a.r, b.r), Math.max(a.c, b.c), (i, j) => f(entry(a, i, j), entry(b, i, j)));
  };
  const product = (a, b) => {
    if (a.c !== b.r) throw new Error(`mat1 and mat2 shapes cannot be multiplied (${a.r}x${a.c} and ${b.r}x${b.c})`);
    return matrix(a.r, b.c, (i, j) => {
      let sum = 0;
      for (let m = 0; m < a.c; m++) sum += a.v[i * a.c + m] * b.v[m * b.c + j];
      return sum;
    });
  };
  const fold = (rows) => (a) => rows(a.r, a.c, (i, j) => a.v[i * a.c + j]);
  const total = (n, entry) => { let sum = 0; for (let i = 0; i < n; i++) sum += entry(i); return sum; };
  const highest = (n, entry) => { let at = 0; for (let i = 1; i < n; i++) if (entry(i) > entry(at)) at = i; return at; };
  // 1 − the error function: a series of positive terms, and far out a continued fraction (Abramowitz and Stegun
  // 7.1.6 and 7.1.14).
  const erfc = (x) => {
    if (x < 0) return 2 - erfc(-x);
    const bell = Math.exp(-x * x) / Math.sqrt(Math.PI);
    if (x < 2.5) {
      let term = x, sum = x;
      for (let n = 1; n < 60; n++) sum += term *= (2 * x * x) / (2 * n + 1);
      return 1 - 2 * bell * sum;
    }
    let rest = x;
    for (let n = 60; n > 0; n--) rest = x + n / 2 / rest;
    return bell / rest;
  };
  const inverse = (a) => {
    const n = a.r, m = rowsOf(a).map((row, i) => [...row, ...row.map((_, j) => +(i === j))]);
    for (let k = 0; k < n; k++) {
      const best = k + highest(n - k, (i) => Math.abs(m[k + i][k]));
      [m[k], m[best]] = [m[best], m[k]];
      if (!m[k][k]) throw new Error("it has no inverse");
      m[k] = m[k].map((x) => x / m[k][k]);
      for (let i = 0; i < n; i++) if (i !== k) m[i] = m[i].map((x, j) => x - m[i][k] * m[k][j]);
    }
    return of(m.map((row) => row.slice(n)));
  };
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const whole = (m) => Math.round(m.v[0]);
  const get = (m, i, j) => {
    if (i >= m.r || j >= m.c) throw new Error("there is no such entry");
    return m.v[i * m.c + j];
  };
  const shares = fold((r, c, x) => {
    const tops = Array.from({ length: r }, (_, i) => x(i, highest(c, (j) => x(i, j))));
    const sums = tops.map((top, i) => total(c, (j) => Math.exp(x(i, j) - top)));
    return matrix(r, c, (i, j) => Math.exp(x(i, j) - tops[i]) / sums[i]);
  });
  const operations = {
    "+": pair((x, y) => x + y), "-": pair((x, y) => x - y), "/": pair((x, y) => x / y), "**": pair(Math.pow),
    "*": (...factors) => factors.reduce(pair((x, y) => x * y)), "@": product,
    "<": pair((x, y) => +(x < y)), "<=": pair((x, y) => +(x <= y)), ">": pair((x, y) => +(x > y)),
    ">=": pair((x, y) => +(x >= y)), "==": pair((x, y) => +(x === y)),
    max: pair((x, y) => Math.max(x, y)), min: pair((x, y) => Math.min(x, y)),
    if: (test, yes, no) => pair((t, choice) => choice[t ? 0 : 1])(test, pair((y, n) => [y, n])(yes, no)),
    neg: each((x) => -x), exp: each(Math.exp), ln: each(Math.log), log1p: each(Math.log1p), expm1: each(Math.expm1),
    tanh: each(Math.tanh), sin: each(Math.sin), cos: each(Math.cos), sqrt: each(Math.sqrt), abs: each(Math.abs),
    sigmoid: each((x) => 1 / (1 + Math.exp(-x))), softplus: each(softplus),
    Phi: each((x) => erfc(-x / Math.SQRT2) / 2), phi: each((x) => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)),
    T: (a) => matrix(a.c, a.r, (i, j) => a.v[j * a.c + i]),
    sum: (a) => scalar(total(a.v.length, (n) => a.v[n])),
    sum0: fold((r, c, x) => matrix(1, c, (_, j) => total(r, (i) => x(i, j)))),
    sum1: fold((r, c, x) => matrix(r, 1, (i) => total(c, (j) => x(i, j)))),
    most: (a) => scalar(Math.max(...a.v.map(Math.abs))),
    softmax: shares,
    lse: fold((r, c, x) => matrix(r, 1, (i) => {
      const top = x(i, highest(c, (j) => x(i, j)));
      return top + Math.log(total(c, (j) => Math.exp(x(i, j) - top)));
    })),
    hottest: fold((r, c, x) => matrix(r, c, (i, j) => +(highest(c, (m) => x(i, m)) === j))),
    choice: fold((r, c, x) => matrix(r, 1, (i) => highest(c, (j) => x(i, j)))),
    eye: (a) => matrix(a.c, a.c, (i, j) => +(i === j)),
    diag: (a) => matrix(a.c, a.c, (i, j) => (i === j ? a.v[i] : 0)),
    kron: (a, b) => matrix(a.r * b.r, a.c * b.c, (i, j) =>
      get(a, Math.floor(i / b.r), Math.floor(j / b.c)) * get(b, i % b.r, j % b.c)),
    row: (a, n) => matrix(1, a.c, (_, j) => get(a, whole(n), j)),
    col: (a, k) => matrix(a.r, 1, (i) => get(a, i, whole(k))),
    at: (a, n, k) => scalar(get(a, whole(n), whole(k))),
    basis: (a, n, k) => matrix(a.r, a.c, (i, j) => +(i === whole(n) && j === whole(k))),
    head: (a, n, k) => matrix(whole(n), whole(k), (i, j) => get(a, i, j)),
    pad: (a, x) => matrix(a.r, a.c + 1, (i, j) => (j < a.c ? get(a, i, j) : x.v[0])),
    flat: (a) => ({ r: 1, c: a.v.length, v: a.v }),
    rows: (a) => scalar(a.r), cols: (a) => scalar(a.c),
    moves: (a, draw) => matrix(a.r, a.c, (i, j) => halfEven(10 * Math.cos((i * a.c + j + 1) * (draw.v[0] + 2) * 1.7)) / 10),
    inv: inverse,
  };
  const halfEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

  // Formulas. A value that cannot be computed is {no: why}.
  const evaluate = (tree, look) => {
    if (typeof tree === "string") return look(tree);
    if (!Array.isArray(tree)) return scalar(+tree);
    const values = tree.slice(1).map((part) => evaluate(part, look)), own = functions[tree[0]];
    return own ? evaluate(own[1], (name) => values[own[0].indexOf(name)]) : operations[tree[0]](...values);
  };
  class Scope {
    constructor(given, definitions) { Object.assign(this, { given, definitions, found: new Map() }); }
    look = (name) => {
      if (name in this.given) return this.given[name];
      if (!this.found.has(name)) this.found.set(name, this.compute(this.definitions[name]));
      const value = this.found.get(name);
      if (value.no) throw new Error(value.no);
      return value;
    };
    compute(tree) {
      try { return evaluate(tree, this.look); } catch (error) { return { no: error.message }; }
    }
    at(name, value) { return new Scope({ ...this.given, [name]: value }, this.definitions); }
    differences(tree, name) {
      const at = this.compute(name), columns = [];
      if (at.no) return at;
      for (let n = 0; n < at.v.length; n++) {
        const [up, down] = [NUDGE, -NUDGE].map((step) =>
          this.at(name, { ...at, v: at.v.map((x, m) => (m === n ? x + step : x)) }).compute(tree));
        if (up.no || down.no) return up.no ? up : down;
        columns.push(up.v.map((x, m) => (x - down.v[m]) / (2 * NUDGE)));
      }
      return columns[0].length === 1 ? { ...at, v: columns.map((c) => c[0]) }
        : matrix(columns[0].length, columns.length, (i, j) => columns[j][i]);
    }
  }
  const chained = new Set(data.chain);
  const righted = (tree) => typeof tree === "string" ? (chained.has(tree) ? tree + "_" : tree)
    : Array.isArray(tree) ? [tree[0], ...tree.slice(1).map(righted)] : tree;
  const trees = data.trees, rightTrees = trees.map(righted);
  const compute = (n) => scope.compute(trees[n]);
  const linked = () => !state.H;
  const refresh = () => {
    const given = Object.fromEntries(data.inputs.filter((name) => state[name]).map((name) => [name, of(state[name])]));
    const [r, k, l] = data.focus, flags = { ce: "cross-entropy", se: "squared-error", bce: "binary-cross-entropy" };
    const numbers = { r: Math.min(r, state.T.length - 1), k, l, e: 0, linked: +linked() };
    for (const flag in flags) numbers[flag] = +(state.loss === flags[flag]);
    for (const name in numbers) given[name] = scalar(numbers[name]);
    functions = { ...data.activations[state.f], ...data.losses[state.loss] };
    told = Object.assign({}, data.definitions, ...state.mistakes.map((name) => data.mistakes[name]));
    scope = new Scope(given, told);
    slopes = new Map();
  };

  // Numbers as words.
  const places10 = (values, most = 4) => {
    for (let d = 0; d < most; d++) {
      if (values.every((x) => Math.abs(x - Math.round(x * 10 ** d) / 10 ** d) <= 1e-12)) return d;
    }
    return most;
  };
  const number = (x, digits = places10([x])) => {
    if (x === 0) return "0";
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "nan" : x > 0 ? "inf" : "−inf";
    const shown = Math.abs(+x.toFixed(digits));
    if (shown >= 10 ** -digits && shown < 1e6) return x.toFixed(digits).replace("-", "−");
    return x.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2").replaceAll("-", "−");
  };
  const factor = (x) => (x >= 0 ? number(x) : `(${number(x)})`);
  const commas = (x) => x.toLocaleString("en-US", { maximumFractionDigits: 0 });
  const terms = (a, b) => {
    const products = a.v.map((x, n) => x * b.v[n]), n = a.v.length, words = [];
    const top = highest(n, (i) => Math.abs(products[i]));
    const shown = n > 4 ? [...new Set([0, 1, 2, top])].sort((x, y) => x - y) : [...a.v.keys()];
    shown.forEach((i, at) => {
      if (i > (at ? shown[at - 1] : -1) + 1) words.push("…");
      words.push(`${factor(a.v[i])} · ${factor(b.v[i])}`);
    });
    if (shown.at(-1) < n - 1) words.push("…");
    return `${words.join(" + ")} = ${number(total(n, (i) => products[i]))}`;
  };
  const written = (tree, form) => {
    const values = (form === "terms" ? tree.slice(1) : [tree]).map((part) => scope.compute(part)), m = values[0];
    if (values.some((value) => value.no)) return "none";
    if (form === "terms") return terms(...values);
    if (form === "shape") return `${m.r}×${m.c}`;
    if (form === "all") return m.v.map((x) => number(x)).join(", ");
    if (form === "list") return m.v.slice(0, 3).map((x) => number(x)).join(", ") + (m.v.length > 3 ? ", …" : "");
    if (form === "whole") return commas(m.v[0]);
    if (!form || /^\d+$/.test(form)) return form ? number(m.v[0], +form) : number(m.v[0]);
    const n = Math.trunc(m.v[0]);
    return `${commas(n)} ${n === 1 ? form : form === "entry" ? "entries" : `${form}s`}`;
  };

  // Which entry of which named value an entry of a tree is.
  const home = (tree, i, j) => {
    if (typeof tree === "string") return [tree, i, j];
    if (tree[0] === "T") return home(tree[1], j, i);
    if (tree[0] === "row") return home(tree[1], whole(scope.compute(tree[2])), j);
    if (tree[0] === "col") return home(tree[1], i, whole(scope.compute(tree[2])));
    return null;
  };

  // Drawing.
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    element.textContent = text;
    return element;
  };
  const picked = (n, most) => (n > most ? [...Array(most - 1).keys(), null] : [...Array(n).keys()]);
  const label = (letter, n) => (n === null ? "…" : `${letter}=${n + 1}`);
  const build = (table, m, tree) => {
    const { r: rows, c: columns } = table.dataset, cells = [], body = make("tbody");
    const across = picked(m.c, 10), down = picked(m.r, 6);
    if (columns) {
      const line = body.appendChild(make("tr"));
      if (rows) line.append(make("th"));
      line.append(...across.map((j) => make("th", { scope: "col" }, label(columns, j))));
    }
    for (const i of down) {
      const line = body.appendChild(make("tr"));
      if (rows) line.append(make("th", { scope: "row" }, label(rows, i)));
      for (const j of across) {
        const cell = line.appendChild(make("td", {}, "…"));
        if (i === null || j === null) continue;
        cell.textContent = "";
        const place = home(tree, i, j), spot = place && place.join(":");
        if (place) places.set(spot, [...(places.get(spot) || []), cell]);
        if (place && data.inputs.includes(place[0])) {
          const title = `${name(place[0])} row ${place[1] + 1} column ${place[2] + 1}`;
          cell.append(make("input", { inputmode: "decimal", autocomplete: "off", "aria-label": title, size: 6 }));
        } else cell.tabIndex = cells.length ? -1 : 0;
        cell.of = { tree, i, j, place };
        cells.push(cell);
      }
    }
    table.tBodies[0]?.remove();
    table.append(body);
    table.cells = cells;
  };
  const paint = (cell, x, share, digits, wrong) => {
    const field = cell.firstElementChild, text = number(x, digits);
    cell.className = `${x < 0 ? "neg" : "pos"}${wrong ? " off" : ""}${cell.marked ? " mark" : ""}`;
    cell.style.setProperty("--s", `${Number.isFinite(share) ? Math.round(55 * share) : 0}%`);
    if (!field) { if (cell.textContent !== text) cell.textContent = text; }
    else if (field !== document.activeElement || field.dragged) field.value = text;
  };
  const drawTable = (table) => {
    const n = +table.dataset.x, m = compute(n), shape = m.no ? m.no : `${m.r}×${m.c}`;
    const right = rightTrees[n], want = state.mistakes.length ? scope.compute(right) : m;
    const key = m.no ? shape : `${shape} ${trees[n].includes("r") || typeof trees[n] !== "string" ? whole(scope.look("r")) : ""}`;
    table.caption.lastElementChild.textContent = m.no ? "" : shape;
    if (table.key !== key) {
      table.key = key;
      for (const [spot, cells] of places) places.set(spot, cells.filter((cell) => !(table.cells || []).includes(cell)));
      if (m.no) {
        table.cells = [];
        table.tBodies[0]?.remove();
        const line = make("tbody").appendChild(make("tr"));
        line.append(make("td", { class: "refused" }, `none: ${m.no}`));
        table.append(line.parentElement);
      } else build(table, m, trees[n]);
    }
    if (m.no) return;
    const most = Math.max(...m.v.map(Math.abs)) || 1, digits = places10(m.v);
    const mark = table.dataset.m ? compute(+table.dataset.m) : null;
    for (const cell of table.cells) {
      const at = cell.of.i * m.c + cell.of.j, x = m.v[at];
      cell.marked = mark && !mark.no && mark.v[at] !== 0;
      const off = want !== m && (want.no || want.r !== m.r || want.c !== m.c || !near(x, want.v[at], 1e-9));
      paint(cell, x, Math.abs(x) / most, digits, off);
    }
  };
  const near = (x, y, share) => x === y || Math.abs(x - y) <= share * Math.max(1, Math.abs(y));
  const drawTiles = (figure) => {
    const found = all("[data-x]", figure).map((tile) => [tile.firstElementChild, compute(+tile.dataset.x)]);
    const most = Math.max(1e-300, ...found.flatMap(([, m]) => (m.no ? [0] : m.v.map(Math.abs))));
    for (const [svg, m] of found) {
      if (m.no) { svg.replaceChildren(); continue; }
      const pixel = Math.min(26, Math.max(2, 112 / Math.max(m.r, m.c)));
      for (const [side, size] of [["width", m.c], ["height", m.r]]) svg.setAttribute(side, size * pixel);
      svg.setAttribute("viewBox", `0 0 ${m.c} ${m.r}`);
      const squares = m.v.map((x, n) => x ? `<path class="${x < 0 ? "neg" : "pos"}" fill-opacity="${
        Math.max(0.1, Math.abs(x) / most)}" d="M${n % m.c} ${Math.floor(n / m.c)}h1v1h-1z"/>` : "");
      svg.innerHTML = `${squares.join("")}<rect class="frame" width="${m.c}" height="${m.r}"/>`;
    }
  };
  const drawBoxes = (figure) => {
    const n = state.T.length, sizes = all("[data-side]", figure).map((box) => [box, ...box.dataset.side.split(" ")]);
    const sides = sizes.map(([box, r, c]) => [box, r === "N" ? n : +r, +c]), most = Math.max(...sides.flatMap((s) => s.slice(1)));
    for (const [box, r, c] of sides) {
      const [svg, words] = box.children, [h, w] = [r, c].map((side) => Math.max(4, (90 * side) / most));
      const size = { width: w + 2, height: h + 2, viewBox: `-1 -1 ${w + 2} ${h + 2}` };
      for (const attribute in size) svg.setAttribute(attribute, size[attribute]);
      svg.innerHTML = `<rect class="box" width="${w}" height="${h}"/>`;
      words.textContent = `${box.dataset.name} ${r}×${c}`;
    }
  };
  const drawCurve = (figure) => {
    const [z, y, slope] = ["Z", "Y", "S"].map((name) => scope.compute(["row", name, "r"]));
    if (z.no || y.no || slope.no) return;
    const x = matrix(1, 97, (_, j) => (j - 48) / 8), line = evaluate(["f", "z"], () => x).v;
    figure.querySelector("svg").innerHTML = curve(line.map((v, n) => [x.v[n], v]), z.v, y.v, slope.v);
  };
  const curve = (line, z, y, slope) => {
    const top = Math.max(1, ...line.map(([, v]) => v).filter(Number.isFinite), ...y);
    const low = Math.min(0, ...line.map(([, v]) => v).filter(Number.isFinite), ...y);
    const wide = Math.max(6, ...z.map(Math.abs)), at = (x, v) => [150 + (140 * x) / wide, 112 - (104 * (v - low)) / (top - low)];
    const point = ([x, v]) => at(x, v).map((side) => side.toFixed(1)).join(" ");
    const dots = z.map((x, n) => {
      const [across, up] = at(x, y[n]), tilt = (-slope[n] * 104 * wide) / ((top - low) * 140);
      const run = 22 / Math.hypot(1, tilt), ends = [across - run, up - run * tilt, across + run, up + run * tilt];
      return `<path class="dash" d="M${ends.slice(0, 2).join(" ")}L${ends.slice(2).join(" ")}"/>` +
        `<circle class="dot" cx="${across}" cy="${up}" r="4"/>`;
    });
    const axes = `<path class="axis" d="M${point([-wide, 0])}L${point([wide, 0])}M${point([0, low])}L${point([0, top])}"/>`;
    return `${axes}<path class="line" d="M${line.map(point).join("L")}"/>${dots.join("")}`;
  };

  // Checks.
  const compared = ({ got, want, by }) => {
    const ours = compute(got), key = `${want} ${by}`;
    if (!slopes.has(key)) slopes.set(key, by ? scope.differences(trees[want], by) : compute(want));
    const theirs = slopes.get(key), whole = by ? compute(want) : theirs;
    if (ours.no || theirs.no) return { reason: ours.no || theirs.no };
    if (ours.r !== theirs.r || ours.c !== theirs.c) {
      return { reason: `the shape is (${ours.r}, ${ours.c}), and should be (${theirs.r}, ${theirs.c})` };
    }
    const top = Math.max(1, ...theirs.v.map(Math.abs)), error = Math.max(...ours.v.map((x, n) => Math.abs(x - theirs.v[n])));
    const lost = by ? (16 * 2 ** -52 * Math.max(...whole.v.map(Math.abs))) / NUDGE : 0;
    return { error, allowed: (by ? 1e-6 : 1e-12) * top + lost };
  };
  const drawChecks = (own) => {
    const results = data.checks.map((check) => {
      const there = check.when === null || compute(check.when).v?.[0];
      return there && check.got !== null ? compared(check) : null;
    });
    const passed = results.map((found) => found && found.error <= found.allowed && found.allowed < Infinity);
    let failed = 0, count = 0;
    all("[data-checks]").forEach((line) => {
      const mine = line.dataset.checks.split(" ").map(Number).filter((n) => results[n]);
      const bad = mine.filter((n) => !passed[n]);
      failed += bad.length; count += mine.length;
      const first = bad.length ? data.checks[bad[0]] : null;
      line.className = `check ${first ? "failed" : "ok"}`;
      line.hidden = !mine.length && own;
      if (!own) { line.innerHTML = line.python; return; }
      const how = mine.some((n) => data.checks[n].by) ? ", by differences, in this page" : ", in this page";
      line.textContent = first ? `✗ ${bad.length} of ${mine.length} failed${how}: ${first.name}`
        : `✓ ${mine.length} ${mine.length === 1 ? "check" : "checks"}${how}`;
    });
    all("[data-check]").forEach((item) => {
      const n = +item.dataset.check, found = results[n];
      item.hidden = own && !found;
      if (!own) { item.innerHTML = item.python; item.className = item.kind; return; }
      if (!found) return;
      const way = data.checks[n].by ? "differences, in this page" : data.checks[n].against;
      const size = (x) => x.toExponential(1).replace("-", "−").replace(/(\D)(\d)$/, "$10$2");
      const said = found.reason || (found.error ? `largest difference ${size(found.error)}, allowed ${size(found.allowed)}`
        : "no difference");
      item.textContent = `${passed[n] ? "✓" : "✗"} ${data.checks[n].name}, by ${way}: ${said}`;
      item.className = passed[n] ? "ok" : "failed";
    });
    $("verdict").className = `verdict ${(own ? failed : data.failed) ? "failed" : "ok"}`;
    $("verdict").textContent = !own ? data.verdict : failed ? `${failed} of ${count} checks failed, in this page.`
      : `All ${count} checks passed, in this page.`;
    all("[data-mistake]").forEach((button) => {
      const on = state.mistakes.includes(button.dataset.mistake), caught = button.nextElementSibling;
      button.setAttribute("aria-pressed", on);
      const n = results.findIndex((found, n) => found && !passed[n]);
      caught.textContent = !on ? "" : n < 0 ? "No check objects: with these numbers it does no harm."
        : `Caught: ${data.checks[n].step}, ${data.checks[n].name}.`;
    });
  };

  // Where a number comes from: its terms, in letters or in numbers, and the entries that they look up.
  const low = (...at) => at.map((n) => n + 1).join(at.some((n) => n > 8) ? "," : "");
  const name = (named) => data.names[named] || named;
  const flat = new Set(["B", "C", "dB", "dC"]);
  const symbol = (named, i, j) => {
    const below = `<sub>${flat.has(named) ? low(j) : low(i, j)}</sub>`, [, start, end] = /^(.*?)(\)?)$/.exec(name(named));
    return `${start}${below}${end}`;
  };
  const spell = (tree, i, j, show, seen) => {
    const go = (part, row = i, column = j) => spell(part, row, column, show, seen);
    const join = (parts, sign) => (parts.length > 9 ? [...parts.slice(0, 8), "…"] : parts).join(sign);
    const wide = (part) => Array.isArray(part) && ["+", "-", "@", "sum0"].includes(part[0]);
    const tight = (part, row, column) => (wide(part) ? `(${go(part, row, column)})` : go(part, row, column));
    const value = (part) => scope.compute(part);
    const cast = (part) => { const m = value(part); return [part, m.r === 1 ? 0 : i, m.c === 1 ? 0 : j]; };
    if (typeof tree === "string") {
      const m = value(tree);
      if (m.no) return "none";
      seen.add(`${tree}:${i}:${j}`);
      return show ? factor(get(m, i, j)) : symbol(tree, i, j);
    }
    if (!Array.isArray(tree)) return number(tree);
    const [op, a, b] = tree;
    if (op === "T") return go(a, j, i);
    if (op === "row") return go(a, whole(value(b)), j);
    if (op === "col") return go(a, i, whole(value(b)));
    if (op === "neg") return `−${tight(a)}`;
    if (op === "@") {
      return join(Array.from({ length: value(a).c }, (_, m) => {
        const term = `${tight(a, i, m)} · ${tight(b, m, j)}`;
        return b === "I" && value(b).v[m * value(b).c + j] === 0 ? `<s>${term}</s>` : term;
      }), " + ");
    }
    if (op === "sum0") return join(Array.from({ length: value(a).r }, (_, n) => go(a, n, j)), " + ");
    if ("+-*/".includes(op)) {
      const [left, right] = [a, b].map(cast), inner = op === "*" || op === "/";
      const side = inner ? tight : (part, ...at) => go(part, ...at);
      const last = op === "-" || inner ? tight(...right) : go(...right);
      return `${side(...left)} ${{ "+": "+", "-": "−", "*": "·", "/": "/" }[op]} ${last}`;
    }
    if (op === "f" || op === "df") return `${op === "f" ? "f" : "f′"}(${go(a)})`;
    if (op === "softmax") {
      const parts = Array.from({ length: value(a).c }, (_, m) => `exp(${go(a, i, m)})`);
      return `exp(${go(a)}) / (${join(parts, " + ")})`;
    }
    if (op === "sigmoid") return `1 / (1 + exp(−${tight(a)}))`;
    if (functions[op]) {
      const [names, body] = functions[op], parts = Object.fromEntries(names.map((n, at) => [n, tree[at + 1]]));
      const put = (t) => typeof t === "string" ? parts[t] ?? t : Array.isArray(t) ? [t[0], ...t.slice(1).map(put)] : t;
      return go(put(body));
    }
    const m = value(tree);
    return m.no ? "none" : factor(get(m, i, j));
  };
  const explain = (cell) => {
    if (!cell?.of || cell.closest("[hidden]")) return;
    let { tree, i, j, place } = cell.of, lines = [];
    const seen = new Set(), m = scope.compute(tree);
    if (m.no || i >= m.r || j >= m.c) return;
    const value = number(get(m, i, j), Math.max(places10([get(m, i, j)]), 4));
    let title = "This entry";
    if (place) { title = symbol(...place); seen.add(place.join(":")); [tree, i, j] = [told[place[0]], place[1], place[2]]; }
    if (place && place[0] in scope.given) {
      lines = [data.inputs.includes(place[0]) ? `${title} = ${value}, given: type another, or drag it` : `${title} = ${value}`];
    } else {
      const full = place && !state.mistakes.length && data.full[place[0]];
      lines.push(`${title} = ${spell(tree, i, j, false, seen)}`, `= ${spell(tree, i, j, true, seen)} = ${value}`);
      if (full) {
        lines.push(`The whole chain rule, with the zeros of I struck out: ${spell(full, i, j, false, seen)}`);
        lines.push(`= ${spell(full, i, j, true, seen)}`);
      }
    }
    hot = cell;
    all(".lit").forEach((other) => other.classList.remove("lit"));
    for (const spot of seen) for (const other of places.get(spot) || []) other.classList.add("lit");
    cell.classList.add("lit");
    $("why").innerHTML = lines.map((line) => `<p>${line}</p>`).join("");
    $("why").hidden = false;
  };
  const forget = () => {
    all(".lit").forEach((cell) => cell.classList.remove("lit"));
    $("why").hidden = true;
    hot = pinned = null;
  };
  const cellOf = (event) => event.target.closest?.("table.matrix td");
  document.addEventListener("pointerover", (event) => {
    const cell = cellOf(event);
    if (pinned || event.pointerType === "touch") return;
    if (cell?.of) explain(cell); else if (hot && !event.target.closest("#why")) forget();
  });
  document.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell?.of) { explain(cell); pinned = cell; } else if (pinned && !event.target.closest("#why, .tools")) forget();
  });
  document.addEventListener("focusin", (event) => {
    const cell = cellOf(event);
    if (cell?.of && !pinned) explain(cell);
  });
  document.addEventListener("keydown", (event) => {
    const cell = cellOf(event), step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") forget();
    if (!cell?.of || !step || cell.firstElementChild) return;
    const { i, j } = cell.of, next = cell.closest("table").cells.find((c) => c.of.i === i + step[0] && c.of.j === j + step[1]);
    if (!next) return;
    event.preventDefault();
    [cell.tabIndex, next.tabIndex] = [-1, 0];
    pinned = null;
    next.focus();
  });

  // Changes.
  const say = (words) => { $("said").textContent = words; };
  const typed = (text) => {
    const plain = text.trim().replaceAll("−", "-").replace(",", "."), x = Number(plain);
    return plain && Number.isFinite(x) && Math.abs(x) <= LARGEST ? x : null;
  };
  const put = ([named, i, j], x) => {
    if (named === "H" && linked()) state.H = rowsOf(scope.look("H"));
    const row = state[named][i];
    if (named === "T" && state.loss === "cross-entropy") {
      const rest = total(row.length, (n) => (n === j ? 0 : row[n])), own = Math.min(1, Math.max(0, x));
      state.T[i] = row.map((old, n) => (n === j ? own : rest ? (old * (1 - own)) / rest : (1 - own) / (row.length - 1)));
    } else row[j] = x;
    update();
  };
  document.addEventListener("focusin", ({ target }) => {
    if (target.matches("table.matrix input")) {
      const [named, i, j] = target.parentElement.of.place;
      target.value = String(scope.look(named).v[i * scope.look(named).c + j]).replace("-", "−");
      target.select();
    }
  });
  document.addEventListener("focusout", ({ target }) => {
    if (target.matches("table.matrix input")) { target.removeAttribute("aria-invalid"); say(""); update(); }
  });
  document.addEventListener("input", ({ target }) => {
    if (!target.matches("table.matrix input")) return;
    const x = typed(target.value);
    target.toggleAttribute("aria-invalid", x === null);
    say(x === null ? `expected a number from −1,000,000 to 1,000,000, got ${target.value || "nothing"}` : "");
    if (x !== null) put(target.parentElement.of.place, x);
  });
  const move = (field, x) => {
    put(field.parentElement.of.place, Math.max(-LARGEST, Math.min(LARGEST, +x.toFixed(3))));
    const [named, i, j] = field.parentElement.of.place;
    field.value = String(+get(scope.look(named), i, j).toFixed(6)).replace("-", "−");
  };
  const valueOf = (field) => { const [named, i, j] = field.parentElement.of.place; return get(scope.look(named), i, j); };
  document.addEventListener("keydown", (event) => {
    const step = { ArrowUp: 0.1, ArrowDown: -0.1 }[event.key], field = event.target;
    if (!field.matches("table.matrix input")) return;
    if (event.key === "Enter") field.blur();
    if (!step) return;
    event.preventDefault();
    move(field, valueOf(field) + (event.shiftKey ? step / 10 : step));
  });
  let drag = null;
  document.addEventListener("pointerdown", (event) => {
    const field = event.target;
    if (field.matches("table.matrix input") && event.button === 0) drag = { field, x: event.clientX, from: valueOf(field) };
  });
  document.addEventListener("pointermove", (event) => {
    if (!drag || (!drag.on && Math.abs(event.clientX - drag.x) < 4)) return;
    if (!drag.on) { drag.on = true; drag.field.setPointerCapture(event.pointerId); document.body.classList.add("drags"); }
    move(drag.field, drag.from + (event.clientX - drag.x) * (event.shiftKey ? 0.001 : 0.01));
  });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => { document.body.classList.remove("drags"); drag = null; });
  }
  const draw = (scale) => Math.round(20 * scale * (Math.random() - 0.5)) / 10;
  const target = (row) => row.map(() => Math.round(10 * Math.random()) / 10);
  const chosen = (row) => { const top = highest(row.length, (n) => row[n]); return row.map((_, n) => +(n === top)); };
  const fit = () => {
    if (state.loss === "cross-entropy") {
      state.T = state.T.map((row) => (row.every((x) => x >= 0) && near(total(row.length, (n) => row[n]), 1, 1e-9) ? row : chosen(row)));
    }
  };
  const actions = {
    reset: () => { state = copy(data.state); history.replaceState(null, "", location.pathname + location.search); },
    random: () => {
      const scales = { X: 2, V: 1, C: 0.5, W: 1, B: 0.5 };
      for (const named in scales) state[named] = state[named].map((row) => row.map(() => draw(scales[named])));
      state.T = state.T.map(target);
      delete state.H;
    },
    fewer: () => {
      if (state.T.length === 1) return say("one row is left");
      for (const named of ["X", "T", "H"]) state[named]?.pop();
    },
    more: () => {
      if (state.T.length >= MOST_ROWS) return say(`at most ${MOST_ROWS} rows can be shown`);
      state.X.push(state.X[0].map(() => draw(2)));
      state.T.push(target(state.T[0]));
      state.H?.push(state.H[0].map(() => Math.round(10 * Math.random()) / 10));
    },
    layer: () => { delete state.H; },
    link: () => {
      navigator.clipboard?.writeText(location.href).then(() => say("copied"), () => say("the address of this page has them"));
    },
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button"), step = event.target.closest("a[href^='#']");
    if (step) { event.preventDefault(); show(step.hash.slice(1)); }
    if (!button) return;
    const { mistake, does } = button.dataset;
    if (mistake) {
      state.mistakes = state.mistakes.includes(mistake) ? state.mistakes.filter((m) => m !== mistake) : [...state.mistakes, mistake];
    }
    if (does) { say(""); actions[does](); }
    if (mistake || does) { fit(); update(); }
  });
  document.addEventListener("change", ({ target }) => {
    if (target.matches(".tools select")) { state[target.name] = target.value; fit(); update(); }
  });
  const show = (id) => {
    const there = $(id);
    for (let fold = there?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    const fold = there?.querySelector(":scope > details");
    if (fold) fold.open = true;
    there?.scrollIntoView();
    there?.focus({ preventScroll: true });
  };

  // The link: all numbers in the address, under the names that --numbers takes.
  const code = () => {
    const { T, ...rest } = state;
    return `#n=${btoa(JSON.stringify({ ...rest, "Y*": T }))}`;
  };
  const follow = () => {
    if (!location.hash.startsWith("#n=")) { if (location.hash.length > 1) show(location.hash.slice(1)); return; }
    try {
      const { "Y*": T, ...rest } = JSON.parse(atob(decodeURIComponent(location.hash.slice(3)))), found = { ...rest, T };
      const n = found.T.length, fits = (named, rows) => {
        const width = data.state[named]?.[0].length ?? data.state.W.length;
        return found[named].length === rows && found[named].every((row) => row.length === width &&
          row.every((x) => typeof x === "number" && Math.abs(x) <= LARGEST));
      };
      const fine = data.inputs.every((named) => (named === "H" && !found.H) ||
        fits(named, "XTH".includes(named) ? n : data.state[named].length));
      if (!fine || n < 1 || n > MOST_ROWS || !(found.f in data.activations) || !(found.loss in data.losses) ||
        !found.mistakes.every((m) => m in data.mistakes)) throw new Error("other numbers");
      state = Object.fromEntries([...data.inputs, "f", "loss", "mistakes"].filter((k) => k in found).map((k) => [k, found[k]]));
      fit();
    } catch { say("the numbers in this address do not fit this page, so they are left out"); }
  };

  // Exercises.
  all("form[data-answer]").forEach((form) => form.addEventListener("submit", (event) => {
    event.preventDefault();
    const want = compute(+form.dataset.answer).v?.[0], given = new FormData(form).get("answer"), x = typed(given ?? "");
    const right = form.dataset.picks ? x === want : x !== null && Math.abs(x - want) <= Math.max(5.1e-4, 5e-3 * Math.abs(want));
    const said = form.querySelector("output");
    said.textContent = given === null || given === "" ? "Nothing yet." : right ? "✓ Right." : "✗ Not so. Look at the hint.";
    said.className = right ? "ok" : "failed";
    if (!right) form.querySelector("details").open = true;
  }));

  // All at once.
  const parts = { whens: "[data-when]", texts: "output[data-x]", tables: "table[data-x]", tiles: "figure[data-tiles]",
    boxes: "figure[data-boxes]", curves: "figure[data-curve]", from: "[data-rows]" };
  const found = Object.fromEntries(Object.entries(parts).map(([key, selector]) => [key, all(selector)]));
  const update = () => {
    refresh();
    const own = JSON.stringify(state) !== JSON.stringify(data.state);
    document.body.classList.toggle("own", own);
    for (const part of found.whens) { const m = compute(+part.dataset.when); part.hidden = Boolean(m.no) || !m.v[0]; }
    for (const part of found.from) part.hidden = +part.dataset.rows > state.T.length;
    for (const part of found.texts) {
      const text = written(trees[+part.dataset.x], part.dataset.f || "");
      if (part.textContent !== text) part.textContent = text;
    }
    found.tables.forEach(drawTable);
    found.tiles.forEach(drawTiles);
    found.boxes.forEach(drawBoxes);
    found.curves.forEach(drawCurve);
    all("[data-of=f]").forEach((part) => { part.innerHTML = data.words[state.f]; });
    drawChecks(own);
    for (const choice of all(".tools select")) choice.value = state[choice.name];
    $("rows").textContent = state.T.length;
    all("[data-does=layer]").forEach((button) => { button.hidden = linked(); });
    if (own) history.replaceState(null, "", code());
    if (hot) explain(hot);
  };
  all("[data-checks], [data-check]").forEach((part) => { part.python = part.innerHTML; part.kind = part.className; });
  all("[data-script]").forEach((part) => { part.hidden = false; });
  window.addEventListener("hashchange", () => { follow(); update(); });
  window.explained = { set: (given) => { state = { ...copy(state), ...given }; fit(); update(); }, get: () => copy(state),
    values: () => trees.map((tree) => { const m = scope.compute(tree); return m.no ? null : rowsOf(m); }), update };
  follow();
  update();
})();
