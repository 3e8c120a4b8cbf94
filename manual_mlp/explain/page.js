"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id), copy = (value) => JSON.parse(JSON.stringify(value));
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const fail = (why) => { throw new Error(why); };
  const attempt = (make) => { try { return make(); } catch (error) { return { no: error.message }; } };
  const MOST_ROWS = 8, LARGEST = 1e6, NUDGE = 2 ** -17;
  // The numbers, what they make, the cells by what they show, and the cells that are looked at.
  let state = copy(data.state), scope, functions, told, slopes, places = new Map(), pinned, hot, drag;

  // Matrices: r rows and c columns, the entries row by row.
  const list = (length, entry) => Array.from({ length }, (_, n) => entry(n));
  const matrix = (r, c, entry) => ({ r, c, v: list(r * c, (n) => entry(Math.floor(n / c), n % c)) });
  const scalar = (x) => ({ r: 1, c: 1, v: [x] });
  const of = (rows) => matrix(rows.length, rows[0].length, (i, j) => rows[i][j]);
  const rowsOf = (m) => list(m.r, (i) => m.v.slice(i * m.c, (i + 1) * m.c));
  const each = (f) => (a) => ({ r: a.r, c: a.c, v: a.v.map(f) });
  const pair = (f) => (a, b) => {
    if (a.r === b.r && a.c === b.c) return { r: a.r, c: a.c, v: a.v.map((x, n) => f(x, b.v[n])) };
    if (b.v.length === 1) return { r: a.r, c: a.c, v: a.v.map((x) => f(x, b.v[0])) };
    if (a.v.length === 1) return { r: b.r, c: b.c, v: b.v.map((y) => f(a.v[0], y)) };
    const fits = (side) => a[side] === b[side] || a[side] === 1 || b[side] === 1;
    if (!fits("r") || !fits("c")) fail(`${shapeOf(a)} does not fit ${shapeOf(b)}`);
    const entry = (m, i, j) => m.v[(m.r === 1 ? 0 : i) * m.c + (m.c === 1 ? 0 : j)];
    return matrix(Math.max(a.r, b.r), Math.max(a.c, b.c), (i, j) => f(entry(a, i, j), entry(b, i, j)));
  };
  const largest = (m) => Math.max(...m.v.map(Math.abs)), shapeOf = (m) => `${m.r}×${m.c}`;
  const total = (n, entry) => { let sum = 0; for (let i = 0; i < n; i++) sum += entry(i); return sum; };
  const product = (a, b) => {
    if (a.c !== b.r) fail(`mat1 and mat2 shapes cannot be multiplied (${a.r}x${a.c} and ${b.r}x${b.c})`);
    return matrix(a.r, b.c, (i, j) => total(a.c, (m) => a.v[i * a.c + m] * b.v[m * b.c + j]));
  };
  const fold = (rows) => (a) => rows(a.r, a.c, (i, j) => a.v[i * a.c + j]);
  const highest = (n, entry) => list(n, (i) => i).reduce((at, i) => (entry(i) > entry(at) ? i : at), 0);
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
      if (!m[k][k]) fail("it has no inverse");
      m[k] = m[k].map((x) => x / m[k][k]);
      for (let i = 0; i < n; i++) if (i !== k) m[i] = m[i].map((x, j) => x - m[i][k] * m[k][j]);
    }
    return of(m.map((row) => row.slice(n)));
  };
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))), whole = (m) => Math.round(m.v[0]);
  const get = (m, i, j) => (i < m.r && j < m.c ? m.v[i * m.c + j] : fail("there is no such entry"));
  const lse = fold((r, c, x) => matrix(r, 1, (i) => {
    const top = x(i, highest(c, (j) => x(i, j)));
    return top + Math.log(total(c, (j) => Math.exp(x(i, j) - top)));
  }));
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
    lse, softmax: (a) => pair((x, sum) => Math.exp(x - sum))(a, lse(a)),
    hottest: fold((r, c, x) => matrix(r, c, (i, j) => +(highest(c, (m) => x(i, m)) === j))),
    choice: fold((r, c, x) => matrix(r, 1, (i) => highest(c, (j) => x(i, j)))),
    eye: (a) => matrix(a.c, a.c, (i, j) => +(i === j)),
    diag: (a) => matrix(a.c, a.c, (i, j) => (i === j ? a.v[i] : 0)),
    kron: (a, b) => matrix(a.r * b.r, a.c * b.c, (i, j) => get(a, ~~(i / b.r), ~~(j / b.c)) * get(b, i % b.r, j % b.c)),
    row: (a, n) => matrix(1, a.c, (_, j) => get(a, whole(n), j)),
    col: (a, k) => matrix(a.r, 1, (i) => get(a, i, whole(k))),
    at: (a, n, k) => scalar(get(a, whole(n), whole(k))),
    basis: (a, n, k) => matrix(a.r, a.c, (i, j) => +(i === whole(n) && j === whole(k))),
    head: (a, n, k) => matrix(whole(n), whole(k), (i, j) => get(a, i, j)),
    pad: (a, x) => matrix(a.r, a.c + 1, (i, j) => (j < a.c ? get(a, i, j) : x.v[0])),
    flat: (a) => ({ r: 1, c: a.v.length, v: a.v }), rows: (a) => scalar(a.r), cols: (a) => scalar(a.c), inv: inverse,
    moves: (a, n) => matrix(a.r, a.c, (i, j) => Math.round(10 * Math.cos((i * a.c + j + 1) * (n.v[0] + 2) * 1.7)) / 10),
  };

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
      return value.no ? fail(value.no) : value;
    };
    compute(tree) { return attempt(() => evaluate(tree, this.look)); }
    at(name, value) { return new Scope({ ...this.given, [name]: value }, this.definitions); }
    differences(tree, name, nudge) {
      const at = this.look(name), columns = at.v.map((_, n) => {
        const nudged = (step) => ({ ...at, v: at.v.map((x, m) => (m === n ? x + step : x)) });
        const [up, down] = [nudge, -nudge].map((step) => evaluate(tree, this.at(name, nudged(step)).look));
        return up.v.map((x, m) => (x - down.v[m]) / (2 * nudge));
      });
      return columns[0].length === 1 ? { ...at, v: columns.flat() }
        : matrix(columns[0].length, columns.length, (i, j) => columns[j][i]);
    }
  }
  const replaced = (tree, names) => typeof tree === "string" ? names[tree] ?? tree
    : Array.isArray(tree) ? [tree[0], ...tree.slice(1).map((part) => replaced(part, names))] : tree;
  const right = Object.fromEntries(data.chain.map((name) => [name, `${name}_`]));
  const trees = data.trees, rightTrees = trees.map((tree) => replaced(tree, right));
  const compute = (n) => scope.compute(trees[n]), linked = () => !state.H;
  const refresh = () => {
    const given = Object.fromEntries(data.inputs.filter((name) => state[name]).map((name) => [name, of(state[name])]));
    const [r, k, l] = data.focus, flags = { ce: "cross-entropy", se: "squared-error", bce: "binary-cross-entropy" };
    const numbers = { r: Math.min(r, state.T.length - 1), k, l, e: 0, linked: +linked() };
    for (const flag in flags) numbers[flag] = +(state.loss === flags[flag]);
    for (const name in numbers) given[name] = scalar(numbers[name]);
    functions = { ...data.activations[state.f], ...data.losses[state.loss] };
    told = Object.assign({}, data.definitions, ...state.mistakes.map((name) => data.mistakes[name]));
    [scope, slopes] = [new Scope(given, told), new Map()];
  };

  // Numbers as words.
  const rounds = (digits) => (x) => Math.abs(x - Math.round(x * 10 ** digits) / 10 ** digits) <= 1e-12;
  const places10 = (values) => [0, 1, 2, 3].find((digits) => values.every(rounds(digits))) ?? 4;
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
    if (form === "shape") return shapeOf(m);
    const most = { all: m.v.length, list: 3 }[form], n = Math.trunc(m.v[0]);
    if (most) return m.v.slice(0, most).map((x) => number(x)).join(", ") + (m.v.length > most ? ", …" : "");
    if (form === "whole") return commas(m.v[0]);
    if (!form || form > 0) return form ? number(m.v[0], +form) : number(m.v[0]);
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
  const near = (x, y, share) => x === y || Math.abs(x - y) <= share * Math.max(1, Math.abs(y));
  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const name in attributes) element.setAttribute(name, attributes[name]);
    element.textContent = text;
    return element;
  };
  const picked = (n, most) => (n > most ? [...Array(most - 1).keys(), null] : [...Array(n).keys()]);
  const label = (letter, n) => (n === null ? "…" : `${letter}=${n + 1}`);
  const build = (table, m, tree) => {
    const { r: rows, c: columns } = table.dataset, body = make("tbody");
    const line = (side, cells) => body.appendChild(make("tr")).append(...(rows ? [side] : []), ...cells);
    const across = m.no ? [] : picked(m.c, 10), down = m.no ? [] : picked(m.r, 6);
    table.cells = [];
    if (m.no) line("", [make("td", { class: "refused" }, `none: ${m.no}`)]);
    else if (columns) line(make("th"), across.map((j) => make("th", { scope: "col" }, label(columns, j))));
    for (const i of down) {
      line(make("th", { scope: "row" }, label(rows, i)), across.map((j) => {
        const cell = make("td", {}, i === null || j === null ? "…" : "");
        if (cell.textContent) return cell;
        const place = home(tree, i, j), spot = place?.join(":");
        if (place) places.set(spot, [...(places.get(spot) || []), cell]);
        if (place && data.inputs.includes(place[0])) {
          const label = `${name(place[0])}, row ${place[1] + 1}, column ${place[2] + 1}`;
          cell.append(make("input", { inputmode: "decimal", autocomplete: "off", "aria-label": label }));
        } else cell.tabIndex = table.cells.length ? -1 : 0;
        cell.of = { tree, i, j, place };
        table.cells.push(cell);
        return cell;
      }));
    }
    table.tBodies[0].replaceWith(body);
  };
  const drawTable = (table) => {
    const n = +table.dataset.x, m = compute(n), shape = m.no ? "" : shapeOf(m);
    const key = `${m.no || shape} ${scope.look("r").v[0]}`;
    if (table.key !== key) {
      for (const [spot, cells] of places) places.set(spot, cells.filter((cell) => cell.closest("table") !== table));
      [table.key, table.caption.lastElementChild.textContent] = [key, shape];
      build(table, m, trees[n]);
    }
    if (m.no) return;
    const most = largest(m) || 1, digits = places10(m.v), mark = table.dataset.m && compute(+table.dataset.m);
    const want = state.mistakes.length ? scope.compute(rightTrees[n]) : m;
    for (const cell of table.cells) {
      const at = cell.of.i * m.c + cell.of.j, x = m.v[at];
      const off = want !== m && (want.r !== m.r || want.c !== m.c || !near(x, want.v[at], 1e-9));
      const kinds = [x < 0 ? "neg" : "pos", off && "off", mark && !mark.no && mark.v[at] && "mark", "lit"];
      cell.className = kinds.filter((kind) => kind && (kind !== "lit" || cell.classList.contains("lit"))).join(" ");
      cell.style.setProperty("--s", `${Number.isFinite(x) ? Math.round((55 * Math.abs(x)) / most) : 0}%`);
      const field = cell.firstElementChild, text = number(x, digits);
      if (!field) cell.textContent = text; else if (field !== document.activeElement) field.value = text;
    }
  };
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
  const drawCurve = (figure) => {
    const [z, y, slope] = ["Z", "Y", "S"].map((name) => scope.compute(["row", name, "r"]));
    if (z.no || y.no || slope.no) return;
    const wide = Math.max(6, ...z.v.map(Math.abs));
    const x = matrix(1, 97, (_, j) => ((j - 48) / 48) * wide), line = evaluate(["f", "z"], () => x).v;
    figure.querySelector("svg").innerHTML = curve(line.map((v, n) => [x.v[n], v]), z.v, y.v, slope.v);
  };
  const curve = (line, z, y, slope) => {
    const heights = [...line.map(([, v]) => v).filter(Number.isFinite), ...y];
    const top = Math.max(1, ...heights), low = Math.min(0, ...heights);
    const wide = Math.max(6, ...z.map(Math.abs)), tall = top - low;
    const at = (x, v) => [150 + (140 * x) / wide, 112 - (104 * (v - low)) / tall];
    const point = ([x, v]) => at(x, v).map((side) => side.toFixed(1)).join(" ");
    const dots = z.map((x, n) => {
      const [across, up] = at(x, y[n]), tilt = (-slope[n] * 104 * wide) / (tall * 140);
      const run = 22 / Math.hypot(1, tilt), ends = [across - run, up - run * tilt, across + run, up + run * tilt];
      return `<path class="dash" d="M${ends.slice(0, 2).join(" ")}L${ends.slice(2).join(" ")}"/>` +
        `<circle class="dot" cx="${across}" cy="${up}" r="4"/>`;
    });
    const path = (points) => `M${points.map(point).join("L")}`;
    const axes = path([[-wide, 0], [wide, 0]]) + path([[0, low], [0, top]]);
    return `<path class="axis" d="${axes}"/><path class="line" d="${path(line)}"/>${dots.join("")}`;
  };

  // Checks. Python's words stand until a number is changed.
  const compared = (check, nudge = NUDGE) => {
    const { got, want, by, when } = check;
    if (got === null || (when !== null && !compute(when).v?.[0])) return null;
    const ours = compute(got), key = `${want} ${by} ${nudge}`, whole = compute(want);
    if (!slopes.has(key)) slopes.set(key, by ? attempt(() => scope.differences(trees[want], by, nudge)) : whole);
    const theirs = slopes.get(key);
    if (ours.no || theirs.no) return { reason: ours.no || theirs.no };
    const shapes = [ours, theirs].map(shapeOf), error = Math.max(...ours.v.map((x, n) => Math.abs(x - theirs.v[n])));
    if (shapes[0] !== shapes[1]) return { reason: `the shape is ${shapes[0]}, and should be ${shapes[1]}` };
    // What the subtraction of two numbers that are nearly equal loses.
    const lost = by ? (16 * 2 ** -52 * largest(whole)) / nudge : 0;
    const allowed = (by ? 1e-6 : 1e-12) * Math.max(1, largest(theirs)) + lost;
    const passed = error <= allowed && allowed < Infinity;
    // Where f bends within the nudge, a smaller one is nearer.
    return passed || !by || nudge < 1e-9 ? { error, allowed, passed } : compared(check, nudge / 16);
  };
  const power = (x) => x.toExponential(1).replace("-", "−").replace(/(\D)(\d)$/, "$10$2");
  const drawChecks = (own) => {
    // Where f has a kink there is no slope to be checked.
    const jumps = (z) => ((one, two) => one.v.some((x, n) => Math.abs(x - two.v[n]) > 1e-3))(
      ...[NUDGE, -NUDGE].map((step) => evaluate(["df", ["+", "z", step]], () => z)));
    const kink = ["Z", "Z1"].map((name) => scope.compute(name)).some((z) => !z.no && jumps(z));
    const judged = (check) => ((result) => (kink && check.by && !result?.passed ? null : result))(compared(check));
    const results = data.checks.map(judged), made = results.filter(Boolean);
    const failed = made.filter((result) => !result.passed).length, sign = (passed) => (passed ? "ok" : "failed");
    for (const line of found.lines) {
      const mine = line.dataset.checks.split(" ").map(Number).filter((n) => results[n]);
      const bad = mine.filter((n) => !results[n].passed), many = mine.length > 1 ? "checks" : "check";
      const how = `${mine.some((n) => data.checks[n].by) ? ", by differences" : ""}, in this page`;
      line.className = own ? `check ${sign(!bad.length)}` : line.kind;
      line.hidden = own && !mine.length;
      if (!own) line.innerHTML = line.python;
      else if (!bad.length) line.textContent = `✓ ${mine.length} ${many}${how}`;
      else line.textContent = `✗ ${bad.length} of ${mine.length} ${many} failed${how}: ${data.checks[bad[0]].name}`;
    }
    for (const [n, item] of found.items.entries()) {
      const result = results[n], check = data.checks[n];
      item.hidden = own && !result;
      item.className = own && result ? sign(result.passed) : item.kind;
      if (!own) item.innerHTML = item.python;
      if (!own || !result) continue;
      const said = result.reason || `largest difference ${power(result.error)}, allowed ${power(result.allowed)}`;
      const way = check.by ? "differences" : check.against;
      item.textContent = `${result.passed ? "✓" : "✗"} ${check.name}, by ${way}, in this page: ${said}`;
    }
    const words = failed ? `${failed} of ${made.length} checks failed` : `All ${made.length} checks passed`;
    $("verdict").className = `verdict ${sign(own ? !failed : !data.failed)}`;
    const told = kink ? ". Here f is met at a kink, where it has no slope, so some are left out." : ".";
    $("verdict").textContent = own ? `${words}, in this page${told}` : data.verdict;
    const first = data.checks[results.findIndex((result) => result && !result.passed)];
    for (const button of found.switches) {
      const on = state.mistakes.includes(button.dataset.mistake);
      [button.ariaPressed, button.textContent] = [on, on ? "undo" : "make it"];
      const caught = first ? `aught in ${first.step}: ${first.name}.` : "";
      button.nextElementSibling.textContent = !on ? "" : !caught ? "No check objects: here it does no harm."
        : state.mistakes.length > 1 ? `All that are made: first c${caught}` : `C${caught}`;
    }
  };

  // Where a number comes from: its terms, in letters or in numbers, and the entries that they look up.
  const low = (...at) => at.map((n) => n + 1).join(at.some((n) => n > 8) ? "," : "");
  const name = (named) => data.names[named.replace(/_$/, "")] || named, flat = new Set(["B", "C", "dB", "dC"]);
  const symbol = (named, i, j) => {
    const below = `<sub>${flat.has(named) ? low(j) : low(i, j)}</sub>`;
    return name(named).replace(/\)?$/, (end) => below + end);
  };
  const spell = (tree, i, j, show, seen) => {
    const go = (part, row = i, column = j) => spell(part, row, column, show, seen);
    const join = (parts, sign) => (parts.length > 9 ? [...parts.slice(0, 8), "…"] : parts).join(sign);
    const wide = (part) => Array.isArray(part) && ["+", "-", "@", "sum0"].includes(part[0]);
    const tight = (part, row, column) => (wide(part) ? `(${go(part, row, column)})` : go(part, row, column));
    const bare = (part, ...at) => go(part, ...at).replace(/^\((−[^()]*)\)$/, "$1");
    const value = (part) => evaluate(part, scope.look);
    const cast = (part) => { const m = value(part); return [part, m.r === 1 ? 0 : i, m.c === 1 ? 0 : j]; };
    if (told[tree]?.[0] === "row") return go(told[tree]);  // short for a row of something
    if (typeof tree === "string") {
      seen.add(`${tree}:${i}:${j}`);
      return show ? factor(get(value(tree), i, j)) : symbol(tree, i, j);
    }
    if (!Array.isArray(tree)) return number(tree);
    const [op, a, b] = tree;
    if (op === "T") return go(a, j, i);
    if (op === "row") return go(a, whole(value(b)), j);
    if (op === "col") return go(a, i, whole(value(b)));
    if (op === "neg") return `−${tight(a)}`;
    if (op === "@") {
      return join(list(value(a).c, (m) => {
        const term = `${tight(a, i, m)} · ${tight(b, m, j)}`;
        return b === "I" && value(b).v[m * value(b).c + j] === 0 ? `<s>${term}</s>` : term;
      }), " + ");
    }
    if (op === "sum0") return join(list(value(a).r, (n) => go(a, n, j)), " + ");
    if ("+-*/".includes(op)) {
      const [left, right] = [a, b].map(cast), inner = "*/".includes(op);
      const sides = [(inner ? tight : go)(...left), (op === "+" ? go : tight)(...right)];
      return sides.join(` ${{ "-": "−", "*": "·" }[op] ?? op} `);
    }
    if (op === "f" || (op === "df" && !show)) return `${op === "f" ? "f" : "f′"}(${bare(a)})`;
    if (op === "df") return factor(get(value(tree), i, j));
    if (op === "softmax") return `exp(${bare(a)}) / (${join(list(value(a).c, (m) => `exp(${bare(a, i, m)})`), " + ")})`;
    if (op === "sigmoid") return `1 / (1 + exp(−${tight(a)}))`;
    if (functions[op]) {
      const [names, body] = functions[op];
      return go(replaced(body, Object.fromEntries(names.map((n, at) => [n, tree[at + 1]]))));
    }
    return factor(get(value(tree), i, j));
  };
  const explain = (cell) => {
    const { tree, i, j, place } = cell?.of ?? {}, seen = new Set(), m = tree && scope.compute(tree);
    if (!m || m.no || i >= m.r || j >= m.c || cell.closest("[hidden]")) return forget();
    const value = number(get(m, i, j), Math.max(places10([get(m, i, j)]), 4));
    const [named, ...at] = place ?? [null, i, j], title = place ? symbol(...place) : "This entry";
    const spelled = (formula, lit) => [false, true].map((show) => spell(formula, ...at, show, lit));
    const lines = attempt(() => {
      if (named in scope.given) return [`${title} = ${value}, a given number: type another, or drag it`];
      const [letters, numbers] = spelled(place ? told[named] : tree, seen);
      const lines = [numbers, title].includes(letters) ? [`${title} = ${value}`] :
        [`${title} = ${letters}`, `= ${numbers} = ${value}`];
      if (state.mistakes.length || !data.full[named]) return lines;
      const [all, values] = spelled(data.full[named], new Set());
      return [...lines, `The whole chain rule, the zeros of I struck out: ${all}`, `= ${values} = ${value}`];
    });
    if (lines.no) return forget();
    if (place) seen.add(place.join(":"));
    hot = cell;
    all(".lit").forEach((other) => other.classList.remove("lit"));
    for (const spot of seen) for (const other of places.get(spot) || []) other.classList.add("lit");
    cell.classList.add("lit");
    [$("why").innerHTML, $("why").hidden] = [lines.map((line) => `<p>${line}</p>`).join(""), false];
  };
  const forget = () => {
    all(".lit").forEach((cell) => cell.classList.remove("lit"));
    [$("why").hidden, hot, pinned] = [true, null, null];
  };

  // Changes.
  const say = (words) => { $("said").textContent = words; };
  const typed = (text) => {
    const plain = text.trim().replaceAll("−", "-"), x = Number(plain.replace(",", "."));
    const fine = /^-?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?$/i.test(plain) && !/^-?[1-9]\d*,\d{3}$/.test(plain);  // 1,000?
    return fine && Math.abs(x) <= LARGEST ? x : null;
  };
  const valueOf = ([named, i, j]) => get(scope.look(named), i, j);
  const put = ([named, i, j], x) => {
    if (named === "H" && linked()) state.H = rowsOf(scope.look("H"));
    const row = state[named][i];
    if (named === "T" && state.loss === "cross-entropy") {  // a row of shares: the others make room
      const own = Math.min(1, Math.max(0, x)), rest = total(row.length, (n) => (n === j ? 0 : row[n]));
      const share = (old) => (1 - own) * (rest ? old / rest : 1 / (row.length - 1));
      state.T[i] = row.map((old, n) => (n === j ? own : share(old)));
    } else row[j] = x;
    update();
  };
  const move = (field, x) => {
    const { place } = field.parentElement.of;
    put(place, Math.max(-LARGEST, Math.min(LARGEST, +x.toFixed(6))));
    field.value = String(+valueOf(place).toFixed(6)).replaceAll("-", "−");
  };
  const tenths = (most, least = -most) => Math.round(10 * (least + (most - least) * Math.random())) / 10;
  const sums1 = (row) => row.every((x) => x >= 0) && near(total(row.length, (n) => row[n]), 1, 1e-9);
  const chosen = (row) => { const top = highest(row.length, (n) => row[n]); return row.map((_, n) => +(n === top)); };
  const fit = () => {
    if (state.loss === "cross-entropy") state.T = state.T.map((row) => (sums1(row) ? row : chosen(row)));
  };
  const scales = { X: [2], V: [1], C: [0.5], W: [1], B: [0.5], T: [1, 0], H: [1, 0] };
  const actions = {
    reset: () => { state = copy(data.state); history.replaceState(null, "", location.pathname + location.search); },
    random: () => {
      delete state.H;
      for (const named in scales) state[named] &&= state[named].map((row) => row.map(() => tenths(...scales[named])));
    },
    fewer: () => {
      if (state.T.length === 1) return say("one row is left");
      for (const named of "XTH") state[named]?.pop();
    },
    more: () => {
      if (state.T.length >= MOST_ROWS) return say(`at most ${MOST_ROWS} rows can be shown`);
      for (const named of "XTH") state[named]?.push(state[named][0].map(() => tenths(...scales[named])));
    },
    layer: () => { delete state.H; },
    link: () => {
      const kept = navigator.clipboard?.writeText(location.href.split("#")[0] + code()) ?? Promise.reject();
      history.replaceState(null, "", code());
      kept.then(() => say("copied"), () => say("the address of this page has them now"));
    },
  };
  const show = (id) => {
    const there = $(id);
    for (let fold = there; fold; fold = fold.parentElement) if (fold.matches("details")) fold.open = true;
    for (const fold of all(":scope > details", there || document.head)) fold.open = true;
    there?.scrollIntoView();
    there?.focus({ preventScroll: true });
  };

  // The link: all numbers in the address, in ASCII.
  const escaped = (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
  const code = () =>
    `#n=${btoa(JSON.stringify({ ...state, T: undefined, "Y*": state.T }).replace(/[^ -~]/g, escaped))}`;
  const follow = () => {
    if (!location.hash.startsWith("#n=")) return show(location.hash.slice(1));
    try {
      const given = JSON.parse(atob(decodeURIComponent(location.hash.slice(3)))), T = given.T = given["Y*"];
      const width = (named) => (named === "H" ? data.state.W.length : data.state[named][0].length);
      const fine = (x) => typeof x === "number" && Math.abs(x) <= LARGEST;
      const fits = (named) => given[named].length === ("XTH".includes(named) ? T.length : data.state[named].length) &&
        given[named].every((row) => row.length === width(named) && row.every(fine));
      const known = Object.hasOwn(data.activations, given.f) && Object.hasOwn(data.losses, given.loss) &&
        given.mistakes.every((one) => Object.hasOwn(data.mistakes, one));
      const named = data.inputs.filter((one) => one !== "H" || given.H);
      if (!T.length || T.length > MOST_ROWS || !known || !named.every(fits)) throw new Error("other numbers");
      state = Object.fromEntries([...named, "f", "loss", "mistakes"].map((key) => [key, given[key]]));
      fit();
    } catch { say("the numbers in this address do not fit this page, and are left out"); }
  };

  // Events.
  const on = (kinds, does) => kinds.split(" ").forEach((kind) => document.addEventListener(kind, does));
  const cellOf = (event) => event.target.closest?.("table.matrix td");
  const isField = (element) => element.matches?.("td input");
  on("pointerover", (event) => {
    if (pinned || event.pointerType === "touch") return;
    if (cellOf(event)?.of) explain(cellOf(event)); else if (hot && !event.target.closest("#why")) forget();
  });
  on("click", (event) => {
    const cell = cellOf(event), button = event.target.closest("button"), step = event.target.closest("a[href^='#']");
    if (cell?.of) { explain(cell); pinned = cell; }
    else if (pinned && !event.target.closest("#why, .tools, button")) forget();
    if (step && !event.ctrlKey && !event.metaKey) { event.preventDefault(); show(step.hash.slice(1)); }
    const { mistake, does } = button?.dataset ?? {}, others = state.mistakes.filter((one) => one !== mistake);
    if (mistake) state.mistakes = others.length < state.mistakes.length ? others : [...others, mistake];
    if (does) { say(""); actions[does](); }
    if (mistake || does) { fit(); update(); }
  });
  on("focusin", ({ target }) => {
    const cell = cellOf({ target });
    if (cell?.of && !pinned) explain(cell);
    if (cell && target.matches(":focus-visible")) target.scrollIntoView({ block: "nearest" });
    if (!isField(target)) return;
    target.value = String(valueOf(target.parentElement.of.place)).replaceAll("-", "−");
    target.select();
  });
  on("focusout", ({ target }) => {
    if (isField(target)) { target.removeAttribute("aria-invalid"); say(""); update(); }
  });
  on("input", ({ target }) => {
    if (!isField(target)) return;
    const x = typed(target.value);
    if (x === null) target.setAttribute("aria-invalid", "true"); else target.removeAttribute("aria-invalid");
    say(x === null ? `expected a number from −1,000,000 to 1,000,000, got ${target.value || "nothing"}` : "");
    if (x !== null) put(target.parentElement.of.place, x);
  });
  on("keydown", (event) => {
    const { key, target } = event, cell = cellOf(event);
    const down = { ArrowDown: 1, ArrowUp: -1 }[key] ?? 0, right = { ArrowRight: 1, ArrowLeft: -1 }[key] ?? 0;
    if (key === "Escape") forget();
    if (!cell?.of || (!down && !right)) return;
    if (isField(target)) {
      if (!down) return;
      event.preventDefault();
      return move(target, valueOf(cell.of.place) - (event.shiftKey ? 0.01 : 0.1) * down);
    }
    const { i, j } = cell.of, isNext = ({ of: other }) => other.i === i + down && other.j === j + right;
    const next = cell.closest("table").cells.find(isNext);
    if (!next) return;
    event.preventDefault();
    [cell.tabIndex, next.tabIndex, pinned] = [-1, 0, null];
    next.focus();
  });
  on("pointerdown", ({ target, button, clientX }) => {
    if (isField(target) && !button) drag = { field: target, x: clientX, from: valueOf(target.parentElement.of.place) };
  });
  on("pointermove", (event) => {
    if (!drag || (!drag.on && Math.abs(event.clientX - drag.x) < 4)) return;
    if (!drag.on) drag.field.setPointerCapture(event.pointerId);
    drag.on = true;
    document.body.classList.add("drags");
    move(drag.field, drag.from + (event.clientX - drag.x) * (event.shiftKey ? 0.001 : 0.01));
  });
  on("pointerup pointercancel", () => { document.body.classList.remove("drags"); drag = null; });
  on("change", ({ target: to }) => { if (to.matches(".tools select")) state[to.name] = to.value, fit(), update(); });
  on("submit", (event) => {
    event.preventDefault();
    const form = event.target, want = compute(+form.dataset.answer).v?.[0], said = form.querySelector("div output");
    const given = new FormData(form).get("answer") ?? "", off = Math.abs((typed(given) ?? NaN) - want);
    const right = off <= (form.dataset.picks ? 0 : 0.02 * Math.abs(want));
    said.textContent = given === "" ? "Nothing yet." : right ? "✓ Right." : "✗ Not so. See the hint.";
    said.className = right ? "ok" : "failed";
    form.querySelector("details").open ||= !right;
  });
  window.addEventListener("hashchange", () => { follow(); update(); });

  // All at once.
  const parts = { whens: "[data-when]", texts: "output[data-x]", tables: "table[data-x]", tiles: "figure[data-tiles]",
    curves: "figure[data-curve]", from: "[data-rows]", lines: "[data-checks]", items: "[data-check]",
    switches: "[data-mistake]", choices: ".tools select", script: "[data-script]" };
  const found = Object.fromEntries(Object.entries(parts).map(([key, selector]) => [key, all(selector)]));
  const update = () => {
    refresh();
    const own = document.body.classList.toggle("own", JSON.stringify(state) !== JSON.stringify(data.state));
    for (const part of found.whens) part.hidden = !compute(+part.dataset.when).v?.[0];
    for (const part of found.from) part.hidden = +part.dataset.rows > state.T.length;
    for (const part of found.texts) part.textContent = written(trees[+part.dataset.x], part.dataset.f || "");
    found.tables.forEach(drawTable);
    found.tiles.forEach(drawTiles);
    found.curves.forEach(drawCurve);
    all("[data-of=f]").forEach((part) => { part.innerHTML = data.words[state.f]; });
    drawChecks(own);
    for (const choice of found.choices) choice.value = state[choice.name];
    $("rows").textContent = state.T.length;
    all("[data-does=layer]").forEach((button) => { button.hidden = linked(); });
    for (const said of all("form div output")) said.textContent = "";
    if (own) history.replaceState(null, "", code());
    if (hot) explain(hot);
  };
  for (const part of [...found.lines, ...found.items]) [part.python, part.kind] = [part.innerHTML, part.className];
  for (const part of found.script) part.hidden = false;
  window.explained = {
    get: () => copy(state),
    set: (given) => { state = { ...copy(state), ...given }; fit(); update(); },
    values: () => trees.map((tree) => { const m = scope.compute(tree); return m.no ? null : rowsOf(m); }),
  };
  follow(), update();
})();
