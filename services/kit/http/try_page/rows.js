// Metadata that is filled in row by row: each column of the form becomes a list in the metadata.

class RowsForm {
  constructor(place) {
    this.place = place;
    this.columns = [];
  }

  /** What the service says of its form, or nothing: `{title, columns: [{field, label, choices?}]}`. */
  describe(form) {
    this.columns = form?.columns ?? [];
    this.place.hidden = !form;
    if (!form) return;
    this.rows = make("div", { className: "rows" });
    const more = make("button", { type: "button", className: "link" }, "add a row");
    more.addEventListener("click", () => this.addRow([]).querySelector("select, input").focus());
    this.place.replaceChildren(make("legend", {}, form.title), this.rows, more);
    this.addRow([]);
  }

  addRow(values) {
    const row = make("div", { className: "row" });
    for (const [n, { label, choices }] of this.columns.entries()) {
      const input = choices
        ? make("select", {}, ...choices.map((choice) => make("option", { value: choice }, choice)))
        : make("input", { type: "text" });
      if (values[n] !== undefined) input.value = values[n];
      row.append(make("label", {}, label, input));
    }
    const remove = make("button", { type: "button", "aria-label": "Remove this row" }, "×");
    remove.addEventListener("click", () => row.remove());
    row.append(remove);
    this.rows.append(row);
    return row;
  }

  /** The lists by field; rows whose texts are all empty are none. */
  values() {
    if (!this.columns.length) return {};
    const rows = [...this.rows.children]
      .map((row) => [...row.querySelectorAll("input, select")])
      .filter((inputs) => inputs.some((input) => input.tagName === "INPUT" && input.value.trim()))
      .map((inputs) => inputs.map((input) => input.value));
    if (!rows.length) return {};
    return Object.fromEntries(this.columns.map(({ field }, n) => [field, rows.map((row) => row[n])]));
  }

  /** Take a metadata's lists into the form, and give back what is left of it. */
  fill(metadata) {
    const left = { ...metadata };
    if (!this.columns.length) return left;
    const lists = this.columns.map(({ field }) => {
      const list = left[field] ?? [];
      delete left[field];
      return list;
    });
    this.rows.replaceChildren();
    for (const n of lists[0].keys()) this.addRow(lists.map((list) => list[n]));
    return left;
  }
}
