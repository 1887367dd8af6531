"use strict";
(() => {
  const NS = "http://www.w3.org/2000/svg", LEFT = 64, RIGHT = 16, TOP = 30, BOTTOM = 46;
  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.appendChild(node);
    return node;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    return size !== 0 && size < 1e-3 ? value.toExponential(1) : `${+value.toPrecision(4)}`;
  };
  const ticks = (low, high, log) => {
    const out = [];
    if (log) {
      const decades = Math.log10(high / low);
      const steps = decades > 4 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const step of steps) {
          const value = step * 10 ** power;
          if (value >= low * 0.999 && value <= high * 1.001) out.push(value);
        }
      if (out.length >= 2) return out;
      out.length = 0;
    }
    const raw = (high - low) / 6 || 1, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((k) => k >= raw) || raw;
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step)
      out.push(Math.abs(value) < step * 1e-9 ? 0 : value);
    return out;
  };

  const smoothed = (points, memory) => {
    if (!memory) return null;
    const keep = Math.min(memory, 1 - 1 / Math.max(1, points.length / 20));
    let mean = 0, weight = 0;
    return points.map(([x, y]) => {
      if (y === null) return [x, null];
      mean = keep * mean + (1 - keep) * y; weight = keep * weight + (1 - keep);
      return [x, mean / weight];
    });
  };

  const chart = (holder) => {
    const data = JSON.parse(holder.querySelector("script").textContent);
    const W = Math.max(340, Math.min(760, holder.clientWidth || 760)), H = Math.max(250, W / 2);
    const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": data.title || data.y_label, tabindex: 0 });
    const legend = document.createElement("div"), readout = document.createElement("div");
    legend.className = "legend"; readout.className = "readout";
    holder.append(svg, legend, readout);
    const hidden = new Set();
    const usable = ([x, y]) => y !== null && (!data.log_x || x > 0) && (!data.log_y || y > 0);
    let window_ = null, view = [0, 1], whole = [0, 1];  // the chosen range of x, the shown one and that of all points

    const range = (values, log, pad) => {
      let low = Math.min(...values), high = Math.max(...values);
      if (!isFinite(low)) return log ? [1, 10] : [0, 1];
      if (low === high) { if (log) { low /= 1.5; high *= 1.5; } else { const d = Math.abs(low) * 0.1 || 1; low -= d; high += d; } }
      if (!pad) return [low, high];
      if (log) { const f = (high / low) ** 0.05; return [low / f, high * f]; }
      const d = (high - low) * 0.05; return [low - d, high + d];
    };
    const draw = () => {
      svg.replaceChildren();
      const shown = data.lines.filter((line) => !hidden.has(line.name));
      const all = shown.flatMap((line) => line.points.filter(usable));
      whole = range(all.map((p) => p[0]), data.log_x, true);
      const [x0, x1] = view = window_ || whole;
      const inside = all.filter((p) => p[0] >= x0 && p[0] <= x1);
      const ends = shown.flatMap((line) => (line.errors || []).flatMap((e, k) => {
        const p = line.points[k];
        return usable(p) && p[0] >= x0 && p[0] <= x1 ? [p[1] - e, p[1] + e].filter((v) => !data.log_y || v > 0) : [];
      }));
      const levels = window_ ? [] : data.hlines.filter((h) => !hidden.has(h.name)).map((h) => h.value)
        .filter((v) => !data.log_y || v > 0);
      const [y0, y1] = range([...inside.map((p) => p[1]), ...ends, ...levels], data.log_y, true);
      const place = (v, a, b, log) => log ? Math.log(v / a) / Math.log(b / a) : (v - a) / (b - a);
      const px = (x) => LEFT + place(x, x0, x1, data.log_x) * (W - LEFT - RIGHT);
      const py = (y) => H - BOTTOM - place(y, y0, y1, data.log_y) * (H - TOP - BOTTOM);
      make("text", { class: "title", x: LEFT, y: 18 }, svg, data.title);
      for (const value of ticks(y0, y1, data.log_y)) {
        make("line", { class: "gridline", x1: LEFT, x2: W - RIGHT, y1: py(value), y2: py(value) }, svg);
        make("text", { x: LEFT - 8, y: py(value) + 4, "text-anchor": "end" }, svg, short(value));
      }
      for (const value of ticks(x0, x1, data.log_x)) {
        make("line", { class: "axis", x1: px(value), x2: px(value), y1: H - BOTTOM, y2: H - BOTTOM + 5 }, svg);
        make("text", { x: px(value), y: H - BOTTOM + 19, "text-anchor": "middle" }, svg, short(value));
      }
      make("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }, svg);
      make("text", { x: (LEFT + W - RIGHT) / 2, y: H - 8, "text-anchor": "middle" }, svg, data.x_label);
      if (data.y_label !== data.title)
        make("text", { x: 14, y: (TOP + H - BOTTOM) / 2, "text-anchor": "middle",
          transform: `rotate(-90 14 ${(TOP + H - BOTTOM) / 2})` }, svg, data.y_label);
      const clip = `clip-${Math.random().toString(36).slice(2)}`;
      const area = make("clipPath", { id: clip }, make("defs", {}, svg));
      make("rect", { x: LEFT, y: TOP - 6, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM + 6 }, area);
      const plot = make("g", { "clip-path": `url(#${clip})` }, svg);
      data.hlines.forEach((h) => {
        if (hidden.has(h.name) || (data.log_y && h.value <= 0)) return;
        make("line", { x1: LEFT, x2: W - RIGHT, y1: py(h.value), y2: py(h.value), stroke: `var(--c${h.colour})`,
          "stroke-dasharray": "6 4" }, plot);
      });
      const path = (points, extra) => {
        let d = "", pen = false;
        for (const p of points) {
          if (!usable(p)) { pen = false; continue; }
          d += `${pen ? "L" : "M"}${px(p[0]).toFixed(1)} ${py(p[1]).toFixed(1)}`; pen = true;
        }
        make("path", { d, fill: "none", ...extra }, plot);
      };
      for (const line of shown) {
        const stroke = `var(--c${line.colour})`, average = smoothed(line.points, data.smooth);
        if (average) path(line.points, { stroke, "stroke-opacity": 0.25, "stroke-width": 1 });
        path(average || line.points, { stroke, "stroke-width": 1.8 });
        (line.errors || []).forEach((e, k) => {
          const p = line.points[k];
          if (!(e > 0) || !usable(p)) return;
          const low = data.log_y ? Math.max(p[1] - e, y0) : p[1] - e;
          make("line", { x1: px(p[0]), x2: px(p[0]), y1: py(low), y2: py(p[1] + e), stroke }, plot);
        });
        if (line.points.length <= 60) for (const p of line.points.filter(usable))
          make("circle", { cx: px(p[0]), cy: py(p[1]), r: 3, fill: stroke }, plot);
        (line.notes || []).forEach((note, k) => {
          const p = line.points[k];
          if (note && usable(p)) make("text", { x: px(p[0]) + 6, y: py(p[1]) - 6 }, plot, note);
        });
      }
      const where = (event) => {
        const box = svg.getBoundingClientRect(), u = (event.clientX - box.left) * W / box.width;
        const share = Math.min(1, Math.max(0, (u - LEFT) / (W - LEFT - RIGHT)));
        return { u: LEFT + share * (W - LEFT - RIGHT), x: data.log_x ? x0 * (x1 / x0) ** share : x0 + share * (x1 - x0) };
      };
      let from = null, band = null;
      svg.onpointerdown = (event) => {
        if (event.pointerType === "touch") return;
        from = where(event); svg.setPointerCapture(event.pointerId);
        band = make("rect", { class: "band", x: from.u, y: TOP, width: 0, height: H - TOP - BOTTOM }, svg);
        event.preventDefault(); svg.focus();
      };
      svg.onpointermove = (event) => {
        const here = where(event);
        if (from && band) {
          band.setAttribute("x", Math.min(from.u, here.u)); band.setAttribute("width", Math.abs(here.u - from.u));
        }
        const parts = [];
        for (const line of shown) {
          let best = null;
          for (const p of line.points) if (usable(p) && (!best || Math.abs(px(p[0]) - here.u) < Math.abs(px(best[0]) - here.u))) best = p;
          if (best) parts.push(`${line.name || data.y_label}: ${short(best[1])} at ${short(best[0])}`);
        }
        readout.textContent = parts.join("   ");
      };
      svg.onpointerup = (event) => {
        if (!from) return;
        const here = where(event), start = from;
        from = null; if (band) band.remove();
        if (Math.abs(here.u - start.u) > 8) { window_ = [Math.min(start.x, here.x), Math.max(start.x, here.x)]; draw(); note(); }
      };
    };
    const zoom = document.createElement("button");
    zoom.type = "button"; zoom.className = "zoom"; zoom.textContent = "whole range";
    const note = () => { zoom.hidden = !window_; };
    const reset = () => { window_ = null; draw(); note(); };
    zoom.onclick = reset; svg.ondblclick = reset;
    // Shows the part of what is shown from a share to another: 0 and 1 are its ends.
    const show = (from, to) => {
      const [a, b] = view, at = (share) => data.log_x ? a * (b / a) ** share : a + share * (b - a);
      window_ = [at(from), at(to)];
      if (window_[0] <= whole[0] && window_[1] >= whole[1]) window_ = null;
      draw(); note();
    };
    const KEYS = { "+": [0.15, 0.85], "=": [0.15, 0.85], "-": [-0.22, 1.22], ArrowLeft: [-0.2, 0.8], ArrowRight: [0.2, 1.2] };
    svg.onkeydown = (event) => {
      const part = KEYS[event.key], pans = event.key.startsWith("Arrow");
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape" && window_) { event.preventDefault(); reset(); }
      else if (part && (window_ || !pans && event.key !== "-")) { event.preventDefault(); show(...part); }
    };
    for (const entry of [...data.lines, ...data.hlines]) {
      if (!entry.name) continue;
      const button = document.createElement("button"), swatch = document.createElement("span");
      button.type = "button"; swatch.className = "swatch"; swatch.style.background = `var(--c${entry.colour})`;
      button.append(swatch, entry.name); button.setAttribute("aria-pressed", "true");
      button.onclick = () => {
        if (hidden.has(entry.name)) hidden.delete(entry.name); else hidden.add(entry.name);
        const off = hidden.has(entry.name);
        button.classList.toggle("off", off); button.setAttribute("aria-pressed", String(!off)); draw();
      };
      legend.appendChild(button);
    }
    legend.appendChild(zoom);
    draw(); note();
  };
  const slider = (holder) => {
    const frames = [...holder.querySelectorAll("figure")], input = holder.querySelector("input");
    const show = () => frames.forEach((frame, k) => { frame.hidden = k !== +input.value; });
    input.max = frames.length - 1; input.value = frames.length - 1; input.oninput = show; show();
  };

  const drawn = new WeakSet();
  // Draws the charts and sliders below a node that are not drawn yet.
  window.drawCharts = (below) => {
    for (const [kind, draw] of [[".chart", chart], [".slider", slider]])
      for (const holder of below.querySelectorAll(kind))
        {
          // A page that changes may keep the holder of a chart and replace what is in it.
          const done = kind === ".chart" ? holder.querySelector("svg") : drawn.has(holder);
          if (done) continue;
          for (const left of holder.querySelectorAll(".legend, .readout")) left.remove();
          drawn.add(holder); draw(holder);
        }
  };
  window.drawCharts(document);
})();
