// ---- cameras. World points are [x, y, z]; a frustum is drawn from its c2w and intrinsics alone.
const canvas = el("plot"), pen = canvas.getContext("2d");
const turn = { azimuth: -0.9, elevation: 0.42, zoom: 1 };
let frusta = [], chosen = null, reach = 2.5, centre = [0, 0, 0]; // what is in the middle of the plot
let cloud = null; // {xyz: Float32Array, rgb: Uint8Array, apart}: points of the surfaces, where the page has them

function frustumOf(object, index, i, depth, share) { // an orthographic view is as wide everywhere: `share` of it is drawn
  const m = object.c2w[i], [fx, fy, cx, cy] = object.k[object.k.length > 1 ? i : 0], [height, width] = object.hw;
  const apex = [m[3], m[7], m[11]];
  const at = (u, v) => { // pixel -> world, `depth` along the camera's +z
    const wide = object.ortho ? share : depth, x = (u - cx) / fx * wide, y = (v - cy) / fy * wide;
    return [0, 4, 8].map((r, j) => apex[j] + m[r] * x + m[r + 1] * y + m[r + 2] * depth);
  };
  const up = [0, 4, 8].map(r => -m[r + 1]);
  return { object, index, view: object.views[i], apex, up, middle: at(cx, cy), corners: [at(0, 0), at(width, 0), at(width, height), at(0, height)],
    tick: at(width / 2, -height * 0.16), tickLeft: at(width * 0.38, 0), tickRight: at(width * 0.62, 0), image: null };
}

const minus = (a, b) => a.map((value, i) => value - b[i]);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const long = a => Math.sqrt(dot(a, a));

function choose(index, view) { // index: an object, or -1 for all
  el("which").value = String(index);
  const those = index < 0 ? objects.map((object, i) => [object, i]) : [[objects[index], index]];
  const focus = index < 0 ? null : objects[index].focus; // captures are framed by their cameras, objects by the unit box
  centre = focus || [0, 0, 0];
  const distances = those.flatMap(([object]) => object.c2w.map(m => Math.hypot(m[3] - centre[0], m[7] - centre[1], m[11] - centre[2]))).sort((a, b) => a - b);
  reach = Math.max(focus ? 1e-6 : 1, distances[distances.length - 1]);
  const share = index < 0 ? 0.07 : 0.2, depth = distances[distances.length >> 1] * share;
  frusta = those.flatMap(([object, i]) => object.c2w.map((_, j) => frustumOf(object, i, j, depth, share)));
  el("pictures").disabled = index < 0;
  if (index >= 0) {
    for (const frustum of frusta) {
      const from = source(frustum.object, frustum.view);
      if (!from) continue;
      frustum.image = new Image();
      frustum.image.onload = draw;
      frustum.image.src = from;
    }
  }
  highlight(frusta.find(frustum => frustum.view === view) || frusta[0]);
  // Facts about what is drawn, taken from the drawn corners: does each frustum open towards the origin, is its top on top?
  const aims = frusta.map(f => { const a = minus(f.middle, f.apex), b = minus(centre, f.apex); return dot(a, b) / long(a) / long(b); });
  facts.aim = Math.min(...aims).toFixed(4);
  facts.upright = frusta.filter(f => f.corners[0][2] + f.corners[1][2] > f.corners[2][2] + f.corners[3][2]).length;
  facts.shown = those.length;
}

function highlight(frustum) {
  chosen = frustum;
  facts.chosen = frustum.view;
  const [x, y, z] = minus(frustum.apex, centre), distance = Math.hypot(x, y, z), degrees = 180 / Math.PI;
  const from = source(frustum.object, frustum.view);
  el("shot").hidden = !from;
  if (from) { el("shot").src = from; el("shot").alt = "view " + frustum.view; }
  el("says").textContent = frustum.object.uid + "\nview " + frustum.view + (from ? "" : " (picture not embedded)") +
    "\nposition " + frustum.apex.map(value => value.toFixed(2)).join(", ") +
    "\ndistance " + distance.toFixed(2) + "\nelevation " + (Math.asin(z / distance) * degrees).toFixed(1) +
    "°\nazimuth " + (Math.atan2(y, x) * degrees).toFixed(1) + "°";
  draw();
}

function projection() { // world point -> [x, y in CSS pixels, nearness]; a perspective from far away
  const { azimuth, elevation, zoom } = turn, width = canvas.clientWidth, height = canvas.clientHeight;
  const [sa, ca, se, ce] = [Math.sin(azimuth), Math.cos(azimuth), Math.sin(elevation), Math.cos(elevation)];
  const right = [-sa, ca, 0], up = [-se * ca, -se * sa, ce], toward = [ce * ca, ce * sa, se];
  const eye = reach * 5, scale = Math.min(width, height) / 2 / (reach * 1.02) * zoom;
  const to = point => {
    const p = minus(point, centre), near = dot(p, toward), s = scale * eye / Math.max(eye * 0.05, eye - near);
    return [width / 2 + dot(p, right) * s, height / 2 - dot(p, up) * s, near];
  };
  return Object.assign(to, { right, up, toward, eye, scale });
}

function cloudOf(xyz, rgb) { // apart: about how far neighbours are from each other, were they on a sphere
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  xyz.forEach((value, i) => { const axis = i % 3; low[axis] = Math.min(low[axis], value); high[axis] = Math.max(high[axis], value); });
  return { xyz, rgb, apart: long(minus(high, low)) / Math.sqrt(3) * Math.sqrt(Math.PI / Math.max(1, xyz.length / 3)) };
}

const board = document.createElement("canvas"); // the points, the nearest in front, as squares that leave no gap
function paintCloud(to, ratio) {
  const wide = canvas.width, tall = canvas.height, side = Math.min(24, Math.max(2, Math.ceil(3 * cloud.apart * to.scale * ratio)));
  board.width = wide;
  board.height = tall;
  const flat = board.getContext("2d"), picture = flat.createImageData(wide, tall), out = new Uint32Array(picture.data.buffer), nearest = new Float32Array(wide * tall).fill(-Infinity);
  const { right, up, toward, eye, scale } = to, { xyz, rgb } = cloud;
  let painted = 0;
  for (let i = 0; i < xyz.length; i += 3) {
    const a = xyz[i] - centre[0], b = xyz[i + 1] - centre[1], c = xyz[i + 2] - centre[2];
    const near = a * toward[0] + b * toward[1] + c * toward[2];
    if (near > eye * 0.95) continue;
    const s = scale * eye / (eye - near) * ratio;
    const x = Math.round(wide / 2 + (a * right[0] + b * right[1]) * s), y = Math.round(tall / 2 - (a * up[0] + b * up[1] + c * up[2]) * s);
    if (x < 0 || y < 0 || x + side > wide || y + side > tall) continue;
    const colour = 0xff000000 | rgb[i + 2] << 16 | rgb[i + 1] << 8 | rgb[i];
    for (let row = y; row < y + side; row++) for (let at = row * wide + x; at < row * wide + x + side; at++) if (near > nearest[at]) { nearest[at] = near; out[at] = colour; }
    painted++;
  }
  flat.putImageData(picture, 0, 0);
  pen.drawImage(board, 0, 0, wide / ratio, tall / ratio);
  facts.points = painted;
}

let waiting = false, painted = 0;
function draw() {
  if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); }
}

function paint() {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (!width) return;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue("--" + name).trim();
  const to = projection();
  for (const frustum of frusta) frustum.flat = { apex: to(frustum.apex), corners: frustum.corners.map(to), middle: to(frustum.middle), tick: [frustum.tickLeft, frustum.tick, frustum.tickRight].map(to) };
  const order = [...frusta].sort((a, b) => a.flat.middle[2] - b.flat.middle[2]);
  const behind = order.findIndex(frustum => frustum.flat.middle[2] > 0);
  const split = behind < 0 ? order.length : behind;
  painted = 0;
  for (const frustum of order.slice(0, split)) paintFrustum(frustum, colour);
  if (cloud && el("cloud").checked) paintCloud(to, ratio);
  paintWorld(to, colour);
  for (const frustum of order.slice(split)) paintFrustum(frustum, colour);
  facts.frusta = painted;
  if (chosen) paintFrustum(chosen, colour);
}

function path(points, close) {
  pen.beginPath();
  points.forEach((p, i) => i ? pen.lineTo(p[0], p[1]) : pen.moveTo(p[0], p[1]));
  if (close) pen.closePath();
}

function paintFrustum(frustum, colour) {
  const { apex, corners, tick, middle } = frustum.flat, hot = frustum === chosen;
  const fog = hot ? 1 : 0.35 + 0.65 * Math.min(1, Math.max(0, (middle[2] / reach + 1) / 2));
  pen.globalAlpha = fog;
  const image = frustum.image;
  if (image && image.complete && image.naturalWidth && el("pictures").checked) {
    const [a, b, , d] = corners, w = image.naturalWidth, h = image.naturalHeight;
    pen.save();
    path(corners, true);
    pen.clip();
    pen.transform((b[0] - a[0]) / w, (b[1] - a[1]) / w, (d[0] - a[0]) / h, (d[1] - a[1]) / h, a[0], a[1]);
    pen.drawImage(image, 0, 0);
    pen.restore();
  }
  pen.strokeStyle = pen.fillStyle = colour(hot ? "warn" : "accent");
  pen.lineWidth = hot ? 2.2 : frusta.length > 300 ? 0.6 : 1;
  path(corners, true);
  pen.stroke();
  for (const corner of corners) { path([apex, corner]); pen.stroke(); }
  path(tick, true);
  pen.fill();
  painted++;
  pen.globalAlpha = 1;
}

function boxEdges(low, high) {
  const corner = i => [0, 1, 2].map(axis => (i >> axis & 1 ? high : low)[axis]);
  const edges = [];
  for (let i = 0; i < 8; i++) for (const bit of [1, 2, 4]) if (!(i & bit)) edges.push([corner(i), corner(i | bit)]);
  return edges;
}

function paintWorld(to, colour) {
  const stroke = (edges, style, width, dash) => {
    pen.strokeStyle = style;
    pen.lineWidth = width;
    pen.setLineDash(dash || []);
    for (const [a, b] of edges) { path([to(a), to(b)]); pen.stroke(); }
    pen.setLineDash([]);
  };
  const framed = frusta.length && el("which").value !== "-1" && frusta[0].object.focus, unit = framed ? reach * 0.4 : 1;
  if (!framed) stroke(boxEdges([-0.5, -0.5, -0.5], [0.5, 0.5, 0.5]), colour("quiet"), 1, [4, 4]);
  const bounds = el("which").value === "-1" ? null : frusta[0].object.bounds;
  if (bounds) stroke(boxEdges(bounds[0], bounds[1]), colour("text"), 1.2);
  pen.font = "600 14px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  ["x", "y", "z"].forEach((name, axis) => {
    const tip = [...centre], label = [...centre];
    tip[axis] += unit;
    label[axis] += 1.13 * unit;
    stroke([[centre, tip]], colour(name), 2);
    pen.fillStyle = colour(name);
    const [x, y] = to(label);
    pen.fillText(name === "z" ? "z up" : name, x, y);
  });
}

function under(event) { // the frustum below the pointer, or null
  const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best = null, least = Infinity;
  for (const frustum of frusta) {
    const { middle, corners } = frustum.flat, wide = Math.max(14, 0.8 * Math.hypot(corners[0][0] - middle[0], corners[0][1] - middle[1]));
    for (const point of [frustum.flat.middle, frustum.flat.apex]) {
      const distance = Math.hypot(point[0] - x, point[1] - y) - 3 * point[2] / reach; // of two, the nearer one
      if (distance < wide && distance < least) { least = distance; best = frustum; }
    }
  }
  return best;
}

const pointers = new Map();
let pinch = 0;
const zoom = factor => { turn.zoom = Math.min(8, Math.max(0.3, turn.zoom * factor)); draw(); };
const rotate = (dx, dy) => {
  turn.azimuth -= dx;
  turn.elevation = Math.min(1.55, Math.max(-1.55, turn.elevation + dy));
  draw();
};

function listenToCameras() {
  canvas.addEventListener("pointerdown", event => { pointers.set(event.pointerId, [event.clientX, event.clientY]); canvas.setPointerCapture(event.pointerId); point(event); });
  const lift = event => { pointers.delete(event.pointerId); pinch = 0; };
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointermove", event => {
    const before = pointers.get(event.pointerId);
    if (!before) { point(event); return; }
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 1) { rotate((event.clientX - before[0]) * 0.008, (event.clientY - before[1]) * 0.008); return; }
    const [a, b] = [...pointers.values()], apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (pinch) zoom(apart / pinch);
    pinch = apart;
  });
  canvas.addEventListener("wheel", event => { event.preventDefault(); zoom(Math.exp(-event.deltaY * 0.0012)); }, { passive: false });
  canvas.addEventListener("keydown", event => {
    const steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
    if (steps[event.key]) rotate(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.15);
    else if (event.key === "-") zoom(1 / 1.15);
    else return;
    event.preventDefault();
  });
  el("pictures").addEventListener("change", draw);
  el("nearer").addEventListener("click", () => zoom(1.25));
  el("farther").addEventListener("click", () => zoom(0.8));
  el("reset").addEventListener("click", () => { Object.assign(turn, { azimuth: -0.9, elevation: 0.42, zoom: 1 }); draw(); });
  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}

function point(event) {
  const found = under(event);
  if (found && found !== chosen) highlight(found);
}
