"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const colour = (metric) => `var(--metric${metric % 8})`;
const again = (metric) => (metric < 8 ? "" : "again");  // there are eight colours
const choices = Object.fromEntries(["family", "metric", "x", "y"].map((id) => [id, document.getElementById(id)]));
const DRAWN = ["svg", "line", "rect", "circle", "polyline", "text", "title"];

// An element; children are nodes or text.
function make(name, attributes = {}, ...children) {
  const drawn = DRAWN.includes(name);
  const element = drawn ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const drawing = (width, height, label) =>
  make("svg", {viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label});
const line = (x1, y1, x2, y2, kind) => make("line", {x1, y1, x2, y2, class: kind});
const label = (x, y, text, anchor = "start", kind = "") =>
  make("text", {x, y, "text-anchor": anchor, class: kind}, text);
const panel = (title, detail, image) =>
  make("figure", {}, make("figcaption", {}, title + " ", make("small", {}, detail)), image);

const short = (value, digits = 3) => value === null ? "-" : value.toFixed(digits).replace(/^(-?)0\./, "$1.");
const percent = (value) => Math.round(100 * value) + " %";
const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);

function ticks(low, high) {
  const step = high - low > 0.55 ? 0.25 : high - low > 0.25 ? 0.1 : 0.05;
  const first = Math.ceil(low / step - 1e-6);
  return Array.from({length: Math.floor(high / step + 1e-6) - first + 1}, (_, index) => (first + index) * step);
}

function drawBars(family) {
  const left = Math.min(190, 12 + 6.3 * Math.max(...data.metrics.map((name) => name.length)));
  return data.bars.filter((bars) => !family || bars.family === family).map((bars) => {
    // Panels of one kind have one axis.
    const alike = data.bars.filter((other) => other.kind === bars.kind);
    const values = alike.flatMap((other) => [other.chance, other.ceiling ?? other.chance, ...other.scores.flat()]).filter((value) => value !== null);
    const low = Math.floor(Math.min(...values) * 10) / 10;
    const high = Math.max(Math.ceil(Math.max(...values) * 10) / 10, low + 0.1);
    const width = 360, top = 8, row = 20, bottom = top + row * bars.scores.length;
    const x = scale(low, high, left, width - 44);
    const labels = bars.scores.map(([value, from, to], metric) =>
      `${data.metrics[metric]} ${short(value)} (${short(from)} to ${short(to)})`);
    const image = drawing(width, bottom + 20, `${bars.name}: ${labels.join(", ")}`);
    for (const tick of ticks(low, high)) {
      image.append(line(x(tick), top, x(tick), bottom, "grid"));
      image.append(label(x(tick), bottom + 14, short(tick, 2), "middle", "soft"));
    }
    bars.scores.forEach(([value, from, to], metric) => {
      if (value === null) {
        const y = top + row * (metric + 0.5) + 4;
        image.append(label(left - 8, y, data.metrics[metric], "end"), label(width, y, "-", "end"));
        return;
      }
      const y = top + row * (metric + 0.5), end = Math.min(x(bars.chance), x(value));
      const box = {x: end, y: y - 6, width: Math.abs(x(value) - x(bars.chance)), height: 12};
      image.append(
        label(left - 8, y + 4, data.metrics[metric], "end"),
        make("rect", {...box, style: `fill: ${colour(metric)}`}, make("title", {}, labels[metric])),
        line(x(from), y, x(to), y, "ink"),
        line(x(from), y - 3, x(from), y + 3, "ink"),
        line(x(to), y - 3, x(to), y + 3, "ink"),
        label(width, y + 4, short(value), "end"),
      );
    });
    image.append(line(x(bars.chance), top, x(bars.chance), bottom, "ink"));
    const ceiling = bars.ceiling === null ? "" : `, ceiling ${short(bars.ceiling)}`;
    if (ceiling) image.append(line(x(bars.ceiling), top - 4, x(bars.ceiling), bottom, "ceiling"));
    return panel(bars.name, bars.kind + ceiling, image);
  });
}

function drawUnanimity(sets) {
  const shown = sets.filter((set) => set.votes);
  if (!shown.length) return [make("p", {}, "Judged pairs carry one number each, no votes: there is nothing to show.")];
  return shown.map((set) => {
    const width = 360, height = 230, left = 52, right = width - 14;
    const x = scale(0.5, 1, left, right), y = scale(0, 1, height - 40, 10);
    const labels = data.metrics.map((name, metric) =>
      `${name} ${set.votes.map((votes) => short(votes.scores[metric])).join(" ")}`);
    const image = drawing(width, height, `${set.name}, from divided to unanimous: ${labels.join("; ")}`);
    for (const tick of ticks(0, 1)) {
      image.append(line(left, y(tick), right, y(tick), "grid"));
      image.append(label(left - 8, y(tick) + 4, short(tick, 2), "end", "soft"));
    }
    for (const votes of set.votes) {
      image.append(label(x(votes.unanimity), height - 24, short(votes.unanimity, 2), "middle", "soft"));
      image.append(label(x(votes.unanimity), height - 10, votes.items, "middle", "soft"));
    }
    image.append(label(0, height - 10, "items", "start", "soft"));
    if (set.kind === "triplets") image.append(line(x(0.5), y(0.5), x(1), y(1), "ceiling"));
    data.metrics.forEach((name, metric) => {
      const defined = set.votes.filter((votes) => votes.scores[metric] !== null);
      const points = defined.map((votes) => [x(votes.unanimity), y(votes.scores[metric])]);
      const line = {points: points.join(" "), class: again(metric), style: `stroke: ${colour(metric)}`};
      image.append(make("polyline", line));
      points.forEach(([cx, cy], index) => {
        const title = `${name}: ${short(defined[index].scores[metric])} on ${defined[index].items} items`;
        image.append(make("circle", {cx, cy, r: 3.5, style: `fill: ${colour(metric)}`}, make("title", {}, title)));
      });
    });
    return panel(set.name, set.kind === "same" ? "average precision" : "agreement", image);
  });
}

function drawScatter(sets, across, up) {
  // Triplets and pairs have different axes: if both are chosen, the kind of the first is shown.
  const shown = sets.filter((set) => set.kind === sets[0].kind), triplets = sets[0].kind === "triplets";
  const low = triplets ? -1 : 0, size = 460, x = scale(low, 1, 40, size - 10), y = scale(low, 1, size - 40, 10);
  const names = [data.metrics[across], data.metrics[up]], places = shown.map((set) => set.name).join(", ");
  const image = drawing(size, size, `${names[1]} against ${names[0]} on ${places}`);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const tick = low + part * (1 - low);
    image.append(line(x(tick), y(low), x(tick), y(1), "grid"), line(x(low), y(tick), x(1), y(tick), "grid"));
    image.append(label(x(tick), size - 24, String(tick), "middle", "soft"));
    image.append(label(34, y(tick) + 4, String(tick), "end", "soft"));
  }
  if (triplets) image.append(line(x(0), y(-1), x(0), y(1), "ink"), line(x(-1), y(0), x(1), y(0), "ink"));
  const upwards = {transform: `translate(10 ${y(1)}) rotate(-90)`, "text-anchor": "end"};
  image.append(label(x(1), size - 8, names[0] + " \u2192", "end"), make("text", upwards, names[1] + " \u2192"));
  let count = 0, together = 0, total = 0;
  for (const {name, points} of shown) {
    total += points.total;
    points.rows.forEach((row, index) => {
      const [a, b, people] = [points.metrics[across][index], points.metrics[up][index], points.people[index]];
      const share = 100 * (triplets ? (people + 1) / 2 : people);
      const title = `${name}, item ${row + 1}: ${names[0]} ${a}, ${names[1]} ${b}, people ${people}`;
      const style = `fill: color-mix(in srgb, var(--metric1) ${share}%, var(--metric5))`;
      image.append(make("circle", {cx: x(a), cy: y(b), r: 3, class: "point", style}, make("title", {}, title)));
      count += 1;
      together += Math.sign(a) === Math.sign(b);
    });
  }
  const explanation = triplets
    ? "By how much a metric finds the first distortion farther than the second, as a share of both distances. " +
      `The two take one side on ${percent(together / count)}. ` +
      "Colour: people find the first nearer (blue) or the second (orange)."
    : "Place of each distance in the order of its set, or group, from near (0) to far (1). " +
      "Colour: people find the pair near (blue) or far (orange).";
  return [image, make("p", {}, `${count} of ${total} items of ${places}. ${explanation}`)];
}

function drawItem(item, metric) {
  const set = data.sets[item.set], name = data.metrics[metric], distances = item.distances[metric];
  const picture = (index, alt, ...lines) => {
    const {uri, width, height} = data.gallery.images[item.images[index]];
    const times = Math.max(1, Math.floor(140 / Math.max(width, height)));
    const attributes = {src: uri, alt, title: alt, width: width * times, height: height * times};
    return make("div", {}, make("img", attributes), ...lines.flatMap((text) => [text, make("br")]));
  };
  let pictures, text;
  if (set.kind === "triplets") {
    const [nearer, other] = item.judged > 0.5 ? ["right", "left"] : ["left", "right"];
    pictures = [
      picture(1, "first distortion", `${percent(1 - item.judged)} of people`, `${name} ${distances[0]}`),
      picture(0, "reference", "reference"),
      picture(2, "second distortion", `${percent(item.judged)} of people`, `${name} ${distances[1]}`),
    ];
    text = `people find the ${nearer} one nearer, ${name} the ${other} one.`;
  } else {
    pictures = [picture(0, "first image"), picture(1, "second image")];
    const people = set.kind === "same"
      ? `${percent(item.judged)} of people saw no difference`
      : `people put it farther than ${percent(item.people)} of the pairs (${item.judged})`;
    text = `${people}; ${name} puts it farther than ${percent(item.views[metric])} of the pairs (${distances[0]}).`;
  }
  const caption = make("figcaption", {}, `${item.name}: ${text}`);
  return make("figure", {class: "item"}, make("div", {class: "pictures"}, ...pictures), caption);
}

function drawGallery(sets, metric) {
  if (!data.gallery) return [];
  return sets.flatMap((set) => {
    const items = data.gallery.items.filter((item) => data.sets[item.set] === set && metric in item.ranks);
    items.sort((one, other) => one.ranks[metric] - other.ranks[metric]);
    const count = items.length === 1 ? "1 item" : `${items.length} items`;
    const title = make("h3", {}, `${set.name}: ${count}, ${data.metrics[metric]}`);
    return items.length ? [title, make("div", {class: "items"}, ...items.map((item) => drawItem(item, metric)))] : [];
  });
}

function readChoice() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const metric = (key, otherwise) => {
    const index = data.metrics.indexOf(asked.get(key));
    return index < 0 ? Math.min(otherwise, data.metrics.length - 1) : index;
  };
  const family = data.sets.some((set) => set.family === asked.get("family")) ? asked.get("family") : "";
  return {family, metric: metric("metric", 0), x: metric("x", 1), y: metric("y", 0)};
}

function draw() {
  const choice = readChoice();
  for (const [key, select] of Object.entries(choices)) select.value = choice[key];
  const sets = data.sets.filter((set) => !choice.family || set.family === choice.family);
  const fill = (id, elements) => document.getElementById(id).replaceChildren(...elements);
  fill("bars", drawBars(choice.family));
  fill("unanimity", drawUnanimity(sets));
  fill("scatter", drawScatter(sets, choice.x, choice.y));
  fill("gallery", drawGallery(sets, choice.metric));
}

const offer = (select, names) => select.append(...names.map(([name, value]) => make("option", {value}, name)));
for (const key of ["metric", "x", "y"]) offer(choices[key], data.metrics.map((name, index) => [name, index]));
const families = [...new Set(data.sets.map((set) => set.family))];
offer(choices.family, [["all", ""], ...families.map((name) => [name, name])]);
for (const select of Object.values(choices)) {
  select.addEventListener("change", () => {
    const asked = {family: choices.family.value};
    for (const key of ["metric", "x", "y"]) asked[key] = data.metrics[choices[key].value];
    location.hash = new URLSearchParams(asked).toString();
  });
}
data.metrics.forEach((name, metric) => {
  const box = make("i", {class: again(metric), style: `color: ${colour(metric)}`});
  document.getElementById("legend").append(make("span", {}, box, name));
});
window.addEventListener("hashchange", draw);
draw();
