"use strict";
(async () => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const byId = (id) => document.getElementById(id);
  // Figures

  document.querySelectorAll(".chart").forEach((chart) => {
    const figure = content.figures[chart.dataset.figure], svg = chart.querySelector("svg"), cursor = chart.querySelector(".cursor");
    const outs = chart.querySelectorAll(".legend output");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), t = (600 * (event.clientX - box.left) / box.width - 58) / 500;
      if (t < 0 || t > 1) return;
      const x = figure.xlim[0] + t * (figure.xlim[1] - figure.xlim[0]);
      cursor.setAttribute("x1", 500 * t); cursor.setAttribute("x2", 500 * t); cursor.style.visibility = "visible";
      figure.series.forEach((series, i) => {
        const k = series.x.reduce((best, value, j) => Math.abs(value - x) < Math.abs(series.x[best] - x) ? j : best, 0);
        outs[i].textContent = series.y[k] === null ? "" : (+series.y[k].toPrecision(3));
      });
    });
    svg.addEventListener("pointerleave", () => { cursor.style.visibility = "hidden"; outs.forEach((out) => { out.textContent = ""; }); });
  });

  if (!content.volumes.length) return;
  const { shape: [nz, ny, nx], voxel_size: size, position } = content.grid;
  const sides = { z: nz, y: ny, x: nx };

  const bytes = async (text) => {
    const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const volumes = [];
  try {
    for (const one of content.volumes) volumes.push({ ...one, data: await bytes(one.data) });
  } catch (error) {
    byId("panes").textContent = "This browser cannot unpack the maps; one from 2023 on can.";
    throw error;
  }
  const kind = (name) => name.split(" · ")[0];
  const isDensity = (one) => !["uncertainty", "change", "mask", "local resolution"].includes(kind(one.name));
  const densities = volumes.filter(isDensity);

  // Slices

  const heat = (t) => [255 * Math.min(1, 2.2 * t), 255 * Math.max(0, Math.min(1, 2 * t - 0.6)), 255 * Math.max(0, Math.min(1, 0.35 + t - 2.2 * Math.abs(t - 0.3)))];
  const at = { x: nx >> 1, y: ny >> 1, z: nz >> 1 };
  let axis = "z", marked = false;
  const across = { z: ["x", "y"], y: ["x", "z"], x: ["y", "z"] };  // to the right, and up
  const stride = { x: 1, y: nx, z: nx * ny };
  const round = (length) => {
    const power = 10 ** Math.floor(Math.log10(length));
    return power * Math.max(...[1, 2, 5].filter((f) => f * power <= length));
  };
  const panes = volumes.filter((one) => kind(one.name) !== "change").map((one) => {
    const pane = document.createElement("figure");
    pane.className = "pane";
    pane.innerHTML = "<figcaption></figcaption><div><canvas></canvas><span class=bar></span></div>";
    pane.querySelector("figcaption").textContent = one.name;
    byId("panes").append(pane);
    const canvas = pane.querySelector("canvas");
    canvas.addEventListener("click", (event) => {
      const [right, up] = across[axis], box = canvas.getBoundingClientRect();
      at[right] = Math.min(sides[right] - 1, Math.floor(sides[right] * (event.clientX - box.left) / box.width));
      at[up] = Math.max(0, sides[up] - 1 - Math.floor(sides[up] * (event.clientY - box.top) / box.height));
      marked = true;
      slices();
    });
    return { one, canvas, bar: pane.querySelector(".bar") };
  });

  function slices() {
    const [right, up] = across[axis], w = sides[right], h = sides[up];
    const [dark, bright] = content.contrast, middle = (dark + bright) / 2, half = (bright - dark) / 2 / byId("contrast").value;
    for (const { one, canvas, bar } of panes) {
      canvas.width = w; canvas.height = h;
      const image = new ImageData(w, h), grey = isDensity(one), step = (one.high - one.low) / 255;
      const table = Array.from({ length: 256 }, (_, i) => {
        const g = 255 * (one.low + step * i - middle + half) / (2 * half);
        return grey ? [g, g, g] : kind(one.name) === "mask" ? [i, i, i] : heat(i / 255);
      });
      for (let j = 0, out = 0; j < h; j++) {
        let from = at[axis] * stride[axis] + (h - 1 - j) * stride[up];
        for (let i = 0; i < w; i++, from += stride[right]) {
          const c = table[one.data[from]];
          image.data[out++] = c[0]; image.data[out++] = c[1]; image.data[out++] = c[2]; image.data[out++] = 255;
        }
      }
      const pen = canvas.getContext("2d");
      pen.putImageData(image, 0, 0);
      if (marked) {
        pen.strokeStyle = "rgba(255, 190, 0, .75)"; pen.lineWidth = Math.max(0.5, w / 250);
        const [px, py, gap] = [at[right] + 0.5, h - 0.5 - at[up], 5 / size];
        pen.beginPath();
        for (const [x0, y0, x1, y1] of [[0, py, px - gap, py], [px + gap, py, w, py], [px, 0, px, py - gap], [px, py + gap, px, h]]) { pen.moveTo(x0, y0); pen.lineTo(x1, y1); }
        pen.stroke();
      }
      const length = round(w * size / 3);
      bar.style.width = `${100 * length / (w * size)}%`;
      bar.textContent = `${length} Å`;
    }
    const slider = byId("place");
    slider.max = sides[axis] - 1; slider.value = at[axis];
    byId("place-out").textContent = `${axis} = ${(position["xyz".indexOf(axis)] + size * at[axis]).toFixed(1)} Å`;
  }
  byId("place").addEventListener("input", (event) => { at[axis] = +event.target.value; slices(); });
  byId("contrast").addEventListener("input", slices);
  for (const radio of document.querySelectorAll("[name=axis]")) radio.addEventListener("change", () => { axis = radio.value; slices(); });
  for (const button of document.querySelectorAll(".go")) button.addEventListener("click", () => {
    button.dataset.place.split(",").forEach((p, i) => { const a = "xyz"[i]; at[a] = Math.max(0, Math.min(sides[a] - 1, Math.round((p - position[i]) / size))); });
    marked = true;
    slices();
    byId("slices").scrollIntoView({ behavior: "smooth" });
  });
  slices();

  // Images beside projections

  if (content.pairs) {
    const { shape: [h, w], numbers, data } = content.pairs, values = await bytes(data);
    numbers.forEach((number, i) => {
      const figure = document.createElement("figure"), canvas = document.createElement("canvas");
      canvas.width = 2 * w + 2; canvas.height = h;
      const pen = canvas.getContext("2d");
      for (let side = 0; side < 2; side++) {
        const image = new ImageData(w, h);
        for (let j = 0; j < w * h; j++) {
          const from = (h - 1 - Math.floor(j / w)) * w + j % w, g = values[(2 * i + side) * w * h + from];
          image.data.set([g, g, g, 255], 4 * j);
        }
        pen.putImageData(image, side * (w + 2), 0);
      }
      figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: `image ${number}` }));
      byId("pairs").append(figure);
    });
  }

  // Surface: rays from the eye through a 3-D texture to where the density first exceeds the level

  const canvas = byId("view"), gl = canvas.getContext("webgl2", { antialias: false, preserveDrawingBuffer: true });
  if (!gl) {
    byId("view-note").textContent = "This browser has no WebGL 2, which the surface needs; the maps open in ChimeraX by open.cxc.";
    canvas.parentElement.hidden = true;
    return;
  }
  const shader = (type, source) => {
    const made = gl.createShader(type);
    gl.shaderSource(made, source); gl.compileShader(made);
    if (!gl.getShaderParameter(made, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(made));
    return made;
  };
  const program = gl.createProgram();
  gl.attachShader(program, shader(gl.VERTEX_SHADER, `#version 300 es
    out vec2 screen;
    void main() { screen = vec2(gl_VertexID == 1 ? 3 : -1, gl_VertexID == 2 ? 3 : -1); gl_Position = vec4(screen, 0, 1); }`));
  gl.attachShader(program, shader(gl.FRAGMENT_SHADER, `#version 300 es
    precision highp float; precision highp sampler3D;
    uniform sampler3D density, paint;
    uniform mat3 turn;
    uniform vec3 box;
    uniform vec2 window;
    uniform float level;
    uniform int style;
    in vec2 screen;
    out vec4 colour;
    float value(vec3 p) { return texture(density, p / box + .5).r; }
    vec3 ramp(float t) {
      if (style == 1) return t < .5 ? mix(vec3(.17, .48, .71), vec3(1., 1., .75), 2. * t) : mix(vec3(1., 1., .75), vec3(.84, .1, .11), 2. * t - 1.);
      if (style == 2) return t < .5 ? mix(vec3(.76, .22, .62), vec3(.85), 2. * t) : mix(vec3(.85), vec3(.1, .6, .2), 2. * t - 1.);
      if (style == 3) return mix(vec3(.9, .45, .1), vec3(.62, .72, .86), t);
      return vec3(.62, .72, .86);
    }
    void main() {
      vec3 eye = turn * vec3(screen * window, 2. * length(box)), ray = turn * vec3(0, 0, -1);
      vec3 a = (-.5 * box - eye) / ray, b = (.5 * box - eye) / ray, near = min(a, b), far = max(a, b);
      float t = max(max(near.x, near.y), near.z), last = min(min(far.x, far.y), far.z);
      colour = vec4(0);
      if (t >= last) return;
      float h = .6, before = t;
      for (int i = 0; i < 1200; i++) {
        if (t > last) return;
        if (value(eye + t * ray) > level) break;
        before = t; t += h;
      }
      if (value(eye + t * ray) <= level) return;
      float low = before, high = t;
      for (int i = 0; i < 6; i++) { float mid = .5 * (low + high); if (value(eye + mid * ray) > level) high = mid; else low = mid; }
      vec3 p = eye + high * ray, n = vec3(0);
      for (int i = 0; i < 3; i++) { vec3 d = vec3(i == 0, i == 1, i == 2); n[i] = value(p - d) - value(p + d); }
      n = length(n) > 0. ? normalize(n) : -ray;
      vec3 sun = turn * normalize(vec3(-.4, .6, .8));
      float light = .3 + .6 * max(dot(n, sun), 0.) + .18 * max(dot(n, -ray), 0.);
      float depth = 1. - .35 * clamp((high - max(max(near.x, near.y), near.z)) / length(box), 0., 1.);
      colour = vec4(ramp(texture(paint, p / box + .5).r) * light * depth, 1);
    }`));
  gl.linkProgram(program); gl.useProgram(program);
  gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  const uniform = (name) => gl.getUniformLocation(program, name);
  volumes.forEach((one) => {
    one.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_3D, one.texture);
    gl.texImage3D(gl.TEXTURE_3D, 0, gl.R8, nx, ny, nz, 0, gl.RED, gl.UNSIGNED_BYTE, one.data);
    for (const [key, value] of [["MIN_FILTER", "LINEAR"], ["MAG_FILTER", "LINEAR"], ["WRAP_S", "CLAMP_TO_EDGE"], ["WRAP_T", "CLAMP_TO_EDGE"], ["WRAP_R", "CLAMP_TO_EDGE"]])
      gl.texParameteri(gl.TEXTURE_3D, gl[`TEXTURE_${key}`], gl[value]);
  });
  const which = byId("which"), colour = byId("colour"), level = byId("level");
  densities.forEach((one) => which.add(new Option(one.name)));
  which.value = (densities.find((one) => kind(one.name) === "restored") || densities[0]).name;
  const paints = volumes.filter((one) => !isDensity(one));
  paints.forEach((one) => colour.add(new Option(kind(one.name) === "change" ? "change (z)" : one.name, one.name)));
  colour.add(new Option("nothing", ""));
  const scale = densities[0];
  level.value = 255 * (content.level - scale.low) / (scale.high - scale.low);

  let turn = [1, 0, 0, 0, 1, 0, 0, 0, 1];  // columns
  const times = (a, b) => a.map((_, i) => [0, 1, 2].reduce((sum, k) => sum + a[i % 3 + 3 * k] * b[k + 3 * Math.floor(i / 3)], 0));
  const rotate = (dx, dy) => {
    const [c, s, d, e] = [Math.cos(dx), Math.sin(dx), Math.cos(dy), Math.sin(dy)];
    turn = times(turn, times([c, 0, s, 0, 1, 0, -s, 0, c], [1, 0, 0, 0, d, -e, 0, e, d]));
    ask();
  };
  // Without a graphics processor all pixels take seconds: fewer of them while it moves, the others when it rests.
  const moving = 80, resting = 1500;  // ms that a picture may take
  let asked = 0, rest = 0, fewer = 3;
  const ask = () => { clearTimeout(rest); cancelAnimationFrame(asked); asked = requestAnimationFrame(() => draw(fewer)); };
  function draw(by) {
    const start = performance.now(), dense = Math.min(devicePixelRatio || 1, 1.5) / by;
    const w = Math.round(canvas.clientWidth * dense), h = Math.round(canvas.clientHeight * dense);
    if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
    gl.viewport(0, 0, w, h);
    const one = densities.find((some) => some.name === which.value), paint = volumes.find((some) => some.name === colour.value);
    const span = 0.55 * Math.max(nx, ny, nz) / byId("zoom").value, short = Math.min(w, h);
    gl.uniformMatrix3fv(uniform("turn"), false, turn);
    gl.uniform3f(uniform("box"), nx, ny, nz);
    gl.uniform2f(uniform("window"), span * w / short, span * h / short);
    const wanted = scale.low + level.value / 255 * (scale.high - scale.low);
    gl.uniform1f(uniform("level"), (wanted - one.low) / (one.high - one.low));
    gl.uniform1i(uniform("style"), paint ? ({ change: 2, mask: 3 }[kind(paint.name)] || 1) : 0);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_3D, one.texture); gl.uniform1i(uniform("density"), 0);
    gl.activeTexture(gl.TEXTURE1); gl.bindTexture(gl.TEXTURE_3D, (paint || one).texture); gl.uniform1i(uniform("paint"), 1);
    gl.clearColor(0, 0, 0, 0); gl.clear(gl.COLOR_BUFFER_BIT);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));  // which waits for it
    const all = by * by * (performance.now() - start), least = Math.max(1, Math.sqrt(all / resting));
    fewer = Math.max(1, Math.sqrt(all / moving));
    if (by > 1.1 * least) rest = setTimeout(draw, fewer > 1 ? 300 : 0, least);
    byId("level-out").textContent = wanted.toPrecision(3);
    byId("key").hidden = !paint;
    if (paint) {
      const what = kind(paint.name);
      const [low, high] = {
        change: ["removed, z = −8", "+8, added"],
        mask: ["outside", "inside"],
        "local resolution": [`${paint.low.toPrecision(3)} Å`, `${paint.high.toPrecision(3)} Å`],
      }[what] || ["0", `± ${paint.high.toPrecision(2)}`];
      byId("key-low").textContent = low;
      byId("key-high").textContent = high;
      const colours = { change: "#c2399e, #d9d9d9, #1a9933", mask: "#e6731a, #9eb8db" }[what] || "#2b7bb5, #ffffbf, #d61a1c";
      document.querySelector("#key i").style.background = `linear-gradient(90deg, ${colours})`;
    }
  }
  let held = null;
  canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointermove", (event) => {
    if (!held) return;
    rotate(0.008 * (event.clientX - held[0]), 0.008 * (event.clientY - held[1]));
    held = [event.clientX, event.clientY];
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { held = null; });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (by) { event.preventDefault(); rotate(...by); }
  });
  for (const control of [which, colour, level, byId("zoom")]) control.addEventListener("input", ask);
  addEventListener("resize", ask);
  rotate(0.5, 0.35);
})();
