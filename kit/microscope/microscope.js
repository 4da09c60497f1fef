// Draws what kit/microscope/widget.py sends. It computes nothing, and every text is set by textContent.

const RANGES = ["step", "reward", "age", "tokens"];
const ROLES = [["", "any role"], ["chosen", "chosen"], ["rejected", "rejected"], ["advantage=", "any advantage"],
  ["advantage=-", "advantage below 0"], ["unused", "unused"], ["unjudged", "unjudged"], ["tie", "tie"],
  ["not drawn", "not drawn"], ["too old", "too old"]];
const PATIENCE = 400; // ms until a kernel that does not answer is called busy

function node(tag, properties = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === "style") Object.assign(made.style, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const options = (pairs) => pairs.map(([value, text]) => node("option", { value, text }));

function render({ model, el }) {
  let timer = null;
  // JupyterLab's own keys are not for what is in here; it also keeps Enter from ending an input.
  const root = node("div", { class: "kit-microscope", "data-lm-suppress-shortcuts": "true" });
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.target.tagName !== "INPUT") return;
    event.preventDefault();
    event.target.dispatchEvent(new Event("change"));
  });
  const status = node("div", { class: "status", role: "status", "aria-live": "polite" });
  const list = node("ul", { class: "list", role: "listbox", tabindex: "0", "aria-label": "groups of completions" });
  const pager = node("div", { class: "pager" });
  const detail = node("div", { class: "detail", role: "region", "aria-label": "the chosen group" });

  function ask(changes) {
    model.set("asked", { ...model.get("asked"), ...changes, number: model.get("asked").number + 1 });
    model.save_changes();
    clearTimeout(timer);
    timer = setTimeout(() => { status.textContent = "the kernel is busy: it answers after what it is doing"; }, PATIENCE);
  }

  const choose = (number) => ask({ group: number, limit: model.get("about").limit });
  const filter = filters(model, (changes) => {
    const kept = { ...model.get("asked").filter, ...changes };
    ask({ filter: Object.fromEntries(Object.entries(kept).filter(([, value]) => value !== null)), page: 0 });
  }, ask);
  root.append(filter, status, node("div", { class: "panes" }, [node("div", { class: "left" }, [list, pager]), detail]));

  function showList() {
    const { lines, page, pages, told, error, answered } = model.get("listing");
    if (answered !== model.get("asked").number) return;
    clearTimeout(timer);
    status.textContent = error || told;
    status.classList.toggle("error", Boolean(error));
    list.replaceChildren(...lines.map((line) => row(line, model.get("asked").group, () => choose(line.number))));
    const chosen = list.querySelector('[aria-selected="true"]');
    if (chosen) list.setAttribute("aria-activedescendant", chosen.id);
    else list.removeAttribute("aria-activedescendant");
    const focused = [...pager.children].indexOf(root.getRootNode().activeElement);
    const turn = (text, label, to) => {
      const button = node("button", { type: "button", text, "aria-label": label, on: { click: () => ask({ page: to }) } });
      button.disabled = to < 0 || to >= pages;
      return button;
    };
    pager.replaceChildren(turn("‹", "page before", page - 1),
      node("span", { text: `page ${page + 1} of ${Math.max(pages, 1)}` }), turn("›", "next page", page + 1));
    pager.children[focused]?.focus();
  }

  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
    const { lines } = model.get("listing");
    if (!by || !lines.length) return;
    event.preventDefault();
    const at = lines.findIndex((line) => line.number === model.get("asked").group);
    const to = Math.min(Math.max(at + by, 0), lines.length - 1);
    if (lines[to].number !== model.get("asked").group) choose(lines[to].number);
    list.children[to].scrollIntoView({ block: "nearest" });
  });

  let shown = null;
  function showGroup() {
    const focused = root.getRootNode().activeElement;
    const bar = [".colours", ".same"].find((one) => detail.contains(focused) && focused.closest(one));
    const top = model.get("group").number === shown ? detail.scrollTop : 0;
    shown = model.get("group").number;
    detail.replaceChildren(...group(model, ask, choose));
    detail.scrollTop = top;
    if (bar) detail.querySelector(`${bar} [aria-checked="true"], ${bar} [aria-pressed="true"]`)?.focus();
  }

  const events = { "change:listing": showList, "change:group": showGroup, "change:colour_by": showGroup };
  for (const [name, handler] of Object.entries(events)) model.on(name, handler);
  showList();
  showGroup();
  el.append(root);
  return () => {
    clearTimeout(timer);
    for (const [name, handler] of Object.entries(events)) model.off(name, handler);
  };
}

function filters(model, set, ask) {
  const { choices, sorts } = model.get("about");
  const asked = model.get("asked");
  const choose = (name, any, values) => {
    const select = node("select", { "aria-label": name, on: { change: () => set({ [name]: select.value || null }) } },
      options([["", any], ...values.map((value) => [value.value, value.text])]));
    select.value = asked.filter[name] ?? "";
    return select;
  };
  const bound = (name, text) => {
    const change = () => set({ [name]: field.value === "" ? null : Number(field.value) });
    const field = node("input", { type: "number", step: "any", placeholder: text, "aria-label": name.replace("_", " "),
      on: { change } });
    field.value = asked.filter[name] ?? "";
    return field;
  };
  const ranges = RANGES.map((name) => node("span", { class: "range", role: "group", "aria-label": name }, [
    node("span", { text: name }), bound(`${name}_min`, "from"), bound(`${name}_max`, "to")]));
  const role = node("select", { "aria-label": "role", on: { change: () => set({ role: role.value || null }) } },
    options(ROLES));
  role.value = ROLES.some(([value]) => value === asked.filter.role) ? asked.filter.role : "";
  const text = node("input", { type: "search", placeholder: "text in prompt or completion", "aria-label": "text",
    class: "search", on: { change: () => set({ text: text.value || null }) } });
  text.value = asked.filter.text ?? "";
  const sort = node("select", { "aria-label": "sort by", on: { change: () => ask({ sort: sort.value, page: 0 }) } },
    options(sorts.map((name) => [name, `by ${name}`])));
  sort.value = asked.sort;
  const down = node("button", { type: "button", "aria-label": "descending", "aria-pressed": String(asked.descending),
    text: asked.descending ? "↓" : "↑" });
  down.addEventListener("click", () => {
    const descending = down.getAttribute("aria-pressed") !== "true";
    down.setAttribute("aria-pressed", String(descending));
    down.textContent = descending ? "↓" : "↑";
    ask({ descending, page: 0 });
  });
  const again = node("button", { type: "button", text: "Read again", title: "with what the run has written since",
    on: { click: () => ask({ reading: model.get("asked").reading + 1 }) } });
  const several = (name) => choices[name].length > 1;
  return node("div", { class: "filters", role: "search", "aria-label": "which completions" }, [
    ...["run", "kind", "task"].filter(several).map((name) => choose(name, `any ${name}`, choices[name])),
    role, ...ranges, text, node("span", { class: "sort" }, [sort, down]), again]);
}

function row(line, selected, click) {
  const marks = line.marks.map(({ share, told }) => {
    const level = node("i", { style: { height: `${Math.round(100 * (share ?? 0))}%` } });
    return node("span", { class: share === null ? "mark unjudged" : "mark", title: told }, [level]);
  });
  return node("li", { role: "option", id: `kit-group-${line.number}`, "aria-selected": String(line.number === selected),
    "aria-label": `${line.facts}, ${line.rewards}`, on: { click } }, [
    node("bdi", { class: "prompt", text: line.prompt }),
    node("span", { class: "facts" }, [node("bdi", { text: line.facts }), node("span", { class: "marks" }, marks)])]);
}

function group(model, ask, choose) {
  const found = model.get("group");
  if (!found.completions) return [node("p", { class: "muted", text: "Choose a group on the left." })];
  const name = model.get("colour_by");
  const measure = found.measures.find((one) => one.name === name);
  const same = found.same.map((other) => node("button", { type: "button", text: other.told, class: "step",
    "aria-pressed": String(other.number === found.number), on: { click: () => choose(other.number) } }));
  const told = node("div", { class: "token", role: "status", "aria-live": "polite" });
  const silent = "Point at a token for its numbers, or go to a completion and use ← and →.";
  told.textContent = silent;
  return [
    node("bdi", { class: "muted", text: found.facts }),
    ...(same.length > 1 ? [node("div", { class: "same", role: "group", "aria-label": "the same prompt at other steps" },
      [node("span", { class: "muted", text: "same prompt:" }), ...same])] : []),
    node("div", { class: "text prompt-text" }, [node("bdi", { text: found.prompt })]),
    ...more(found.prompt_rest, ask, model),
    colours(model, found.measures, name), legend(measure),
    ...found.completions.map((one) => completion(one, measure, found.measures, told, silent, ask, model)),
    told,
  ];
}

function colours(model, measures, chosen) {
  const buttons = measures.map(({ name, title }) => node("button", { type: "button", text: title, role: "radio",
    "aria-checked": String(name === chosen), tabindex: name === chosen ? "0" : "-1", on: { click: () => choose(name) } }));
  function choose(name) {
    model.set("colour_by", name);
    model.save_changes();
  }
  const bar = node("div", { class: "colours", role: "radiogroup", "aria-label": "colour tokens by" }, buttons);
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const at = measures.findIndex((one) => one.name === chosen);
    choose(measures[(at + by + measures.length) % measures.length].name);
  });
  return bar;
}

function legend({ ticks, title, formula, colours: shades }) {
  const strip = node("div", { class: "strip", style: { background: `linear-gradient(90deg, ${shades.join(", ")})` } });
  return node("div", { class: "legend" }, [
    node("div", { class: "scale" }, [strip, node("div", { class: "ticks" }, ticks.map((text) => node("span", { text })))]),
    node("div", { class: "muted", text: `${title}: ${formula}` })]);
}

function more(rest, ask, model) {
  if (!rest) return [];
  return [node("button", { type: "button", class: "more", text: `… ${rest.toLocaleString("en")} more characters`,
    on: { click: () => ask({ limit: model.get("asked").limit * 8 }) } })];
}

function completion(one, measure, measures, told, silent, ask, model) {
  const known = one.numbers[measure.name];
  const tokens = one.pieces.map((text, at) => node("span", { class: "t", text,
    style: known ? { backgroundColor: known.colours[at] } : {} }));
  let current = null;
  const point = (at) => {
    if (current !== null) tokens[current]?.classList.remove("at");
    current = at;
    if (at === null) { told.textContent = silent; return; }
    tokens[at].classList.add("at");
    const numbers = measures.filter(({ name }) => one.numbers[name])
      .map(({ name, title }) => `${title} ${one.numbers[name].told[at]}`);
    told.replaceChildren(node("b", { text: `Token ${at + 1} of ${one.tokens} ` }),
      node("bdi", { class: "piece", text: one.pieces[at] }), node("span", { text: ` ${numbers.join(" · ")} · ${one.facts} · ${one.why}` }));
  };
  const area = node("div", { class: "text", tabindex: "0", role: "group", "aria-label": `completion ${one.index}, tokens` },
    [node("bdi", {}, tokens)]);
  area.addEventListener("mouseover", (event) => {
    const at = tokens.indexOf(event.target);
    if (at >= 0) point(at);
  });
  area.addEventListener("mouseleave", () => point(null));
  area.addEventListener("blur", () => point(null));
  area.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || !tokens.length) return;
    event.preventDefault();
    point(Math.min(Math.max((current ?? -1) + by, 0), tokens.length - 1));
  });
  return node("div", { class: `completion ${one.kind}` }, [
    node("div", { class: "head" }, [node("bdi", { class: "chip", text: one.role, title: one.why }), node("bdi", { class: "muted",
      text: known ? one.facts : `${one.facts} · ${measure.title}: not known of it` })]),
    area, ...more(one.rest, ask, model)]);
}

export default { render };
